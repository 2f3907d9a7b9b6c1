"""The gated scan as the papers write it: one token after the other. The specification of the op."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def reference(
    x: Tensor, log_f: Tensor, theta: Tensor | None, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    a = log_f.exp() if theta is None else torch.polar(log_f.exp(), theta)
    states: list[Tensor] = []
    final: list[Tensor] = []
    for steps in sequences((a, x), cu_seqlens):
        h = initial_state[len(final)]
        for a_t, x_t in steps:
            h = a_t * h + x_t
            states.append(h)
        final.append(h)
    return torch.stack(states).view(x.shape), torch.stack(final)


def sequences(inputs: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """For every sequence (row, or packed document) of the inputs [B,T,...], its tokens one after the other."""
    if cu_seqlens is None:
        rows = [tuple(x[row] for x in inputs) for row in range(inputs[0].shape[0])]
    else:
        lengths = cu_seqlens.diff().tolist()
        rows = list(zip(*(x[0].split(lengths) for x in inputs), strict=True))
    for row in rows:
        yield zip(*(x.unbind(0) for x in row), strict=True)
