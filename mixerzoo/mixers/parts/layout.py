"""Where the tokens of a batch stand: positions, padding, packed documents, and the ways through an image."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixerzoo.kernels.packing import documents


class Layout(NamedTuple):
    """T tokens of every sequence of a batch; whoever needs their positions asks for them.

    before: [B] int64, how many tokens a sequence had before these, None = none. valid: [B,T] bool, None = all; padding
    is always on the right here. cu_seqlens: [N+1], None = not packed. plane: (height, width) of images whose token
    (i, j) stands at place i width + j, for a mixer that works on two axes; None = a sequence.
    """

    length: int
    device: torch.device
    before: Tensor | None = None
    valid: Tensor | None = None
    cu_seqlens: Tensor | None = None
    plane: tuple[int, int] | None = None

    @property
    def position(self) -> Tensor:
        """Counts the tokens of every sequence (or, packed, document) from zero: [B or 1,T] int64."""
        index = torch.arange(self.length, device=self.device)
        if self.cu_seqlens is not None:
            index = index - documents(self.cu_seqlens, self.length).start
        return index[None] if self.before is None else index + self.before[:, None]


def whole_sequences(x: Tensor) -> Layout:
    """Says that every row of x: [B,T,...] is one sequence from its start to its end."""
    return Layout(x.shape[1], x.device)


class ScanOrder(Protocol):
    """A way through the tokens of an image: [B,T,...] -> [N,L,...], sequences to scan from token 0 on, and back."""

    def apply(self, x: Tensor) -> Tensor: ...

    def undo(self, y: Tensor) -> Tensor: ...


class Plane(NamedTuple):
    """The order of a mixer that works on two axes: the image as it stands, with its height and width."""

    height: int
    width: int

    def apply(self, x: Tensor) -> Tensor:
        return x

    def undo(self, y: Tensor) -> Tensor:
        return y
