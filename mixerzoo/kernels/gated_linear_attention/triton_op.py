"""Gated linear attention and HGRN2 on Triton, as torch sees them: two custom ops and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import tuning
from ..recurrence import Walk
from .triton_plan import Call, plan_call
from .tuning import fastest


def attend(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    gate: Tensor,
    scale: float,
    kind: str,
    activation: str,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    """(y, final state). `kind` says what key and gate are: see `triton_plan.Call`."""
    state, _, cu_seqlens, direction, in_place = walk
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, key, v, gate, state))
    if in_place and state is not None and state.is_contiguous() and _is_decoding(q, cu_seqlens, direction, save):
        return _decode_in_place(q, key, v, gate, state, scale, kind, activation), state
    y, final_state, _ = _forward(q, key, v, gate, state, cu_seqlens, scale, kind, activation, direction, save)
    return y, final_state if direction == "both" else final_state[0]


@torch.library.custom_op("mixerzoo::linear_attention", mutates_args=())
def _forward(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    gate: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    kind: str,
    activation: str,
    direction: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    call = plan_call(q, key, v, gate, cu_seqlens, scale, kind, activation, direction)
    y, final_states, block_states = _outputs(call, save)
    if initial_state is not None:
        initial_state = initial_state.contiguous()

    def run(call: Call) -> None:
        if _is_decoding(q, cu_seqlens, direction, save):
            launches = call.decode(y, final_states, initial_state)
        else:
            launches = call.forward(y, block_states if save else None, final_states, initial_state)
        for launch in launches:
            launch.run()

    run(fastest(call, run) if tuning() else call)
    return y, final_states, block_states


@_forward.register_fake
def _(q, key, v, gate, initial_state, cu_seqlens, scale, kind, activation, direction, save):
    return _outputs(plan_call(q, key, v, gate, cu_seqlens, scale, kind, activation, direction), save)


def _is_decoding(q: Tensor, cu_seqlens: Tensor | None, direction: str, save: bool) -> bool:
    return q.shape[1] == 1 and cu_seqlens is None and direction != "both" and not save


def _outputs(call: Call, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    y = call.v.new_empty(call.v.shape)
    final_states = call.q.new_empty(call.state_shape, dtype=call.precision)
    return y, final_states, call.new_block_states() if save else call.q.new_empty(0)


@torch.library.custom_op("mixerzoo::linear_attention_decode", mutates_args=("state",))
def _decode_in_place(
    q: Tensor, key: Tensor, v: Tensor, gate: Tensor, state: Tensor, scale: float, kind: str, activation: str
) -> Tensor:
    """One token: y; `state` [B,H,K,V] becomes the final one."""
    y = v.new_empty(v.shape)
    for launch in plan_call(q, key, v, gate, None, scale, kind, activation, "causal").decode(y, state, state):
        launch.run()
    return y


@_decode_in_place.register_fake
def _(q, key, v, gate, state, scale, kind, activation):
    return v.new_empty(v.shape)


@torch.library.custom_op("mixerzoo::linear_attention_backward", mutates_args=())
def _backward(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    gate: Tensor,
    cu_seqlens: Tensor | None,
    block_states: Tensor,
    dy: Tensor,
    dfinal_state: Tensor | None,
    scale: float,
    kind: str,
    activation: str,
    direction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dkey, dv, dgate, dinitial_state)."""
    call = plan_call(q, key, v, gate, cu_seqlens, scale, kind, activation, direction)
    gradients = {
        "dq": q.new_empty(q.shape),
        "dkey": key.new_empty(key.shape),
        "dv": v.new_empty(v.shape),
        "dgate": gate.new_empty((call.blocks if kind == "logits" else 1, *gate.shape), dtype=call.precision),
    }
    dinitial_state = q.new_empty(call.state_shape, dtype=call.precision)
    dfinal_state = None if dfinal_state is None else dfinal_state.contiguous()
    for launch in call.backward(dy.contiguous(), block_states, dfinal_state, dinitial_state, gradients):
        launch.run()
    dgate = gradients["dgate"].sum(0) if kind == "logits" else gradients["dgate"][0]
    return gradients["dq"], gradients["dkey"], gradients["dv"], dgate.to(gate.dtype), dinitial_state


@_backward.register_fake
def _(q, key, v, gate, cu_seqlens, block_states, dy, dfinal_state, scale, kind, activation, direction):
    call = plan_call(q, key, v, gate, cu_seqlens, scale, kind, activation, direction)
    dinitial_state = q.new_empty(call.state_shape, dtype=call.precision)
    return (
        q.new_empty(q.shape),
        key.new_empty(key.shape),
        v.new_empty(v.shape),
        gate.new_empty(gate.shape),
        dinitial_state,
    )


def _setup(ctx, inputs, output) -> None:
    q, key, v, gate, initial_state, cu_seqlens, *ctx.options, _ = inputs
    ctx.save_for_backward(q, key, v, gate, cu_seqlens, output[2])
    ctx.state = None if initial_state is None else (initial_state.shape, initial_state.dtype)
    ctx.set_materialize_grads(False)


def _gradient(ctx, dy, dfinal_state, _):
    q, key, v, gate, cu_seqlens, block_states = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(v)
    *gradients, dinitial_state = _backward(q, key, v, gate, cu_seqlens, block_states, dy, dfinal_state, *ctx.options)
    if ctx.state is None:
        dinitial_state = None
    else:
        shape, dtype = ctx.state
        dinitial_state = dinitial_state.view(shape).to(dtype)
    return *gradients, dinitial_state, *[None] * 6


_forward.register_autograd(_gradient, setup_context=_setup)
