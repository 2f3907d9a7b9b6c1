"""The public HGRN2 recurrence: equation, shapes, checks, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, Run, resolve
from ..flash_linear_attention import run_hgrn2, why_not_attention
from ..gated_linear_attention.op import why_not_wide
from ..heads import check_heads, check_qkv, shared, with_equal_heads
from ..pointwise import ACTIVATIONS
from ..recurrence import Form, Leaf, Walk, finish, leave_out, run_recurrence
from ..validation import check_lower_bound, check_walk
from .chunked import chunked
from .reference import reference


def _in_full_precision(form: Form) -> Run:
    def run(
        q: Tensor, logits: Tensor, v: Tensor, lower_bound: Tensor, scale: float, q_activation: str, walk: Walk
    ) -> tuple[Tensor, Tensor]:
        def activated(q: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            return form(ACTIVATIONS[q_activation](q), *rest)

        return run_recurrence(activated, (q, logits, v), (lower_bound,), walk, scale=scale, dtype=v.dtype)

    return run


def _on_triton(
    q: Tensor, logits: Tensor, v: Tensor, lower_bound: Tensor, scale: float, q_activation: str, walk: Walk
) -> tuple[Tensor, Tensor]:
    from ..gated_linear_attention.triton_op import attend

    lower_bound = lower_bound.to(torch.promote_types(lower_bound.dtype, torch.float32)).expand(logits.shape[2:])

    def run(x: tuple[Tensor, ...], walk: Walk) -> tuple[Tensor, Tensor]:
        q, logits, v = x
        bound = shared(lower_bound, logits.shape[2], 0)
        return attend(q, v, walk, scale=scale, logits=logits, lower_bound=bound, activation=q_activation)

    return with_equal_heads(run, (q, logits, v), walk)


BACKENDS = (
    Backend("triton", _on_triton, why_not_wide, lambda q, k, v: q.is_cuda),
    Backend("torch", _in_full_precision(chunked)),
    Backend("reference", _in_full_precision(reference)),
    Backend("fla", run_hgrn2, why_not_attention, lambda q, k, v: False),
)


def hgrn2(
    q: Tensor,
    logits: Tensor,
    v: Tensor,
    lower_bound: Tensor | float = 0.0,
    *,
    scale: float = 1.0,
    q_activation: str = "none",
    initial_state: Tensor | None = None,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    direction: str = "causal",
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes `S_t = Diag(f_t) S_{t-1} + (1-f_t) v_t^T`, `y_t = scale q_t S_t` from the raw logits of the gate
    `f_t = lower_bound + (1-lower_bound) sigmoid(logits_t)`.

    The recurrence of HGRN2 (arXiv:2404.07904, section 3), exact for every logit; cost as `gated_linear_attention`,
    whose rule for heads that share a tensor holds too.

    Args:
        q: [B,T,H,K].
        logits: [B,T,H,K]; +inf leaves the state as it is.
        v: [B,T,H,V].
        lower_bound: in [0, 1), a number or a tensor that broadcasts to the [H,K] of logits.
        scale: factor on y.
        q_activation: none | silu | sigmoid, applied to q first.
        initial_state: [B,H,K,V]; None is zero.
        valid: bool [B,T], False = padding, which leaves the state as it is and comes out as zero.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1); states are [N,H,K,V].
        direction: causal | reverse | both. Both sums the two; its states are [2,B,H,K,V].
        in_place: write the final state into initial_state (fp32), under torch.no_grad(), and return that.
        backend: see `kernels.dispatch`.

    Returns:
        y: [B,T,H,V] in v's dtype, and the final state in fp32 (fp64 in, fp64 kept). Gradients reach every input, the
        lower bound included, also from the final state.

    Raises ValueError for inconsistent shapes and for a backend that can't run."""
    _, _, K, V = check_qkv(q, logits, v, k_name="logits")
    lower_bound = _lower_bound(lower_bound, q, (logits.shape[2], K))
    walk = check_walk(
        q,
        initial_state,
        Leaf("H,K,V", (check_heads(q, logits, v), K, V)),
        cu_seqlens=cu_seqlens,
        valid=valid,
        direction=direction,
        in_place=in_place,
    )
    if q_activation not in ACTIVATIONS:
        raise ValueError(f"unknown q_activation {q_activation!r}; known: {', '.join(ACTIVATIONS)}")
    chosen = resolve("hgrn2", BACKENDS, backend, q=q, k=logits, v=v)
    q, logits, v = leave_out(valid, (q, logits, v), (0.0, float("inf"), 0.0))
    y, state = chosen.run(q, logits, v, lower_bound, scale, q_activation, walk)
    return finish(y, state, walk)


def _lower_bound(lower_bound: Tensor | float, q: Tensor, shape: tuple[int, int]) -> Tensor:
    if not isinstance(lower_bound, Tensor):
        check_lower_bound(lower_bound)
        dtype = torch.promote_types(q.dtype, torch.float32)
        return torch.full(shape, lower_bound, dtype=dtype, device=q.device)
    if lower_bound.ndim > 2 or any(n not in (1, m) for n, m in zip(lower_bound.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"lower_bound must broadcast to [H,K]={shape}, got {tuple(lower_bound.shape)}")
    return lower_bound
