"""What every recurrent op has in common: its precision, and three directions from one causal form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("causal", "reverse", "both")

Form = Callable[..., tuple[Tensor, Tensor]]


class Walk(NamedTuple):
    """How an op goes through time: from which state (None: zeros of that shape), over which sequences, which way, and
    whether the final state takes the initial one's place in memory."""

    initial_state: Tensor | None
    state_shape: tuple[int, ...]
    cu_seqlens: Tensor | None
    direction: str
    in_place: bool


def finish(y: Tensor, final_state: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
    """What an op returns. A backend that writes in place has returned the initial state itself."""
    if walk.initial_state is None or not walk.in_place:
        return y, final_state
    if final_state is not walk.initial_state:
        walk.initial_state.copy_(final_state)
    return y, walk.initial_state


def run_recurrence(
    form: Form, inputs: tuple[Tensor, ...], parameters: tuple[Tensor | None, ...], walk: Walk
) -> tuple[Tensor, Tensor]:
    """`form(*inputs, *parameters, initial_state, cu_seqlens) -> (y, final_state)` in fp32 at least, in a direction.

    Time is axis 1 of inputs and y; parameters have no time. `reverse` starts from the last token of every sequence.
    `both` sums the two outputs, so that token t counts twice (as the HGRN authors do), and its states carry a leading
    axis of 2: causal, reverse. One fp64 tensor makes everything fp64; autocast is off inside.
    """
    initial_state = walk.initial_state
    if initial_state is None:
        initial_state = _zeros(walk.state_shape, inputs[0])
    tensors = [tensor for tensor in (*inputs, *parameters, initial_state) if tensor is not None]
    exact = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    real, complex = (torch.float64, torch.complex128) if exact else (torch.float32, torch.complex64)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(complex if tensor.is_complex() else real)

    inputs = tuple(cast(tensor) for tensor in inputs)
    parameters = tuple(None if tensor is None else cast(tensor) for tensor in parameters)
    with without_autocast(initial_state.device):
        return directed(form, walk.direction, inputs, parameters, cast(initial_state), walk.cu_seqlens)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if like.is_complex():  # as pairs of reals: the ONNX exporter knows no complex new_zeros
        return torch.view_as_complex(like.real.new_zeros((*shape, 2)))
    return like.new_zeros(shape)


def directed(
    form: Form,
    direction: str,
    inputs: tuple[Tensor, ...],
    parameters: tuple[Tensor | None, ...],
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if direction == "causal":
        return form(*inputs, *parameters, initial_state, cu_seqlens)
    if direction == "both":
        ahead, state_ahead = directed(form, "causal", inputs, parameters, initial_state[0], cu_seqlens)
        back, state_back = directed(form, "reverse", inputs, parameters, initial_state[1], cu_seqlens)
        return ahead + back, torch.stack([state_ahead, state_back])
    inputs = tuple(x.flip(1) for x in inputs)
    if cu_seqlens is None:
        y, state = form(*inputs, *parameters, initial_state, None)
        return y.flip(1), state
    y, state = form(*inputs, *parameters, initial_state.flip(0), cu_seqlens[-1] - cu_seqlens.flip(0))
    return y.flip(1), state.flip(0)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    # Casting alone would not do: autocast chooses low precision for a matrix product whatever its inputs.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
