"""The gated scan as the papers write it: one token after the other. The specification of the op."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def reference(
    x: Tensor, log_f: Tensor, theta: Tensor | None, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    a = log_f.exp() if theta is None else torch.polar(log_f.exp(), theta)
    states: list[Tensor] = []
    final: list[Tensor] = []
    for row, start, end in sequences(x, cu_seqlens):
        h = initial_state[len(final)]
        for t in range(start, end):
            h = a[row, t] * h + x[row, t]
            states.append(h)
        final.append(h)
    return torch.stack(states).view(x.shape), torch.stack(final)


def sequences(x: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, int, int]]:
    """(row, start, end) of every sequence of x: [B,T,...], in the order of the states."""
    if cu_seqlens is None:
        return [(row, 0, x.shape[1]) for row in range(x.shape[0])]
    bounds = cu_seqlens.tolist()
    return [(0, start, end) for start, end in itertools.pairwise(bounds)]
