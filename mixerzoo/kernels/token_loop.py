"""The loop over tokens: the specification of every recurrent op, and what runs a recurrence that has no op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .packing import documents
from .recurrence import Leaf, State, Walk, each, run_recurrence
from .validation import check_direction, number_of_sequences

Step = Callable[..., tuple[Tensor, State]]


def token_loop(
    step: Step,
    inputs: tuple[Tensor, ...],
    initial_state: State,
    *,
    parameters: tuple[Tensor, ...] = (),
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    direction: str = "causal",
) -> tuple[Tensor, State]:
    """Runs `y_t, state_t = step(*inputs_t, *parameters, state_{t-1})`, one token of every sequence after the other.

    Any recurrence can be written so, nonlinear ones included. It costs a few torch operations a token; autograd keeps
    every state. Arithmetic is in fp32 at least and out of autocast's reach.

    Args:
        step: from inputs [B,...] and a state to y_t [B,...] and the next state; it knows neither time nor padding.
        inputs: [B,T,...] each.
        initial_state: a tensor or a NamedTuple of tensors, [B,...] each ([N,...] for packed documents).
        parameters: tensors without batch and time that step needs, such as recurrent weights.
        valid: bool [B,T], False = padding, which leaves the state as it is and comes out as zero.
        cu_seqlens: [N+1] integers, N documents packed into one row (B=1), each from its own initial state.
        direction: causal | reverse | both. Both sums the two; its states have a leading axis of 2.

    Returns:
        y: [B,T,...] in the first input's dtype, and the final state in fp32 (fp64 in, fp64 kept).

    Raises ValueError for a wrong direction or wrong cu_seqlens."""
    check_direction(direction)
    count = number_of_sequences(inputs[0], cu_seqlens)
    walk = Walk(initial_state, Leaf("", ()), count, cu_seqlens, valid, direction, in_place=False)

    n = len(inputs)

    def form(*arguments: Any) -> tuple[Tensor, State]:
        xs, valid, fixed, (state, cu_seqlens) = arguments[:n], arguments[n], arguments[n + 1 : -2], arguments[-2:]
        return causal_loop(lambda *now: step(*now[:-1], *fixed, now[-1]), xs, state, cu_seqlens, valid)

    return run_recurrence(form, (*inputs, valid), parameters, walk, dtype=inputs[0].dtype)


def causal_loop(
    step: Step,
    inputs: tuple[Tensor, ...],
    initial_state: State,
    cu_seqlens: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Runs `y_t, state_t = step(*inputs_t, state_{t-1})` causally, in the inputs' own precision: see `token_loop`."""
    if cu_seqlens is not None:
        return _packed_loop(step, inputs, initial_state, cu_seqlens)
    if valid is not None:
        inputs = tuple(x.masked_fill(~_beside(valid, x), 0) for x in inputs)
    state, outputs = initial_state, []
    for t in range(inputs[0].shape[1]):
        y_t, after = step(*(x[:, t] for x in inputs), state)
        if valid is not None:
            token = valid[:, t]
            y_t = torch.where(_beside(token, y_t), y_t, 0)
            after = each(lambda new, old, token=token: torch.where(_beside(token, new), new, old), after, state)
        outputs.append(y_t)
        state = after
    return torch.stack(outputs, 1), state


def _packed_loop(
    step: Step, inputs: tuple[Tensor, ...], initial_state: State, cu_seqlens: Tensor
) -> tuple[Tensor, State]:
    """Starts anew where a document opens; lengths stay values, so that the graph is the same for all of them."""
    tokens = documents(cu_seqlens, inputs[0].shape[1])
    outputs, states = [], []
    state = each(lambda leaf: leaf[:1], initial_state)
    for t in range(inputs[0].shape[1]):
        opens, document = tokens.start[t] == t, tokens.document[t : t + 1]
        state = each(lambda old, start, i=document, o=opens: torch.where(o, start[i], old), state, initial_state)
        y_t, state = step(*(x[:, t] for x in inputs), state)
        outputs.append(y_t)
        states.append(state)
    every = each(lambda *leaves: torch.cat(leaves), *states)  # [T,...]
    final = each(
        lambda after, start: torch.where(_beside(tokens.nonempty, start), after[tokens.last], start),
        every,
        initial_state,
    )
    return torch.stack(outputs, 1), final


def _beside(flags: Tensor, x: Tensor) -> Tensor:
    """Gives flags [B] or [B,T] as many axes as x has, to choose from x with."""
    return flags.view(*flags.shape, *[1] * (x.ndim - flags.ndim))
