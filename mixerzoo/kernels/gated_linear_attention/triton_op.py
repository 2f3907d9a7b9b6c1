"""Gated linear attention and HGRN2 on Triton, as torch sees them: two custom ops and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import tuning
from ..recurrence import Walk
from ..torch_ops import define, differentiate, refuse_second_derivatives
from .triton_plan import Call, is_one_token
from .tuning import fastest


def attend(
    q: Tensor,
    v: Tensor,
    walk: Walk,
    *,
    scale: float,
    k: Tensor | None = None,
    log_f: Tensor | None = None,
    logits: Tensor | None = None,
    lower_bound: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Returns y and the final state from k and log_f, or from logits and lower_bound: see `triton_plan.Call`.

    activation: of q, as `hgrn2` has it.
    """
    given, state = (q, v, k, log_f, logits, lower_bound), walk.initial_state
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*given, state))
    one_token = is_one_token(q, walk.cu_seqlens, walk.direction) and not save
    if walk.in_place and one_token and state is not None and state.is_contiguous():
        return decode_in_place(*given, state, scale, activation), state
    y, final_state, _ = linear_attention(*given, walk.cu_seqlens, scale, activation, walk.direction, state, save)
    return y, final_state


def forward(call: Call, initial_state: Tensor | None, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the final state, and where `save` asks for them the states between blocks."""
    y, final_states, block_states = call.outputs(save=save)
    if initial_state is not None:
        initial_state = initial_state.contiguous()

    def run(call: Call) -> None:
        if call.is_one_token and not save:
            launches = call.decode(y, final_states, initial_state)
        else:
            launches = call.forward(y, block_states if save else None, final_states, initial_state)
        for launch in launches:
            launch.run()

    run(fastest(call, run) if tuning() else call)
    return y, final_states, block_states


def backward(call: Call, block_states: Tensor, dy: Tensor, dfinal_state: Tensor | None) -> tuple[Tensor, ...]:
    """Returns (dq, dk or dlogits, dv, dlog_f or dlower_bound, dinitial_state)."""
    gradients = call.gradients()
    dfinal_state = None if dfinal_state is None else dfinal_state.contiguous()
    for launch in call.backward(dy.contiguous(), block_states, dfinal_state, gradients):
        launch.run()
    return call.summed(gradients)


def _forward(
    q: Tensor,
    v: Tensor,
    k: Tensor | None,
    log_f: Tensor | None,
    logits: Tensor | None,
    lower_bound: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    activation: str,
    direction: str,
    initial_state: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(q, v, k, log_f, logits, lower_bound, cu_seqlens, scale, activation, direction)
    return forward(call, initial_state, save=save)


def _fake_forward(*arguments):
    *given, _, save = arguments
    return Call(*given).outputs(save=save)


def _decode_in_place(
    q: Tensor,
    v: Tensor,
    k: Tensor | None,
    log_f: Tensor | None,
    logits: Tensor | None,
    lower_bound: Tensor | None,
    state: Tensor,
    scale: float,
    activation: str,
) -> Tensor:
    """One token: y; `state` [B,H,K,V] becomes the final one."""
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    call = Call(q, v, k, log_f, logits, lower_bound, None, scale, activation, "causal")
    for launch in call.decode(y, state, state):
        launch.run()
    torch.autograd.graph.increment_version(state)
    return y


def _fake_decode(q, v, *rest):
    return v.new_empty(v.shape)


def _backward(
    q: Tensor,
    v: Tensor,
    k: Tensor | None,
    log_f: Tensor | None,
    logits: Tensor | None,
    lower_bound: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    activation: str,
    direction: str,
    block_states: Tensor,
    dy: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = Call(q, v, k, log_f, logits, lower_bound, cu_seqlens, scale, activation, direction)
    dq, dsource, dv, dgate, dinitial_state = backward(call, block_states, dy, dfinal_state)
    return dq, dsource, dv, dgate, dinitial_state


def _fake_backward(*arguments):
    *given, _, _, _ = arguments
    call = Call(*given)
    like = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in call.inputs)
    return *like, call.gradients()[-1]


def _save(ctx, inputs, outputs) -> None:
    *given, ctx.scale, ctx.activation, ctx.direction, initial_state, ctx.complete = inputs
    ctx.save_for_backward(*given, outputs[2])
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def _gradient(ctx, dy, dfinal_state, _):
    if not ctx.complete:
        raise RuntimeError("this graph was made without gradients; remedy: export or trace with gradients enabled")
    *given, block_states = ctx.saved_tensors
    _, v, k, *_ = given
    if dy is None:
        dy = torch.zeros_like(v)
    dq, dsource, dv, dgate, dstate = linear_attention_backward(
        *given, ctx.scale, ctx.activation, ctx.direction, block_states, dy, dfinal_state
    )
    dstate = None if ctx.state_dtype is None else dstate.to(ctx.state_dtype)
    of_keys = (None, None, dsource, dgate) if k is None else (dsource, dgate, None, None)
    return dq, dv, *of_keys, *[None] * 4, dstate, None


linear_attention = define("linear_attention", _forward, _fake_forward)
linear_attention_backward = define("linear_attention_backward", _backward, _fake_backward)
decode_in_place = define("linear_attention_decode", _decode_in_place, _fake_decode, mutates=("state",))
differentiate(linear_attention, _save, _gradient)
refuse_second_derivatives(linear_attention_backward)
