"""Rotary positions: a pair of channels is turned by its token's position times the pair's frequency."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_frequencies(width: int, base: float = 10000.0) -> Tensor:
    """`base^(-2j/width)`, j < width/2 (arXiv:2104.09864, eq. 15)."""
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def xpos_frequencies(width: int, base: float = 10000.0) -> Tensor:
    """`base^(-j/(width/2-1))`, j < width/2: from 1 to 1/base inclusive, as RetNet's authors space them."""
    return base ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)


def rotate(x: Tensor, position: Tensor, frequencies: Tensor, *, interleaved: bool) -> Tensor:
    """x: [B,T,H,K], position: [B or 1,T] -> x with pair j turned by position * frequencies[j].

    Pair j is channels (2j, 2j+1) when interleaved, else (j, j + K/2). Angles are formed in fp64: at position 100,000 an
    fp32 angle is off by several thousandths of a radian.
    """
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    angle = (position[..., None].to(exact) * frequencies.to(x.device, exact))[:, :, None]
    compute = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(compute), angle.sin().to(compute)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, -1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    turned_x = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return turned_x.to(x.dtype)
