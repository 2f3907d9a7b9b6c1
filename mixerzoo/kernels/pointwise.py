"""Pointwise functions that ops and mixers share: activations by name, and HGRN's forget gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "silu": F.silu, "sigmoid": torch.sigmoid}


def bounded_gate(logits: Tensor, lower_bound: Tensor | float) -> tuple[Tensor, Tensor]:
    """Returns (1 - f, log f) of `f = lower_bound + (1-lower_bound) sigmoid(logits)` in fp32 at least.

    Both are exact for f near 0 and near 1."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    k = (1 - lower_bound) * (-x).sigmoid()
    f = lower_bound + (1 - lower_bound) * x.sigmoid()
    # Each branch is kept finite where the other is taken: an infinite slope times zero would be a NaN gradient.
    log_f = torch.where(k < 0.5, torch.log1p(-k.clamp(max=0.5)), f.clamp(min=torch.finfo(f.dtype).tiny).log())
    return k, log_f
