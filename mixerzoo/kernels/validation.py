"""Shape checks that every op shares. Each error says what, got, allowed and, where it isn't obvious, the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from .recurrence import DIRECTIONS, Walk


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
    """B, or the number of documents packed into the one row. Checks `cu_seqlens`."""
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
    initial_state: Tensor | None,
    layout: str,
    shape: tuple[int, ...],
    cu_seqlens: Tensor | None,
    direction: str,
    in_place: bool,
) -> Walk:
    """Checks what is not an op's own; `shape` is that of one sequence's state, `layout` of all of them, "[B,...]".

    `direction="both"` has a state each way, on axis 0."""
    check_direction(direction)
    shape = (number_of_sequences(x, cu_seqlens), *shape)
    if direction == "both":
        layout, shape = f"[2,{layout[1:]}", (2, *shape)
    if initial_state is not None:
        check_shape("initial_state", initial_state, layout, shape)
    if in_place:
        _check_in_place(x, initial_state)
    return Walk(initial_state, shape, cu_seqlens, direction, in_place)


def _check_in_place(x: Tensor, initial_state: Tensor | None) -> None:
    if initial_state is None:
        raise ValueError("in_place=True needs an initial_state to write the final one into, got None")
    needed = torch.promote_types(torch.promote_types(x.dtype, initial_state.dtype), torch.float32)
    if initial_state.dtype != needed:
        raise ValueError(f"in_place=True needs an initial_state in {needed}, got {initial_state.dtype}")
    if torch.is_grad_enabled():
        raise ValueError("in_place=True overwrites what gradients need; remedy: torch.no_grad(), or in_place=False")
