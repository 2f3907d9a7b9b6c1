"""Reads from transformers' inputs which tokens of a batch are padding, and which document each belongs to."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def token_mask(attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Returns bool [B,T] of the new tokens x [B,T,D]; None where all of them count, which is faster."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2 or attention_mask.shape[1] < x.shape[1]:
        got = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(f"attention_mask must be [B,T] or [B,past+T] with T={x.shape[1]}, nonzero = token, got {got}")
    mask = attention_mask[:, -x.shape[1] :].to(x.device) != 0
    values_are_there = mask.device.type != "meta" and not torch.compiler.is_compiling()
    return None if values_are_there and mask.all() else mask


def packed_documents(position_ids: Tensor) -> Tensor | None:
    """Returns cu_seqlens [N+1] of all rows one after the other; None if every row is one document."""
    if position_ids.shape[1] == 1 or position_ids.device.type == "meta":
        return None
    if torch.compiler.is_exporting() or not (restart := position_ids.diff(dim=1) != 1).any():
        return None
    first = nn.functional.pad(restart, (1, 0), value=True).flatten().nonzero()[:, 0]
    return nn.functional.pad(first, (0, 1), value=position_ids.numel()).to(torch.int32)
