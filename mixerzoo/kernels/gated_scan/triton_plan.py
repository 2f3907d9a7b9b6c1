"""Plans the launches of one gated scan. Nothing runs here: tensors may be on `meta`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..launch import Arguments, Launch, Program
from .triton_scan import scan_backward, scan_forward

SHORTEST_BLOCK = 64


class Tile(NamedTuple):
    """Says what a program holds at a time: channels x (segments x steps) tokens, the same forward and backward."""

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
    """Returns the tile for a call's sizes, by how many channels all sequences have together.

    Many channels get wide rows and short blocks, as other programs hide what one waits for. With few channels in long
    sequences the walk from block to block is all there is: more and narrower programs move more at every step.

    Two directions at once, and complex numbers, hold more for every token, hence fewer of them in a thread. No tile
    spills a register to memory on sm_80, sm_90 or gfx942.
    """
    if complex:
        tile = TILES["complex"]
    elif both:
        tile = TILES["real, both"]
    else:
        tile = TILES["real, few" if sequences * D < 8192 and T > 256 else "real, many"]
    return tile._replace(channels=min(tile.channels, 1 << (D - 1).bit_length()))


@dataclass(frozen=True, eq=False)
class Call:
    """One call: x and log_f [B,T,D], theta [D], [B,T,D] or None, documents packed into one row, a direction.

    Both passes write into tensors that `outputs` and `gradients` allocate.
    """

    x: Tensor
    log_f: Tensor
    theta: Tensor | None
    cu_seqlens: Tensor | None
    direction: str

    @property
    def sequences(self) -> int:
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def outputs(self, initial_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Allocates h, the final state, and the states carried from block to block [ways,slots,D]."""
        (B, T, D), sequences = self.x.shape, self.sequences
        # Room for the carries of every tile: a sequence has at most as many blocks as its tokens fill, and one more.
        slots = B * T // SHORTEST_BLOCK + sequences
        precision = _precision(self.x, self.log_f, self.theta, initial_state)
        both = self.direction == "both"
        return (
            self.x.new_empty(B, T, D),
            self.x.new_empty((2, sequences, D) if both else (sequences, D), dtype=precision),
            self.x.new_empty(2 if both else 1, slots, D, dtype=precision),
        )

    def gradients(self, carries: Tensor) -> dict[str, Tensor]:
        """Allocates what the backward pass writes: a gradient of every input, and what the adjoint carries.

        dtheta is empty without theta; of theta [D] it has a part for every sequence, whose sum it is.
        """
        D, sequences, both = self.x.shape[2], self.sequences, self.direction == "both"
        if self.theta is None:
            dtheta = self.log_f.new_empty(0)
        elif self.theta.ndim == 3:
            dtheta = self.theta.new_empty(self.theta.shape)
        else:
            dtheta = carries.new_empty(sequences, D, dtype=carries.dtype.to_real())
        return {
            "dx": self.x.new_empty(self.x.shape),
            "dlog_f": self.log_f.new_empty(self.log_f.shape),
            "dtheta": dtheta,
            "dinitial_state": carries.new_empty((2, sequences, D) if both else (sequences, D)),
            "dcarries": carries.new_empty(carries.shape[1:] if both else 0),
        }

    def forward(self, initial_state: Tensor | None, h: Tensor, final_state: Tensor, carries: Tensor) -> list[Launch]:
        """Plans what writes `outputs`."""
        tensors = {"initial_state": initial_state, "h": h, "final_state": final_state, "carries": carries}
        return [self._launch(False, carries, tensors)]

    def backward(
        self, dh: Tensor | None, dfinal_state: Tensor | None, carries: Tensor, gradients: dict[str, Tensor]
    ) -> list[Launch]:
        """Plans what writes `gradients`. No dh or dfinal_state: it is zero."""
        return [self._launch(True, carries, {"dh": dh, "dfinal_state": dfinal_state, "carries": carries} | gradients)]

    def _launch(self, adjoint: bool, carries: Tensor, tensors: dict[str, Tensor] | dict[str, Tensor | None]) -> Launch:
        (_, T, D), sequences, complex = self.x.shape, self.sequences, self.theta is not None
        tile = choose_tile(T, D, sequences, complex=complex, both=self.direction == "both")
        time = self.theta is not None and self.theta.ndim == 3
        program = _program(adjoint, tile, D, complex, time, self.direction, carries.dtype.to_real())
        given = {"x": self.x, "log_f": self.log_f, "theta": self.theta, "cu_seqlens": self.cu_seqlens} | tensors
        arguments: Arguments = {name: None if x is None else _in_memory(x) for name, x in given.items()}
        arguments |= {"sequences": sequences, "T": T, "D": D, "slots": carries.shape[1]}
        return Launch(program, (sequences * -(-D // tile.channels),), arguments)


@functools.cache
def _program(
    adjoint: bool, tile: Tile, D: int, complex: bool, theta_in_time: bool, direction: str, precision: torch.dtype
) -> Program:
    """Returns one program for all launches that are alike; Triton specialises it on D."""
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
    """Returns what the kernels read: contiguous, nothing left to conjugate or negate, complex numbers as pairs."""
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _precision(*tensors: Tensor | None) -> torch.dtype:
    """Returns the state's dtype: fp32 or fp64 of whatever is given, complex if any is."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
