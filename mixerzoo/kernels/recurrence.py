"""Every recurrent op shares this: a state of any shape, full precision inside, three directions from one causal form.

A state is a tensor or a NamedTuple of tensors, batch first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("causal", "reverse", "both")

State = Any  # Tensor | NamedTuple of tensors
Form = Callable[..., tuple[Tensor, State]]


@dataclass(frozen=True)
class Leaf:
    """Describes one tensor of a state: its letters ("H,K,V") and shape for one sequence, and its value at the start."""

    layout: str
    shape: tuple[int, ...]
    start: float = 0.0


class Walk(NamedTuple):
    """Says how an op goes through time.

    initial_state: None starts at the leaves' own values. leaves: a Leaf, or a NamedTuple of them, as the state is.
    sequences: how many, rows or packed documents. cu_seqlens: [N+1], None = not packed. valid: [B,T] bool, False =
    padding, None = no padding. direction: causal | reverse | both. in_place: write the final state over the initial.
    """

    initial_state: State | None
    leaves: Any
    sequences: int
    cu_seqlens: Tensor | None
    valid: Tensor | None
    direction: str
    in_place: bool

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Returns the shape of a state that is one tensor: [B,...], for both directions [2,B,...]."""
        return self.shape(self.leaves)

    def shape(self, leaf: Leaf) -> tuple[int, ...]:
        """Returns the shape of one of the state's tensors: [B,...], for both directions [2,B,...]."""
        shape = (self.sequences, *leaf.shape)
        return (2, *shape) if self.direction == "both" else shape


def each(function: Callable[..., Any], state: State, *others: State) -> Any:
    """Applies a function to a state that is one tensor, or to every field of a NamedTuple."""
    if isinstance(state, tuple):
        return type(state)(*(function(*leaves) for leaves in zip(state, *others, strict=True)))
    return function(state, *others)


def leave_out(valid: Tensor | None, inputs: tuple[Tensor, ...], neutral: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Puts an op's neutral element where `valid` [B,T] is False: the inputs [B,T,...] that leave a state as it is."""
    if valid is None:
        return inputs
    return tuple(
        x.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - 2)), value)
        for x, value in zip(inputs, neutral, strict=True)
    )


def finish(y: Tensor, final_state: State, walk: Walk) -> tuple[Tensor, State]:
    """Makes an op's result of a backend's: y is zero at padding, and a state that was asked for is written in place.

    A backend that writes in place has returned the initial state itself.
    """
    (y,) = leave_out(walk.valid, (y,), (0.0,))
    if walk.initial_state is None or not walk.in_place:
        return y, final_state
    if final_state is not walk.initial_state:
        each(lambda old, new: old.copy_(new), walk.initial_state, final_state)
    return y, walk.initial_state


def run_recurrence(
    form: Form,
    inputs: tuple[Tensor | None, ...],
    parameters: tuple[Tensor | None, ...],
    walk: Walk,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, State]:
    """Runs `form(*inputs, *parameters, initial_state, cu_seqlens)`, a causal form, in a direction and fp32 at least.

    Time is axis 1 of inputs and y; parameters have no time. `reverse` starts from the last token of every sequence.
    `both` sums the two outputs, so that token t counts twice (as the HGRN authors do), and its states carry a leading
    axis of 2: causal, reverse. One fp64 tensor makes everything fp64; autocast is off inside.

    Args:
        scale: factor on y.
        dtype: of the y that is returned; None keeps that of the arithmetic.
    """
    initial_state = walk.initial_state
    if initial_state is None:
        initial_state = each(lambda leaf: _filled(walk.shape(leaf), leaf.start, _first(inputs)), walk.leaves)
    leaves = initial_state if isinstance(initial_state, tuple) else (initial_state,)
    tensors = [tensor for tensor in (*inputs, *parameters, *leaves) if tensor is not None]
    exact = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    real, complex = (torch.float64, torch.complex128) if exact else (torch.float32, torch.complex64)

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor.to(complex if tensor.is_complex() else real)

    with without_autocast(_first(inputs).device):
        y, state = directed(
            form,
            walk.direction,
            tuple(map(cast, inputs)),
            tuple(map(cast, parameters)),
            each(cast, initial_state),
            walk.cu_seqlens,
        )
        y = y if scale == 1 else scale * y
        return y if dtype is None else y.to(dtype), state


def directed(
    form: Form,
    direction: str,
    inputs: tuple[Tensor | None, ...],
    parameters: tuple[Tensor | None, ...],
    initial_state: State,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, State]:
    """Runs a causal form in a direction: see `run_recurrence`."""
    if direction == "causal":
        return form(*inputs, *parameters, initial_state, cu_seqlens)
    if direction == "both":
        start_ahead, start_back = (each(lambda leaf, way=way: leaf[way], initial_state) for way in (0, 1))
        ahead, state_ahead = directed(form, "causal", inputs, parameters, start_ahead, cu_seqlens)
        back, state_back = directed(form, "reverse", inputs, parameters, start_back, cu_seqlens)
        return ahead + back, each(lambda *leaves: torch.stack(leaves), state_ahead, state_back)
    inputs = tuple(None if x is None else x.flip(1) for x in inputs)
    if cu_seqlens is None:
        y, state = form(*inputs, *parameters, initial_state, None)
        return y.flip(1), state
    initial_state, cu_seqlens = each(_last_first, initial_state), cu_seqlens[-1] - cu_seqlens.flip(0)
    y, state = form(*inputs, *parameters, initial_state, cu_seqlens)
    return y.flip(1), each(_last_first, state)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off: casting alone is not enough, as it chooses low precision for a matrix product."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _last_first(leaf: Tensor) -> Tensor:
    return leaf.flip(0)


def _first(inputs: tuple[Tensor | None, ...]) -> Tensor:
    return next(x for x in inputs if x is not None)


def _filled(shape: tuple[int, ...], value: float, like: Tensor) -> Tensor:
    if like.is_complex():  # as pairs of reals: the ONNX exporter knows no complex new_zeros
        return torch.view_as_complex(like.real.new_full((*shape, 2), value))
    return like.new_full(shape, value)
