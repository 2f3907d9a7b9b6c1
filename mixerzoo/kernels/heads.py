"""Heads that share a tensor, as grouped-query attention's and Mamba-2's do.

    q [B,T,Hq,K]   k [B,T,Hk,K]   v [B,T,Hv,V]   log_f [B,T,Hf,.]

A state has S = max(Hk, Hv, Hf) heads, y has max(Hq, S). A tensor with fewer heads is shared: consecutive heads read the
same one of its own. Grouped-query attention has Hq > Hk = Hv = Hf, Mamba-2 has Hq = Hk < Hv = Hf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from .recurrence import Walk
from .validation import check_shape


def check_qkv(q: Tensor, k: Tensor, v: Tensor, k_name: str = "k") -> tuple[int, int, int, int]:
    """Returns (B, T, K, V) of q, k: [B,T,.,K] and v: [B,T,.,V]; raises ValueError where they are inconsistent."""
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or 0 in q.shape or 0 in k.shape or 0 in v.shape:
        raise ValueError(
            f"q, {k_name} and v must be [B,T,H,K], [B,T,H,K] and [B,T,H,V], every size at least 1, "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    (B, T, _, K), V = q.shape, v.shape[-1]
    check_shape(k_name, k, "[B,T,H,K]", (B, T, k.shape[2], K))
    check_shape("v", v, "[B,T,H,V]", (B, T, v.shape[2], V))
    return B, T, K, V


def check_heads(q: Tensor, k: Tensor, v: Tensor, **gate: Tensor) -> int:
    """Returns the heads S of the state; raises ValueError for heads that do not divide those that share them.

    gate: log_f [B,T,.,.] under its own name, where there is one beside k."""
    named = {"k": k.shape[2], "v": v.shape[2], **{name: x.shape[2] for name, x in gate.items()}}
    states = max(named.values())
    for name, own, sharing in [(n, h, states) for n, h in named.items()] + [("q", q.shape[2], max(q.shape[2], states))]:
        if sharing % own:
            raise ValueError(f"the {own} heads of {name} must divide the {sharing} heads that share them")
    if max(q.shape[2], states) % states:
        raise ValueError(f"the {states} heads of the state must divide the {q.shape[2]} heads of q")
    return states


def shared(x: Tensor, heads: int, axis: int = 2) -> Tensor:
    """Returns x with `heads` heads on `axis`, every one of its own given to as many consecutive heads."""
    own = x.shape[axis]
    return x if own == heads else x.repeat_interleave(heads // own, axis)


def with_equal_heads(
    run: Callable[[tuple[Tensor, ...], Walk], tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...], walk: Walk
) -> tuple[Tensor, Tensor]:
    """Calls a backend that knows no shared heads, with every tensor repeated to the heads of y.

    The first of inputs is q; walk's state is [..,H,K,V]."""
    own = walk.leaves.shape[0]
    heads = max(inputs[0].shape[2], own)
    if all(x.shape[2] == heads for x in inputs):
        return run(inputs, walk)
    state, leaf = walk.initial_state, walk.leaves
    walk = walk._replace(
        initial_state=None if state is None else shared(state, heads, state.ndim - 3),
        leaves=replace(leaf, shape=(heads, *leaf.shape[1:])),
        in_place=False,
    )
    y, state = run(tuple(shared(x, heads) for x in inputs), walk)
    return y, state[..., :: heads // own, :, :]
