"""Chooses what the kernels of gated linear attention and HGRN2 are compiled for, from a call's widths and dtypes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from ..launch import Program, interpreted
from .schedule import TRITON, Schedule, block_size, odd, power_of_two
from .triton_backward import backward_kernel
from .triton_decode import decode_kernel
from .triton_forward import forward_kernel
from .triton_states import states_kernel

# fp32 ends at 2^-126 and 2^128. A block is entered and left by factors of 2^(SPAN/2); between two chunks the state goes
# from the unit of one to that of the other in one step, by up to 2^SPAN.
FORWARD_SPAN, BACKWARD_SPAN = 120.0, 200.0
FLOOR = -12.0  # log2 of the smallest gate with which the gradients of logits may be taken in one piece

_TRITON = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


@functools.cache
def operand_of(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of matrix operands. fp16 inputs go as bf16 too: a decayed value is often below fp16's range."""
    half = all(dtype in (torch.bfloat16, torch.float16) for dtype in dtypes)
    return torch.bfloat16 if half else functools.reduce(torch.promote_types, dtypes)


@dataclass(frozen=True)
class Variant:
    """All of a call but its tensors, B and T: see `triton_plan.Call`. dtypes: of q, k or logits, and v."""

    H: int
    K: int
    V: int
    kind: str
    activation: str
    direction: str
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    schedule: Schedule

    @property
    def ways(self) -> int:
        """Counts how many times a call goes through time."""
        return 2 if self.direction == "both" else 1

    @property
    def _first_way(self) -> int:
        """Way 0 is ahead, 1 is back."""
        return int(self.direction == "reverse")

    @functools.cached_property
    def operand(self) -> torch.dtype:
        return operand_of(*self.dtypes)

    @functools.cached_property
    def precision(self) -> torch.dtype:
        """Returns the dtype of the state and of all arithmetic but the operands of matrix products."""
        return torch.promote_types(self.operand, torch.float32)

    @property
    def block(self) -> int:
        return block_size(self.operand)

    @functools.cached_property
    def forward(self) -> Program:
        block_k, block_v = self.schedule.block_k, self.schedule.block_v
        constants = self._common | {
            "FIRST_WAY": self._first_way,
            "LAST_WAY": self._first_way + self.ways,
            "BK": block_k,
            "BV": block_v,
            "C": self.schedule.chunk,
            "BLOCK": self.block,
            "SPAN": self._span(FORWARD_SPAN),
            "SEGMENTED": self.schedule.segment is not None,
        }
        tight = block_v == 128 and (self.direction == "both" or block_k < self.K or TRITON < (3, 8))
        short = {"C": 16} if tight else {}
        limit = 255 if (block_v == 16 or odd(self.K, self.V)) and self.operand == torch.bfloat16 else None
        return Program(forward_kernel, constants, self.schedule.warps, max_registers=limit, on_ampere=short)

    @functools.cached_property
    def decode(self) -> Program:
        constants = {
            "H": self.H,
            "K": self.K,
            "V": self.V,
            "BK": power_of_two(self.K),
            "BV": min(32, power_of_two(self.V)),
            "KIND": self.kind,
            "ACTIVATION": self.activation,
            "ACC": _TRITON[self.precision],
        }
        return Program(decode_kernel, constants)

    @functools.cached_property
    def states(self) -> Program:
        """Finds the states of segments, walking as the call does."""
        return self._states(adjoint=False)

    @functools.cached_property
    def gradients(self) -> Program:
        """Finds the gradients of the states behind every block, walking the other way."""
        return self._states(adjoint=True)

    def _states(self, *, adjoint: bool) -> Program:
        exact = self.operand != torch.bfloat16
        # Gates are formed once for all blocks of V that a program has: few and wide ones.
        block_v = min(32 if exact or self.V % 64 else 64 if self.V % 128 else 128, power_of_two(self.V))
        narrow = exact or self.kind == "head" or self.K % 64 or block_v == 128
        block_k = min(32 if narrow else 64, power_of_two(self.K))
        long = self.dtypes[:2] == (torch.bfloat16, torch.bfloat16) and block_k * block_v >= 32 * 32
        constants = self._common | {
            "FIRST_WAY": self._first_way,
            "BK": block_k,
            "BV": block_v,
            "C": self.block if long else self.schedule.chunk,
            "ADJOINT": adjoint,
        }
        on_ampere = {"C": self.schedule.chunk} if block_k * block_v < 64 * 64 else {}
        return Program(states_kernel, constants, max_registers=96 if exact else 255, on_ampere=on_ampere)

    @functools.cached_property
    def backward(self) -> Program:
        block_k, block_v, wide = self._tiles
        constants = self._common | {
            "FIRST_WAY": self._first_way,
            "LAST_WAY": self._first_way + self.ways,
            "BK": block_k,
            "BV": block_v,
            "WIDE": wide,
            "C": self.block,
            "FACTORED": self.schedule.factored,
            "SPAN": self._span(BACKWARD_SPAN),
            "FLOOR": FLOOR,
            "FORGET": True,
        }
        both = self.direction == "both"
        on_amd = {"BK": 16, "BV": min(block_v, 64), "FACTORED": self.schedule.factored and not both}
        on_ampere = {"BV": min(block_v, 64), "FORGET": not both}
        return Program(backward_kernel, constants, num_warps=8, on_amd=on_amd, on_ampere=on_ampere)

    @property
    def _tiles(self) -> tuple[int, int, int]:
        """Returns the channels of K and of V that the backward kernel takes at a time, and of V for dv.

        Registers allow so many; masks and a second direction take some of them."""
        if self.operand != torch.bfloat16:
            return 16, 16, 16
        width, both = power_of_two(self.V), self.direction == "both"
        block_k, block_v, wide = (16, 64, 32) if both else (32, 128, 128)
        if self.K % block_k or self.V % min(block_v, width):
            block_k, block_v, wide = (16, 32, 16) if both else (16, 64, 128)
        return block_k, min(block_v, width), min(wide, width)

    def _span(self, most: float) -> float:
        """Returns how far the gates of a chunk may go, in powers of two.

        The rounding of their sum changes an exponent, which is an error of the product."""
        return most if self.operand == torch.bfloat16 else 32.0

    @property
    def _common(self) -> dict[str, Any]:
        return {
            "H": self.H,
            "K": self.K,
            "V": self.V,
            "KIND": self.kind,
            "ACTIVATION": self.activation,
            "OPERAND": _TRITON[self.operand],
            "ACC": _TRITON[self.precision],
            "FAST_MATH": self.operand == torch.bfloat16 and not interpreted(),
        }


variant = functools.cache(Variant)  # one object for all calls that are alike: it keeps its programs
