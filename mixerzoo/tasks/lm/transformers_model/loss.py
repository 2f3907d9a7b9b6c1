"""Computes cross-entropy straight from hidden states: the logits of a long row are never there as a whole.

With N tokens and a vocabulary of V, logits are N V numbers, usually more than everything else in a training step
together. Here they live for a chunk of tokens at a time, and the backward pass makes them again.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**24  # 64 MB in fp32
TYPICAL_VOCABULARY = 32000  # of a head that doesn't say its own, such as one wrapped for quantisation


def shifted(labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Turns labels [B,T] of tokens into targets of positions: position t predicts token t+1, the last one nothing."""
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    num_items: Tensor | int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Returns the cross-entropy in nats of `head(hidden)` against targets, as transformers takes it.

    A bare linear head on an NVIDIA or AMD GPU goes to Liger's or flash-linear-attention's fused kernel, whichever is
    installed; everything else is chunked torch.

    Args:
        hidden: [...,D].
        head: the map to logits.
        targets: [...], already shifted; `ignore_index` is left out.
        num_items: divide the sum by this; None: by the number of targets that count.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten().to(hidden.device)
    if hidden.is_cuda and type(head) is nn.Linear:
        if find_spec("liger_kernel") is not None:
            return _liger(hidden, head, targets, num_items, ignore_index)
        if find_spec("fla") is not None:
            return _flash_linear_attention(hidden, head, targets, num_items, ignore_index)
    return chunked_cross_entropy(hidden, head, targets, num_items=num_items, ignore_index=ignore_index)


def chunked_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    num_items: Tensor | int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Computes `linear_cross_entropy` in torch: hidden [N,D], targets [N]."""
    rows = max(1, LOGITS_AT_ONCE // getattr(head, "out_features", TYPICAL_VOCABULARY))

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden).float(), targets, ignore_index=ignore_index, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        total = total + checkpoint(part, some, wanted, use_reentrant=False)
    return total / _count(targets, num_items, ignore_index)


def _liger(
    hidden: Tensor, head: nn.Linear, targets: Tensor, num_items: Tensor | int | None, ignore_index: int
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    total = liger_fused_linear_cross_entropy(
        hidden, head.weight, targets, head.bias, ignore_index=ignore_index, reduction="sum"
    )
    return total / _count(targets, num_items, ignore_index)


def _flash_linear_attention(
    hidden: Tensor, head: nn.Linear, targets: Tensor, num_items: Tensor | int | None, ignore_index: int
) -> Tensor:
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    total = fused_linear_cross_entropy_loss(
        hidden, targets, head.weight, head.bias, ignore_index=ignore_index, reduction="sum"
    )
    return total / _count(targets, num_items, ignore_index)


def _count(targets: Tensor, num_items: Tensor | int | None, ignore_index: int) -> Tensor | int:
    if num_items is None:
        return (targets != ignore_index).sum()
    return num_items.to(targets.device) if isinstance(num_items, Tensor) else num_items
