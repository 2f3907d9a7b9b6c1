"""The gated scan as a tree of torch operations: O(T D) work in 2 log2(T) passes, no loop over tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import documents
from .exported import exported


def chunked(
    x: Tensor, log_f: Tensor, theta: Tensor | None, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_exporting() and cu_seqlens is None:
        return exported(x, log_f, theta, initial_state)
    a = log_f.exp() if theta is None else torch.polar(log_f.exp(), theta)
    return scan(a, x, initial_state, cu_seqlens)


def scan(a: Tensor, x: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`h_t = a_t h_{t-1} + x_t` along axis 1 of `x: [B,T,...]`; `a` broadcasts against x. Returns h and the last h."""
    if cu_seqlens is None:
        h = _Scan.apply(a, x, initial_state)
        return h, h[:, -1]
    tokens = documents(cu_seqlens, x.shape[1])
    opens = torch.arange(x.shape[1], device=x.device) == tokens.start
    opens = opens.view(1, -1, *[1] * (x.ndim - 2))
    x = x + torch.where(opens, a * initial_state[tokens.document], 0)
    h = _Scan.apply(torch.where(opens, 0, a), x, torch.zeros_like(x[:, 0]))
    nonempty = tokens.nonempty.view(-1, *[1] * (x.ndim - 2))
    return h, torch.where(nonempty, h[0, tokens.last], initial_state)


class _Scan(torch.autograd.Function):
    """Adjoint: `dx_t = dh_t + conj(a_{t+1}) dx_{t+1}` (the same scan, reversed), `da_t = conj(h_{t-1}) dx_t`."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, initial_state: Tensor) -> Tensor:
        x = torch.cat([torch.addcmul(x[:, :1], a[:, :1], initial_state[:, None]), x[:, 1:]], 1)
        return _tree(a, x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        a, _, initial_state = inputs
        ctx.save_for_backward(a, output, initial_state)

    @staticmethod
    def backward(ctx, dh: Tensor):
        a, h, initial_state = ctx.saved_tensors
        a = a.conj().resolve_conj()
        next_a = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
        dx = _tree(next_a.flip(1), dh.flip(1)).flip(1)
        previous_h = torch.cat([initial_state[:, None], h[:, :-1]], 1)
        da = (dx * previous_h.conj()).sum_to_size(a.shape)
        return da, dx, a[:, 0] * dx[:, 0]


def _tree(a: Tensor, x: Tensor) -> Tensor:
    """Two steps are one with gate `a_2 a_1` and input `a_2 x_1 + x_2`: solve the odd positions, then the even."""
    length = x.shape[1]
    if length == 1:
        return x
    pairs = length // 2 * 2
    a_even, a_odd, x_even, x_odd = a[:, 0:pairs:2], a[:, 1:pairs:2], x[:, 0:pairs:2], x[:, 1:pairs:2]
    h_odd = _tree(a_odd * a_even, torch.addcmul(x_odd, a_odd, x_even))
    h = torch.empty_like(x)
    h[:, 1::2] = h_odd
    h[:, 0] = x[:, 0]
    h[:, 2::2] = torch.addcmul(x[:, 2::2], a[:, 2::2], h_odd[:, : (length - 1) // 2])
    return h
