"""The gated scan's launches in Triton, and the custom ops that torch sees: opaque to a compiler, differentiable."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mixerzoo.kernels.launch import Arguments, Launch, Program
from mixerzoo.kernels.torch_ops import define, differentiate, refuse_second_derivatives

from .triton_scan import scan_backward, scan_forward

SHORTEST_BLOCK = 64


class Tile(NamedTuple):
    """What a program holds at a time: channels x (segments x steps) tokens, the same forward and backward."""

    channels: int
    segments: int
    steps: int
    warps: tuple[int, int]  # forward, backward
    stages: tuple[int, int]  # blocks on their way at a time


TILES = {
    "real, many": Tile(32, 8, 8, warps=(4, 4), stages=(1, 1)),
    "real, few": Tile(8, 64, 4, warps=(8, 8), stages=(3, 2)),
    "real, both": Tile(32, 8, 8, warps=(4, 8), stages=(1, 1)),
    "complex": Tile(8, 32, 4, warps=(8, 8), stages=(1, 1)),
}


def choose_tile(T: int, D: int, sequences: int, *, complex: bool, both: bool) -> Tile:
    """Many channels: wide rows and short blocks, as other programs hide what one waits for. Few, in long sequences: the
    walk from block to block is all there is, so that more programs, narrower ones, move more at every step.

    Two directions at once, and complex numbers, hold more for every token, hence fewer of them in a thread. No tile
    leaves a register to memory on sm_80, sm_90 or gfx942.
    """
    if complex:
        tile = TILES["complex"]
    elif both:
        tile = TILES["real, both"]
    else:
        tile = TILES["real, few" if sequences * D < 8192 and T > 256 else "real, many"]
    return tile._replace(channels=min(tile.channels, 1 << (D - 1).bit_length()))


def scan(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    direction: str,
) -> tuple[Tensor, Tensor]:
    """h and the final state of validated inputs: see `gated_scan`."""
    if initial_state is not None and x.is_complex():
        initial_state = initial_state.to(torch.promote_types(initial_state.dtype, torch.complex32))
    elif initial_state is not None and initial_state.is_complex():
        raise ValueError(f"initial_state of a real scan must be real, got {initial_state.dtype}; remedy: pass theta")
    h, final_state, _ = gated_scan(x, log_f, theta, initial_state, cu_seqlens, direction)
    return h, final_state


def _forward(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    direction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """h, the final state, and the states carried from block to block, for the backward pass."""
    outputs = _forward_outputs(x, log_f, theta, initial_state, cu_seqlens, direction)
    for launch in plan_forward(x, log_f, theta, initial_state, cu_seqlens, direction, *outputs):
        launch.run()
    return outputs


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
    """Gradients of x, log_f, theta (empty without one) and the initial state. No dh or dfinal_state: it is zero."""
    outputs = _backward_outputs(x, log_f, theta, carries, cu_seqlens, direction)
    dx, dlog_f, dtheta, dinitial_state, _ = outputs
    for launch in plan_backward(dh, dfinal_state, x, log_f, theta, carries, cu_seqlens, direction, *outputs):
        launch.run()
    if theta is not None and theta.ndim == 1:
        dtheta = dtheta.sum(0).to(theta.dtype)
    return dx, dlog_f, dtheta, dinitial_state


def plan_forward(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    direction: str,
    h: Tensor,
    final_state: Tensor,
    carries: Tensor,
) -> list[Launch]:
    tensors = {"x": x, "log_f": log_f, "theta": theta, "initial_state": initial_state, "cu_seqlens": cu_seqlens}
    tensors |= {"h": h, "final_state": final_state, "carries": carries}
    return [_launch(0, tensors, x, theta, carries, cu_seqlens, direction)]


def plan_backward(
    dh: Tensor | None,
    dfinal_state: Tensor | None,
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    carries: Tensor,
    cu_seqlens: Tensor | None,
    direction: str,
    dx: Tensor,
    dlog_f: Tensor,
    dtheta: Tensor,
    dinitial_state: Tensor,
    dcarries: Tensor,
) -> list[Launch]:
    tensors = {"dh": dh, "dfinal_state": dfinal_state, "x": x, "log_f": log_f, "theta": theta, "carries": carries}
    tensors |= {"cu_seqlens": cu_seqlens, "dx": dx, "dlog_f": dlog_f, "dtheta": dtheta}
    tensors |= {"dinitial_state": dinitial_state, "dcarries": dcarries}
    return [_launch(1, tensors, x, theta, carries, cu_seqlens, direction)]


def _launch(
    adjoint: int,
    tensors: dict[str, Tensor | None],
    x: Tensor,
    theta: Tensor | None,
    carries: Tensor,
    cu_seqlens: Tensor | None,
    direction: str,
) -> Launch:
    _, T, D = x.shape
    sequences = _sequences(x, cu_seqlens)
    tile = choose_tile(T, D, sequences, complex=theta is not None, both=direction == "both")
    time = theta is not None and theta.ndim == 3
    program = _program(adjoint, tile, D, theta is not None, time, direction, carries.dtype.to_real())
    arguments: Arguments = {name: None if tensor is None else _in_memory(tensor) for name, tensor in tensors.items()}
    arguments |= {"sequences": sequences, "T": T, "D": D, "slots": carries.shape[1]}
    return Launch(program, (sequences * -(-D // tile.channels),), arguments)


@functools.cache
def _program(
    adjoint: int, tile: Tile, D: int, complex: bool, theta_in_time: bool, direction: str, precision: torch.dtype
) -> Program:
    """One for all launches that are alike; Triton specialises it on D."""
    constants = {
        "COMPLEX": complex,
        "THETA_IN_TIME": theta_in_time,
        "REVERSE": direction == "reverse",
        "BOTH": direction == "both",
        "CHANNELS": tile.channels,
        "SEGMENTS": tile.segments,
        "STEPS": tile.steps,
        "STAGES": tile.stages[adjoint],
        "ACC": tl.float64 if precision == torch.float64 else tl.float32,
    }
    kernel = scan_backward if adjoint else scan_forward
    return Program(kernel, constants, tile.warps[adjoint], max_registers=255)


def _in_memory(tensor: Tensor) -> Tensor:
    """As the kernels read it: contiguous, nothing left to conjugate or negate, complex numbers as pairs."""
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _sequences(x: Tensor, cu_seqlens: Tensor | None) -> int:
    return x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _forward_outputs(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    direction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = x.shape
    sequences, directions = _sequences(x, cu_seqlens), 2 if direction == "both" else 1
    # Room for the carries of every tile: a sequence has at most as many blocks as its tokens fill, and one more.
    slots = B * T // SHORTEST_BLOCK + sequences
    precision = _precision(x, log_f, theta, initial_state)
    return (
        x.new_empty(B, T, D),
        x.new_empty((2, sequences, D) if directions == 2 else (sequences, D), dtype=precision),
        x.new_empty(directions, slots, D, dtype=precision),
    )


def _backward_outputs(
    x: Tensor, log_f: Tensor, theta: Tensor | None, carries: Tensor, cu_seqlens: Tensor | None, direction: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The last two: dtheta of every sequence, whose sum is asked for when theta is [D]; what the adjoint carries."""
    D, sequences = x.shape[2], _sequences(x, cu_seqlens)
    if theta is None:
        dtheta = log_f.new_empty(0)
    elif theta.ndim == 3:
        dtheta = theta.new_empty(theta.shape)
    else:
        dtheta = carries.new_empty(sequences, D, dtype=carries.dtype.to_real())
    both = direction == "both"
    return (
        x.new_empty(x.shape),
        log_f.new_empty(log_f.shape),
        dtheta,
        carries.new_empty((2, sequences, D) if both else (sequences, D)),
        carries.new_empty(carries.shape[1:] if both else 0),
    )


def _precision(*tensors: Tensor | None) -> torch.dtype:
    """fp32 or fp64 of whatever is given, complex if any is: the dtype of the state."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _gradients(dh, dfinal_state, x, log_f, theta, carries, cu_seqlens, direction):
    dx, dlog_f, dtheta, dinitial_state, _ = _backward_outputs(x, log_f, theta, carries, cu_seqlens, direction)
    return dx, dlog_f, dtheta if theta is None else theta.new_empty(theta.shape), dinitial_state


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


gated_scan = define("gated_scan", _forward, _forward_outputs)
gated_scan_backward = define("gated_scan_backward", _backward, _gradients)
differentiate(gated_scan, _save, _gradient)
refuse_second_derivatives(gated_scan_backward)
