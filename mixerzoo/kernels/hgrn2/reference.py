"""HGRN2 as the paper writes it: what the gate lets go of is the key. The specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.kernels.gated_linear_attention.reference import recurrent_step
from mixerzoo.kernels.gated_scan.reference import sequences


def reference(
    q: Tensor, x: Tensor, v: Tensor, lower_bound: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    y: list[Tensor] = []
    final: list[Tensor] = []
    for steps in sequences((q, x, v), cu_seqlens):
        state = initial_state[len(final)]
        for q_t, x_t, v_t in steps:
            f_t = lower_bound + (1 - lower_bound) * x_t.sigmoid()
            k_t = (1 - lower_bound) * (-x_t).sigmoid()  # 1 - f without its cancellation
            y_t, state = recurrent_step(q_t, k_t, v_t, f_t, state)
            y.append(y_t)
        final.append(state)
    return torch.stack(y).view(v.shape), torch.stack(final)
