"""The public HGRN2 recurrence: equation, shapes, checks, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, Run, resolve
from ..flash_linear_attention import run_hgrn2, why_not_attention
from ..gated_linear_attention.op import check_qkv, why_not_wide
from ..pointwise import ACTIVATIONS
from ..recurrence import Form, Walk, finish, run_recurrence
from ..validation import check_lower_bound, check_walk
from .chunked import chunked
from .reference import reference


def _in_full_precision(form: Form) -> Run:
    def run(
        q: Tensor,
        x: Tensor,
        v: Tensor,
        gamma: Tensor,
        scale: float,
        q_activation: str,
        walk: Walk,
    ) -> tuple[Tensor, Tensor]:
        def activated(q: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            return form(ACTIVATIONS[q_activation](q), *rest)

        y, state = run_recurrence(activated, (q, x, v), (gamma,), walk)
        return (y if scale == 1 else scale * y).to(v.dtype), state

    return run


def _on_triton(
    q: Tensor,
    x: Tensor,
    v: Tensor,
    gamma: Tensor,
    scale: float,
    q_activation: str,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    from ..gated_linear_attention.triton_op import attend

    gamma = gamma.to(torch.promote_types(gamma.dtype, torch.float32))
    if gamma.shape != q.shape[2:]:
        gamma = gamma.expand(q.shape[2:])
    return attend(q, v, walk, scale=scale, logits=x, lower_bound=gamma, activation=q_activation)


BACKENDS = (
    Backend("triton", _on_triton, why_not_wide, lambda q, k, v: q.is_cuda),
    Backend("torch", _in_full_precision(chunked)),
    Backend("reference", _in_full_precision(reference)),
    Backend("fla", run_hgrn2, why_not_attention, lambda q, k, v: False),
)


def hgrn2(
    q: Tensor,
    x: Tensor,
    v: Tensor,
    lower_bound: Tensor | float = 0.0,
    *,
    scale: float = 1.0,
    q_activation: str = "none",
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    direction: str = "causal",
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`f_t = gamma + (1-gamma) sigmoid(x_t)`, `S_t = Diag(f_t) S_{t-1} + (1-f_t) v_t^T`, `y_t = scale q_t S_t`.

    The recurrence of HGRN2 (arXiv:2404.07904, section 3) from the raw gate logits x and the lower bound gamma. Exact
    for every logit; cost as `gated_linear_attention`.

    Args:
        q: [B,T,H,K].
        x: [B,T,H,K], logits; +inf leaves the state as it is.
        v: [B,T,H,V].
        lower_bound: gamma in [0, 1), a number or a tensor that broadcasts to [H,K].
        scale: factor on y.
        q_activation: none | silu | sigmoid, applied to q first.
        initial_state: [B,H,K,V]; None is zero.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1); states are [N,H,K,V].
        direction: causal | reverse | both. Both sums the two; its states are [2,B,H,K,V].
        in_place: write the final state into initial_state (fp32), under torch.no_grad(), and return that.
        backend: see `kernels.dispatch`.

    Returns:
        y: [B,T,H,V] in v's dtype, and the final state in fp32 (fp64 in, fp64 kept). Gradients reach every input, the
        lower bound included, also from the final state.

    Raises ValueError for inconsistent shapes and for a backend that can't run."""
    _, _, H, K, V = check_qkv(q, x, v, k_name="x")
    gamma = _lower_bound(lower_bound, q, (H, K))
    walk = check_walk(q, initial_state, "[B,H,K,V]", (H, K, V), cu_seqlens, direction, in_place)
    if q_activation not in ACTIVATIONS:
        raise ValueError(f"unknown q_activation {q_activation!r}; known: {', '.join(ACTIVATIONS)}")
    chosen = resolve("hgrn2", BACKENDS, backend, q=q, k=x, v=v)
    y, state = chosen.run(q, x, v, gamma, scale, q_activation, walk)
    return finish(y, state, walk)


def _lower_bound(lower_bound: Tensor | float, q: Tensor, shape: tuple[int, int]) -> Tensor:
    if not isinstance(lower_bound, Tensor):
        check_lower_bound(lower_bound)
        dtype = torch.promote_types(q.dtype, torch.float32)
        return torch.full(shape, lower_bound, dtype=dtype, device=q.device)
    if lower_bound.ndim > 2 or any(n not in (1, m) for n, m in zip(lower_bound.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"lower_bound must broadcast to [H,K]={shape}, got {tuple(lower_bound.shape)}")
    return lower_bound
