"""The public gated scan: equation, shapes, checks, choice of backend."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Backend, Run, resolve
from ..flash_linear_attention import run_gated_scan, why_not_scan
from ..launch import why_not_triton
from ..recurrence import Form, Leaf, Walk, finish, leave_out, run_recurrence
from ..validation import check_shape, check_walk
from .chunked import chunked
from .reference import reference


def _in_full_precision(form: Form) -> Run:
    def run(x: Tensor, log_f: Tensor, theta: Tensor | None, walk: Walk) -> tuple[Tensor, Tensor]:
        inputs, parameters = ((x, log_f), (None,)) if theta is None else ((x, log_f, theta.expand(x.shape)), ())
        return run_recurrence(form, inputs, parameters, walk, dtype=x.dtype)

    return run


def _on_triton(x: Tensor, log_f: Tensor, theta: Tensor | None, walk: Walk) -> tuple[Tensor, Tensor]:
    from .triton_op import scan

    return scan(x, log_f, theta, walk)


BACKENDS = (
    Backend("triton", _on_triton, lambda x: why_not_triton(x), lambda x: x.is_cuda),
    Backend("torch", _in_full_precision(chunked)),
    Backend("reference", _in_full_precision(reference)),
    Backend("fla", run_gated_scan, why_not_scan, lambda x: False),
)


def gated_scan(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    direction: str = "causal",
    in_place: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes `h_t = f_t e^{i theta} h_{t-1} + x_t`, elementwise; without theta the real `h_t = f_t h_{t-1} + x_t`.

    The recurrence of HGRN (arXiv:2311.04823, section 3.2) with `x_t = (1 - f_t) c_t`. O(T D) time and memory.

    Args:
        x: [B,T,D], complex exactly when theta is given.
        log_f: [B,T,D], natural logarithms <= 0; -inf forgets everything.
        theta: [D] or [B,T,D], radians a step.
        initial_state: [B,D]; None is zero.
        valid: bool [B,T], False = padding, which leaves the state as it is and comes out as zero.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1); states are [N,D].
        direction: causal | reverse | both. Both sums the two; its states are [2,B,D].
        in_place: write the final state into initial_state (fp32), under torch.no_grad(), and return that.
        backend: see `kernels.dispatch`.

    Returns:
        h: [B,T,D] in x's dtype, and the final state in fp32 (fp64 in, fp64 kept; complex likewise). Gradients reach
        every input, also from the final state.

    Raises ValueError for inconsistent shapes and for a backend that can't run."""
    B, T, D = _dimensions(x)
    check_shape("log_f", log_f, "[B,T,D]", (B, T, D))
    if (theta is not None) != x.is_complex():
        raise ValueError(
            f"x must be complex exactly when theta is given, got {x.dtype} {'without' if theta is None else 'with'} it;"
            " remedy: torch.view_as_complex, or drop theta"
        )
    if theta is not None and tuple(theta.shape) not in ((D,), (B, T, D)):
        raise ValueError(f"theta must be [D]={(D,)} or [B,T,D]={(B, T, D)}, got {tuple(theta.shape)}")
    walk = check_walk(
        x,
        initial_state,
        Leaf("D", (D,)),
        cu_seqlens=cu_seqlens,
        valid=valid,
        direction=direction,
        in_place=in_place,
    )
    chosen = resolve("gated_scan", BACKENDS, backend, x=x)
    x, log_f = leave_out(valid, (x, log_f), (0.0, 0.0))
    if theta is not None:
        (theta,) = leave_out(valid, (theta if valid is None else theta.expand(x.shape),), (0.0,))
    h, state = chosen.run(x, log_f, theta, walk)
    return finish(h, state, walk)


def _dimensions(x: Tensor) -> tuple[int, int, int]:
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"x must be [B,T,D] with every size at least 1, got {tuple(x.shape)}")
    B, T, D = x.shape
    return B, T, D
