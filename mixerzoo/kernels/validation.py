"""Checks of shapes that every op shares. An error says what is wrong, what came, what is allowed and the remedy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .recurrence import DIRECTIONS, State, Walk


def check_shape(name: str, tensor: Tensor, layout: str, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must be {layout}={expected}, got {tuple(tensor.shape)}")


def check_lower_bound(lower_bound: float) -> None:
    if not 0 <= lower_bound < 1:
        raise ValueError(f"lower_bound must lie in [0, 1), got {lower_bound}")


def check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")


def number_of_sequences(x: Tensor, cu_seqlens: Tensor | None) -> int:
    """Returns B, or the number of documents packed into the one row. Checks `cu_seqlens`."""
    if cu_seqlens is None:
        return x.shape[0]
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"cu_seqlens must be integers [N+1] for N documents, got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs one packed row, B=1, got B={x.shape[0]}; remedy: flatten the batch into it")
    # Reading values waits for a GPU and can't be traced, so they are checked on the CPU alone.
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != x.shape[1] or bounds != sorted(bounds):
            raise ValueError(f"cu_seqlens must rise from 0 to T={x.shape[1]}, got {bounds}")
    return cu_seqlens.numel() - 1


def check_walk(
    x: Tensor,
    initial_state: State | None,
    leaves: Any,
    *,
    cu_seqlens: Tensor | None,
    valid: Tensor | None,
    direction: str,
    in_place: bool,
) -> Walk:
    """Checks everything that is not an op's own against x [B,T,...] and the `Leaf`, or NamedTuple of them, of a state.

    `direction="both"` has a state each way, on axis 0."""
    check_direction(direction)
    walk = Walk(initial_state, leaves, number_of_sequences(x, cu_seqlens), cu_seqlens, valid, direction, in_place)
    if valid is not None:
        if cu_seqlens is not None:
            raise ValueError("valid and cu_seqlens exclude each other; remedy: leave padding out of the packed row")
        if valid.dtype != torch.bool or valid.shape != x.shape[:2]:
            raise ValueError(f"valid must be bool [B,T]={tuple(x.shape[:2])}, got {valid.dtype} {tuple(valid.shape)}")
    if initial_state is not None:
        _check_state(initial_state, walk)
    if in_place:
        _check_in_place(x, initial_state)
    return walk


def _check_state(state: State, walk: Walk) -> None:
    leaves = walk.leaves
    if isinstance(leaves, tuple) and not (isinstance(state, tuple) and len(state) == len(leaves)):
        fields = getattr(leaves, "_fields", len(leaves))
        raise ValueError(f"initial_state must be a {type(leaves).__name__} of {fields}, got {type(state).__name__}")
    named = zip(getattr(leaves, "_fields", ()), state, leaves, strict=True) if isinstance(leaves, tuple) else ()
    for name, tensor, leaf in [(f".{field}", *rest) for field, *rest in named] or [("", state, leaves)]:
        batch = "[2,B," if walk.direction == "both" else "[B,"
        check_shape(f"initial_state{name}", tensor, f"{batch}{leaf.layout}]", walk.shape(leaf))


def _check_in_place(x: Tensor, initial_state: State | None) -> None:
    if initial_state is None:
        raise ValueError("in_place=True needs an initial_state to write the final one into, got None")
    for leaf in initial_state if isinstance(initial_state, tuple) else (initial_state,):
        needed = torch.promote_types(torch.promote_types(x.dtype, leaf.dtype), torch.float32)
        if leaf.dtype != needed:
            raise ValueError(f"in_place=True needs an initial_state in {needed}, got {leaf.dtype}")
    if torch.is_grad_enabled():
        raise ValueError("in_place=True overwrites what gradients need; remedy: torch.no_grad(), or in_place=False")
