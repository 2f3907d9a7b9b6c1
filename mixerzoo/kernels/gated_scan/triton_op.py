"""The gated scan on Triton, as torch sees it: two custom ops and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recurrence import Walk
from ..torch_ops import define, differentiate, refuse_second_derivatives
from .triton_plan import Call


def scan(x: Tensor, log_f: Tensor, theta: Tensor | None, walk: Walk) -> tuple[Tensor, Tensor]:
    """Returns h and the final state of validated inputs: see `gated_scan`."""
    initial_state = walk.initial_state
    if initial_state is not None and x.is_complex():
        initial_state = initial_state.to(torch.promote_types(initial_state.dtype, torch.complex32))
    elif initial_state is not None and initial_state.is_complex():
        raise ValueError(f"initial_state of a real scan must be real, got {initial_state.dtype}; remedy: pass theta")
    h, final_state, _ = gated_scan(x, log_f, theta, initial_state, walk.cu_seqlens, walk.direction)
    return h, final_state


def forward(call: Call, initial_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns h, the final state, and the states carried from block to block, for the backward pass."""
    outputs = call.outputs(initial_state)
    for launch in call.forward(initial_state, *outputs):
        launch.run()
    return outputs


def backward(
    call: Call, dh: Tensor | None, dfinal_state: Tensor | None, carries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, log_f, theta (empty without one) and the initial state."""
    gradients = call.gradients(carries)
    for launch in call.backward(dh, dfinal_state, carries, gradients):
        launch.run()
    dtheta = gradients["dtheta"]
    if call.theta is not None and call.theta.ndim == 1:
        dtheta = dtheta.sum(0).to(call.theta.dtype)
    return gradients["dx"], gradients["dlog_f"], dtheta, gradients["dinitial_state"]


def _forward(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    direction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return forward(Call(x, log_f, theta, cu_seqlens, direction), initial_state)


def _fake_forward(x, log_f, theta, initial_state, cu_seqlens, direction):
    return Call(x, log_f, theta, cu_seqlens, direction).outputs(initial_state)


def _backward(
    dh: Tensor | None,
    dfinal_state: Tensor | None,
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    carries: Tensor,
    cu_seqlens: Tensor | None,
    direction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return backward(Call(x, log_f, theta, cu_seqlens, direction), dh, dfinal_state, carries)


def _fake_backward(dh, dfinal_state, x, log_f, theta, carries, cu_seqlens, direction):
    gradients = Call(x, log_f, theta, cu_seqlens, direction).gradients(carries)
    dtheta = gradients["dtheta"] if theta is None else theta.new_empty(theta.shape)
    return gradients["dx"], gradients["dlog_f"], dtheta, gradients["dinitial_state"]


def _save(ctx, inputs, outputs) -> None:
    x, log_f, theta, initial_state, cu_seqlens, ctx.direction = inputs
    ctx.save_for_backward(x, log_f, theta, outputs[2], cu_seqlens)
    ctx.initial_dtype = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def _gradient(ctx, dh, dfinal_state, _):
    x, log_f, theta, carries, cu_seqlens = ctx.saved_tensors
    dx, dlog_f, dtheta, dstate = gated_scan_backward(
        dh, dfinal_state, x, log_f, theta, carries, cu_seqlens, ctx.direction
    )
    dstate = None if ctx.initial_dtype is None else dstate.to(ctx.initial_dtype)
    return dx, dlog_f, None if theta is None else dtheta, dstate, None, None


gated_scan = define("gated_scan", _forward, _fake_forward)
gated_scan_backward = define("gated_scan_backward", _backward, _fake_backward)
differentiate(gated_scan, _save, _gradient)
refuse_second_derivatives(gated_scan_backward)
