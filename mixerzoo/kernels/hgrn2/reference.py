"""HGRN2 as the paper writes it: what the gate lets go of is the key. The specification of the op."""

from __future__ import annotations

from torch import Tensor

from ..gated_linear_attention.reference import recurrent_step
from ..token_loop import causal_loop


def reference(
    q: Tensor, logits: Tensor, v: Tensor, lower_bound: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    def step(q: Tensor, logits: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        f = lower_bound + (1 - lower_bound) * logits.sigmoid()
        k = (1 - lower_bound) * (-logits).sigmoid()  # 1 - f without its cancellation
        return recurrent_step(q, k, v, f, state)

    return causal_loop(step, (q, logits, v), initial_state, cu_seqlens)
