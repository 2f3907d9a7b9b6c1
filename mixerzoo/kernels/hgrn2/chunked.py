"""HGRN2 in plain torch: key and gate from the logits, then the chunked gated linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gated_linear_attention.chunked import chunked_with_gates


def chunked(
    q: Tensor, x: Tensor, v: Tensor, lower_bound: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    k, f = _KeyAndGate.apply(x, lower_bound)
    return chunked_with_gates(q, k, v, f, initial_state, cu_seqlens)


class _KeyAndGate(torch.autograd.Function):
    """`k = (1-gamma) sigmoid(-x)` and `f = gamma + (1-gamma) sigmoid(x)`: k = 1 - f, not lost where f is near 1.

    Adjoint: `dx = (df - dk) k sigmoid(x)`, `dgamma = sum (df - dk) k / (1-gamma)`.
    """

    @staticmethod
    def forward(x: Tensor, lower_bound: Tensor) -> tuple[Tensor, Tensor]:
        return (-x).sigmoid().mul_(1 - lower_bound), x.sigmoid().mul_(1 - lower_bound).add_(lower_bound)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx, dk: Tensor, df: Tensor):
        x, lower_bound, k = ctx.saved_tensors
        through_k = (df - dk) * k
        dlower_bound = through_k.sum_to_size(lower_bound.shape) / (1 - lower_bound) if ctx.needs_input_grad[1] else None
        return through_k * x.sigmoid(), dlower_bound
