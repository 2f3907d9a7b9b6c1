"""HGRN2 in plain torch: key and gate from the logits, then the chunked gated linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gated_linear_attention.chunked import chunked_with_gates


def chunked(
    q: Tensor, logits: Tensor, v: Tensor, lower_bound: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    k, f = _KeyAndGate.apply(logits, lower_bound)
    return chunked_with_gates(q, k, v, f, initial_state, cu_seqlens)


class _KeyAndGate(torch.autograd.Function):
    """Forms `k = (1-b) sigmoid(-x)` and `f = b + (1-b) sigmoid(x)` of logits x and lower bound b.

    k is 1 - f, not lost where f is near 1. Adjoint: `dx = (df - dk) (1-b) sigmoid(x) sigmoid(-x)`,
    `db = sum (df - dk) sigmoid(-x)`.
    """

    @staticmethod
    def forward(logits: Tensor, lower_bound: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - lower_bound) * (-logits).sigmoid(), lower_bound + (1 - lower_bound) * logits.sigmoid()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dk: Tensor, df: Tensor):
        logits, lower_bound = ctx.saved_tensors
        through_gate = (df - dk) * (-logits).sigmoid()
        dlower_bound = through_gate.sum_to_size(lower_bound.shape) if ctx.needs_input_grad[1] else None
        return through_gate * logits.sigmoid() * (1 - lower_bound), dlower_bound
