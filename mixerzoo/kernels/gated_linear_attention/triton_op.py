"""Gated linear attention and HGRN2 on Triton, as torch sees them: two custom ops and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import tuning
from ..recurrence import Walk
from ..torch_ops import define, differentiate, refuse_second_derivatives
from .schedule import block_size
from .triton_plan import Call, plan_call, sequence_count, slots
from .triton_programs import operand_of
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
    state, cu_seqlens, direction, in_place = walk.initial_state, walk.cu_seqlens, walk.direction, walk.in_place
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, key, v, gate, state))
    if in_place and state is not None and state.is_contiguous() and _is_decoding(q, cu_seqlens, direction, save):
        return decode_in_place(q, key, v, gate, state, scale, kind, activation), state
    y, final_state, _ = linear_attention(q, key, v, gate, state, cu_seqlens, scale, kind, activation, direction, save)
    return y, final_state


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
    """y, the final state, and where `save` asks for them the states between blocks."""
    return forward(plan_call(q, key, v, gate, cu_seqlens, scale, kind, activation, direction), initial_state, save)


def forward(call: Call, initial_state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a planned call: see `_forward`."""
    direction = call.variant.direction
    y, final_states, block_states = _outputs(call.q, call.key, call.v, call.cu_seqlens, direction, save)
    if initial_state is not None:
        initial_state = initial_state.contiguous()

    def run(call: Call) -> None:
        if _is_decoding(call.q, call.cu_seqlens, direction, save):
            launches = call.decode(y, final_states, initial_state)
        else:
            launches = call.forward(y, block_states if save else None, final_states, initial_state)
        for launch in launches:
            launch.run()

    run(fastest(call, run) if tuning() else call)
    return y, final_states, block_states


def _is_decoding(q: Tensor, cu_seqlens: Tensor | None, direction: str, save: bool) -> bool:
    return q.shape[1] == 1 and cu_seqlens is None and direction != "both" and not save


def _outputs(
    q: Tensor, key: Tensor, v: Tensor, cu_seqlens: Tensor | None, direction: str, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    operand = operand_of(q.dtype, key.dtype, v.dtype)
    final_states = _states(q, v, sequence_count(q, cu_seqlens), direction, torch.promote_types(operand, torch.float32))
    blocks = slots(q, cu_seqlens, block_size(operand)) if save else 0
    return _contiguous_like(v), final_states, _states(q, v, blocks, direction, operand)


def _states(q: Tensor, v: Tensor, count: int, direction: str, dtype: torch.dtype) -> Tensor:
    """[count,H,K,V], for both directions [2,count,H,K,V]."""
    shape = count, q.shape[2], q.shape[3], v.shape[3]
    return q.new_empty((2, *shape) if direction == "both" else shape, dtype=dtype)


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _decode_in_place(
    q: Tensor, key: Tensor, v: Tensor, gate: Tensor, state: Tensor, scale: float, kind: str, activation: str
) -> Tensor:
    """One token: y; `state` [B,H,K,V] becomes the final one."""
    y = _contiguous_like(v)
    for launch in plan_call(q, key, v, gate, None, scale, kind, activation, "causal").decode(y, state, state):
        launch.run()
    torch.autograd.graph.increment_version(state)
    return y


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
    return backward(call, block_states, dy, dfinal_state)


def backward(
    call: Call, block_states: Tensor, dy: Tensor, dfinal_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs a planned call's gradients: see `_backward`."""
    gate, precision, summed = call.gate, call.variant.precision, call.variant.kind == "logits"
    gradients = {
        "dq": _contiguous_like(call.q),
        "dkey": _contiguous_like(call.key),
        "dv": _contiguous_like(call.v),
        "dgate": gate.new_empty((call.blocks, *gate.shape) if summed else gate.shape, dtype=precision),
    }
    dinitial_state = _states(call.q, call.v, sequence_count(call.q, call.cu_seqlens), call.variant.direction, precision)
    dfinal_state = None if dfinal_state is None else dfinal_state.contiguous()
    for launch in call.backward(dy.contiguous(), block_states, dfinal_state, dinitial_state, gradients):
        launch.run()
    dgate = gradients["dgate"].sum(0) if summed else gradients["dgate"]
    return gradients["dq"], gradients["dkey"], gradients["dv"], dgate.to(gate.dtype), dinitial_state


def _gradients(q, key, v, gate, cu_seqlens, block_states, dy, dfinal_state, scale, kind, activation, direction):
    precision = torch.promote_types(block_states.dtype, torch.float32)
    dinitial_state = _states(q, v, sequence_count(q, cu_seqlens), direction, precision)
    return *map(_contiguous_like, (q, key, v, gate)), dinitial_state


def _save(ctx, inputs, outputs) -> None:
    q, key, v, gate, initial_state, cu_seqlens, *ctx.options, ctx.complete = inputs
    ctx.save_for_backward(q, key, v, gate, cu_seqlens, outputs[2])
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def _gradient(ctx, dy, dfinal_state, _):
    if not ctx.complete:
        raise RuntimeError("this graph was made without gradients; remedy: export or trace with gradients enabled")
    q, key, v, gate, cu_seqlens, block_states = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(v)
    *gradients, dinitial_state = linear_attention_backward(
        q, key, v, gate, cu_seqlens, block_states, dy, dfinal_state, *ctx.options
    )
    dinitial_state = None if ctx.state_dtype is None else dinitial_state.to(ctx.state_dtype)
    return *gradients, dinitial_state, *[None] * 6


linear_attention = define(
    "linear_attention",
    _forward,
    lambda q, key, v, gate, initial_state, cu_seqlens, scale, kind, activation, direction, save: _outputs(
        q, key, v, cu_seqlens, direction, save
    ),
)
linear_attention_backward = define("linear_attention_backward", _backward, _gradients)
decode_in_place = define(
    "linear_attention_decode", _decode_in_place, lambda q, key, v, *rest: v.new_empty(v.shape), mutates=("state",)
)
differentiate(linear_attention, _save, _gradient)
refuse_second_derivatives(linear_attention_backward)
