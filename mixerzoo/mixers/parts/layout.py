"""Where the tokens of a batch stand: positions, padding, packed documents, and ways through an image."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixerzoo.kernels.packing import documents


class Layout(NamedTuple):
    """T tokens of every sequence of a batch; whoever needs their positions asks for them.

    before: [B] int64, how many tokens a sequence had before these, None = none. valid: [B,T] bool, None = all; padding
    is always on the right here. cu_seqlens: [N+1], None = not packed."""

    length: int
    device: torch.device
    before: Tensor | None = None
    valid: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @property
    def position(self) -> Tensor:
        """[B or 1,T] int64, each counting its own sequence's (or, packed, document's) tokens from zero."""
        index = torch.arange(self.length, device=self.device)
        if self.cu_seqlens is not None:
            index = index - documents(self.cu_seqlens, self.length).start
        return index[None] if self.before is None else index + self.before[:, None]


def whole_sequences(x: Tensor) -> Layout:
    """Every row of x: [B,T,...] is one sequence from its start to its end."""
    return Layout(x.shape[1], x.device)


class ScanOrder(Protocol):
    """A way through the tokens of an image: [B,T,...] -> [N,L,...], sequences to scan from token 0 on, and back."""

    def apply(self, x: Tensor) -> Tensor: ...

    def undo(self, y: Tensor) -> Tensor: ...
