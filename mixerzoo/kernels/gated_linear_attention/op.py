"""The public gated linear attention: equation, shapes, checks, choice of backend."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Backend, Run, resolve
from ..flash_linear_attention import run_gated_linear_attention, why_not_attention
from ..launch import why_not_triton
from ..recurrence import Form, Walk, finish, run_recurrence
from ..validation import check_shape, check_walk
from .chunked import chunked
from .reference import reference


def _in_full_precision(form: Form) -> Run:
    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor,
        scale: float,
        walk: Walk,
    ) -> tuple[Tensor, Tensor]:
        y, state = run_recurrence(form, (q, k, v, log_f), (), walk)
        return (y if scale == 1 else scale * y).to(v.dtype), state

    return run


def _on_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    scale: float,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    from .triton_op import attend

    return attend(q, v, walk, scale=scale, k=k, log_f=log_f)


def why_not_wide(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The reason why our kernels can't take these widths or this device."""
    if q.shape[-1] > 256 or v.shape[-1] > 256:
        return f"K and V up to 256, got {q.shape[-1]} and {v.shape[-1]}"
    return why_not_triton(q)


BACKENDS = (
    Backend("triton", _on_triton, why_not_wide, lambda q, k, v: q.is_cuda),
    Backend("torch", _in_full_precision(chunked)),
    Backend("reference", _in_full_precision(reference)),
    Backend("fla", run_gated_linear_attention, why_not_attention, lambda q, k, v: False),
)


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    direction: str = "causal",
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`S_t = Diag(f_t) S_{t-1} + k_t v_t^T`, `y_t = scale q_t S_t`.

    Gated linear attention (arXiv:2312.06635, eq. 3); with one gate a head, retention (arXiv:2307.08621, eq. 6). Exact
    for every decay. O(T (C (K + V) + K V)) time a head with C = 64, O(T) memory.

    Args:
        q, k: [B,T,H,K].
        v: [B,T,H,V].
        log_f: [B,T,H,K], or [B,T,H,1] which runs faster; natural logarithms <= 0; -inf forgets everything.
        scale: factor on y.
        initial_state: [B,H,K,V]; None is zero.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1); states are [N,H,K,V].
        direction: causal | reverse | both. Both sums the two; its states are [2,B,H,K,V].
        in_place: write the final state into initial_state (fp32), under torch.no_grad(), and return that.
        backend: see `kernels.dispatch`.

    Returns:
        y: [B,T,H,V] in v's dtype, and the final state in fp32 (fp64 in, fp64 kept). Gradients reach every input, also
        from the final state.

    Raises ValueError for inconsistent shapes and for a backend that can't run."""
    B, T, H, K, V = check_qkv(q, k, v)
    if tuple(log_f.shape) not in ((B, T, H, K), (B, T, H, 1)):
        raise ValueError(f"log_f must be [B,T,H,K]={(B, T, H, K)} or [B,T,H,1], got {tuple(log_f.shape)}")
    walk = check_walk(q, initial_state, "[B,H,K,V]", (H, K, V), cu_seqlens, direction, in_place)
    chosen = resolve("gated_linear_attention", BACKENDS, backend, q=q, k=k, v=v)
    y, state = chosen.run(q, k, v, log_f, scale, walk)
    return finish(y, state, walk)


def check_qkv(q: Tensor, k: Tensor, v: Tensor, k_name: str = "k") -> tuple[int, int, int, int, int]:
    """(B, T, H, K, V) of consistent q, k: [B,T,H,K] and v: [B,T,H,V]."""
    if q.ndim != 4 or v.ndim != 4 or 0 in q.shape or 0 in v.shape:
        raise ValueError(
            f"q and v must be [B,T,H,K] and [B,T,H,V], every size at least 1, got {tuple(q.shape)} and {tuple(v.shape)}"
        )
    B, T, H, K = q.shape
    V = v.shape[-1]
    check_shape(k_name, k, "[B,T,H,K]", (B, T, H, K))
    check_shape("v", v, "[B,T,H,V]", (B, T, H, V))
    return B, T, H, K, V
