"""The gated scan as the papers write it: one token after the other. The specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from ..token_loop import causal_loop


def reference(
    x: Tensor, log_f: Tensor, theta: Tensor | None, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    a = log_f.exp() if theta is None else torch.polar(log_f.exp(), theta)

    def step(a: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = a * h + x
        return h, h

    return causal_loop(step, (a, x), initial_state, cu_seqlens)
