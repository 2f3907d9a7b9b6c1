"""Where the tokens of a batch stand: positions, padding, packed documents."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Where the tokens of a batch stand.

    position: [B or 1,T] int64, the token's index in its own sequence, or document when packed · valid: [B,T] bool, None =
    all; padding is always on the right here · cu_seqlens: [N+1] or None.
    """

    position: Tensor
    valid: Tensor | None
    cu_seqlens: Tensor | None
