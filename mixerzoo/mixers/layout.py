"""Where the tokens of a batch stand: positions, padding, packed documents, and ways through an image."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Positions [B or 1,T] int64, each counting its own sequence's (or, packed, document's) tokens from zero.

    valid: [B,T] bool, None = all; padding is always on the right here. cu_seqlens: [N+1], None = not packed."""

    position: Tensor
    valid: Tensor | None
    cu_seqlens: Tensor | None


def whole_sequences(x: Tensor) -> Layout:
    """Every row of x: [B,T,...] is one sequence from its start to its end."""
    return Layout(torch.arange(x.shape[1], device=x.device)[None], None, None)


class ScanOrder(Protocol):
    """A way through the tokens of an image: [B,T,...] -> [N,L,...], sequences to scan from token 0 on, and back."""

    def apply(self, x: Tensor) -> Tensor: ...

    def undo(self, y: Tensor) -> Tensor: ...
