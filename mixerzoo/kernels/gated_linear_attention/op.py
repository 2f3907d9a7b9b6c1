"""The public gated linear attention: equation, shapes, checks, choice of backend."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Backend, Run, resolve
from ..flash_linear_attention import run_gated_linear_attention, why_not_attention
from ..heads import check_heads, check_qkv, with_equal_heads
from ..launch import why_not_triton
from ..recurrence import Form, Leaf, Walk, finish, leave_out, run_recurrence
from ..validation import check_walk
from .chunked import chunked
from .reference import reference


def _in_full_precision(form: Form) -> Run:
    def run(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, scale: float, walk: Walk) -> tuple[Tensor, Tensor]:
        return run_recurrence(form, (q, k, v, log_f), (), walk, scale=scale, dtype=v.dtype)

    return run


def _on_triton(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, scale: float, walk: Walk) -> tuple[Tensor, Tensor]:
    from .triton_op import attend

    def run(x: tuple[Tensor, ...], walk: Walk) -> tuple[Tensor, Tensor]:
        q, k, v, log_f = x
        return attend(q, v, walk, scale=scale, k=k, log_f=log_f)

    return with_equal_heads(run, (q, k, v, log_f), walk)


def why_not_wide(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Gives the reason why our kernels can't take these widths or this device."""
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
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    direction: str = "causal",
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes `S_t = Diag(f_t) S_{t-1} + k_t v_t^T`, `y_t = scale q_t S_t`.

    Gated linear attention (arXiv:2312.06635, eq. 3); with one gate a head, retention (arXiv:2307.08621, eq. 6). Exact
    for every decay. O(T (C (K + V) + K V)) time a head with C = 64, O(T) memory.

    q, k, v and log_f may have fewer heads than H, each shared by consecutive heads (`heads.py`): H is the most of k, v
    and log_f for the state, and of all four for y.

    Args:
        q, k: [B,T,H,K].
        v: [B,T,H,V].
        log_f: [B,T,H,K], or [B,T,H,1] which runs faster; natural logarithms <= 0; -inf forgets everything.
        scale: factor on y.
        initial_state: [B,H,K,V]; None is zero.
        valid: bool [B,T], False = padding, which leaves the state as it is and comes out as zero.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1); states are [N,H,K,V].
        direction: causal | reverse | both. Both sums the two; its states are [2,B,H,K,V].
        in_place: write the final state into initial_state (fp32), under torch.no_grad(), and return that.
        backend: see `kernels.dispatch`.

    Returns:
        y: [B,T,H,V] in v's dtype, and the final state in fp32 (fp64 in, fp64 kept). Gradients reach every input, also
        from the final state.

    Raises ValueError for inconsistent shapes and for a backend that can't run."""
    B, T, K, V = check_qkv(q, k, v)
    if log_f.ndim != 4 or tuple(log_f.shape[:2]) != (B, T) or log_f.shape[-1] not in (K, 1):
        expected = (*k.shape[:3], K)
        raise ValueError(f"log_f must be [B,T,H,K]={expected} or [B,T,H,1], got {tuple(log_f.shape)}")
    heads = check_heads(q, k, v, log_f=log_f)
    walk = check_walk(
        q,
        initial_state,
        Leaf("H,K,V", (heads, K, V)),
        cu_seqlens=cu_seqlens,
        valid=valid,
        direction=direction,
        in_place=in_place,
    )
    chosen = resolve("gated_linear_attention", BACKENDS, backend, q=q, k=k, v=v)
    q, k, v, log_f = leave_out(valid, (q, k, v, log_f), (0.0, 0.0, 0.0, 0.0))
    y, state = chosen.run(q, k, v, log_f, scale, walk)
    return finish(y, state, walk)
