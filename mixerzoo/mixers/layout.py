"""Where the tokens of a batch stand: positions, padding, packed documents."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Positions [B or 1,T] int64, each counting its own sequence's (or, packed, document's) tokens from zero.

    valid: [B,T] bool, None = all; padding is always on the right here. cu_seqlens: [N+1], None = not packed."""

    position: Tensor
    valid: Tensor | None
    cu_seqlens: Tensor | None
