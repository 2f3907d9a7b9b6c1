"""From one call of gated linear attention or HGRN2 to its launches. Nothing runs here: tensors may be on `meta`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..launch import Launch, interpreted
from .schedule import Schedule, candidates, choose, power_of_two
from .triton_backward import backward_kernel
from .triton_decode import decode_kernel
from .triton_forward import forward_kernel
from .triton_states import states_kernel


@dataclass(frozen=True)
class Call:
    """What one call's forward and backward passes have in common.

    kind "logits": key are logits, gate is the lower bound [H,K]; "channel" | "head": key is k, gate is log f [B,T,H,K]
    or [B,T,H,1]. All contiguous.
    """

    q: Tensor
    key: Tensor
    v: Tensor
    gate: Tensor
    cu_seqlens: Tensor | None
    scale: float
    kind: str
    activation: str
    direction: str
    schedule: Schedule

    @property
    def ways(self) -> tuple[int, int]:
        """The first and one past the last of 0, ahead, and 1, back."""
        return {"causal": (0, 1), "reverse": (1, 2), "both": (0, 2)}[self.direction]

    @property
    def sequences(self) -> int:
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.numel() - 1

    @property
    def candidates(self) -> list[Schedule]:
        T, K, V = self.q.shape[1], self.q.shape[3], self.v.shape[3]
        return candidates(T, K, V, operand=self.operand)

    @property
    def blocks(self) -> int:
        return self.slots(self.schedule.block)

    @property
    def operand(self) -> torch.dtype:
        return _operand(self.q, self.key, self.v)

    @property
    def precision(self) -> torch.dtype:
        """That of the state and of all arithmetic but the operands of matrix products."""
        return torch.promote_types(self.operand, torch.float32)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self._states(self.sequences)

    def _span(self, most: float) -> float:
        """How far the gates of a chunk may go, in powers of two: what the rounding of their sum does to an exponent is
        an error of the product."""
        return most if self.operand == torch.bfloat16 else 32.0

    @property
    def _tiles(self) -> tuple[int, int, int]:
        """Channels of K and of V that the backward kernel takes at a time, and of V for dv: what registers allow."""
        K, V = self.q.shape[3], self.v.shape[3]
        if self.operand != torch.bfloat16:
            return 16, 16, 16
        wide = min(32 if self.direction == "both" else 128, power_of_two(V))
        easy = self.direction != "both" and K % 32 == 0 and V % wide == 0
        return (32, min(128, power_of_two(V)), wide) if easy else (16, min(64, power_of_two(V)), wide)

    def slots(self, size: int) -> int:
        """Parts of `size` tokens that the sequences have together, at the most: see `first_slot`."""
        B, T = self.q.shape[:2]
        return B * -(-T // size) if self.cu_seqlens is None else T // size + self.sequences

    def new_block_states(self) -> Tensor:
        """The state ahead of every block of tokens, which the forward pass leaves for the backward pass."""
        return self.q.new_empty(self._states(self.blocks), dtype=self.operand)

    def forward(
        self, y: Tensor, block_states: Tensor | None, final_states: Tensor, initial_state: Tensor | None
    ) -> list[Launch]:
        """Writes y, the final states and, where given, the block states."""
        schedule = self.schedule
        launches, first_states, segments = [], initial_state, self.sequences
        if schedule.segment is not None:
            segments = self.slots(schedule.segment)
            first_states = self.q.new_empty(self._states(segments), dtype=self.precision)
            launches = [self._states_launch(initial_state, self.v, first_states, None, schedule.segment, adjoint=False)]
        tensors = {
            "first_states": first_states,
            "y": y,
            "block_states": block_states,
            "final_states": final_states,
            "segment_size": schedule.segment or self.q.shape[1],
            "segment_slots": segments,
            "block_slots": self.blocks,
        }
        constants = {
            "FIRST_WAY": self.ways[0],
            "LAST_WAY": self.ways[1],
            "BK": schedule.block_k,
            "BV": schedule.block_v,
            "C": schedule.chunk,
            "BLOCK": schedule.block,
            "SPAN": self._span(FORWARD_SPAN),
            "SEGMENTED": schedule.segment is not None,
        }
        grid = (segments, self.q.shape[2], -(-self.v.shape[3] // schedule.block_v))
        arguments, constants = self._arguments(self.v) | tensors, self._constants() | constants
        several = self.direction == "both" or self.q.shape[3] > schedule.block_k
        short = {"C": 16} if several and schedule.block_v == 128 else {}
        launch = Launch(forward_kernel, grid, arguments, constants, schedule.warps, on_ampere=short)
        return [*launches, launch]

    def decode(self, y: Tensor, final_states: Tensor, initial_state: Tensor | None) -> list[Launch]:
        """`forward` for T = 1 in one direction, without packing."""
        B, _, H, K = self.q.shape
        V = self.v.shape[3]
        block_k, block_v = power_of_two(K), min(32, power_of_two(V))
        tensors = {
            "q": self.q,
            "key": self.key,
            "v": self.v,
            "gate": self.gate,
            "first_states": initial_state,
            "y": y,
            "final_states": final_states,
            "scale": float(self.scale),
        }
        constants = {
            "H": H,
            "K": K,
            "V": V,
            "BK": block_k,
            "BV": block_v,
            "GATE": self.kind,
            "ACTIVATION": self.activation,
            "ACC": _TRITON[self.precision],
        }
        return [Launch(decode_kernel, (B, H, -(-V // block_v)), tensors, constants, 4)]

    def backward(
        self,
        dy: Tensor,
        block_states: Tensor,
        last_gradients: Tensor | None,
        first_gradients: Tensor | None,
        gradients: dict[str, Tensor],
    ) -> list[Launch]:
        """Writes `gradients`: dq, dkey, dv, dgate (of logits a part for every block, [blocks,H,K]), and that of the
        initial state."""
        block, block_gradients = self.schedule.block, torch.empty_like(block_states)
        states = self._states_launch(last_gradients, dy, block_gradients, first_gradients, block, adjoint=True)
        H, K, V = self.q.shape[2], self.q.shape[3], self.v.shape[3]
        block_k, block_v, wide = self._tiles
        tensors = {
            "dy": dy,
            "block_states": block_states,
            "block_gradients": block_gradients,
            "k_end": -(-K // 16) * 16,
            "v_end": -(-V // 16) * 16,
            **gradients,
        }
        constants = {
            "FIRST_WAY": self.ways[0],
            "LAST_WAY": self.ways[1],
            "BK": block_k,
            "BV": block_v,
            "WIDE": wide,
            "C": block,
            "FACTORED": self.schedule.factored,
            "SPAN": self._span(BACKWARD_SPAN),
            "FLOOR": FLOOR,
        }
        on_ampere = {"BV": min(block_v, 64)} if block_k == 32 else {}
        factored = self.schedule.factored and self.direction != "both"
        on_amd = {"BK": 16, "BV": min(block_v, 64), "FACTORED": factored}
        arguments, constants = self._arguments(self.v) | tensors, self._constants() | constants
        grid = (self.blocks, H)
        return [states, Launch(backward_kernel, grid, arguments, constants, 8, on_amd=on_amd, on_ampere=on_ampere)]

    def _states_launch(
        self,
        outer: Tensor | None,
        v: Tensor,
        found: Tensor,
        last: Tensor | None,
        size: int,
        *,
        adjoint: bool,
    ) -> Launch:
        """Finds the states (or gradients) between parts of `size` tokens."""
        tensors = {
            "outer_states": outer,
            "part_states": found,
            "last_states": last,
            "part_slots": self.slots(size),
            "part_size": size,
        }
        H, K, V = self.q.shape[2], self.q.shape[3], v.shape[3]
        exact = self.operand != torch.bfloat16
        # Gates are formed once for all blocks of V that a program has: few and wide ones.
        block_v = min(32 if exact or V % 64 else 64 if V % 128 else 128, power_of_two(V))
        block_k = min(32 if exact or self.kind == "head" or K % 64 or block_v == 128 else 64, power_of_two(K))
        long = self.q.dtype == self.key.dtype == torch.bfloat16 and block_k * block_v >= 32 * 32
        constants = {
            "FIRST_WAY": self.ways[0],
            "BK": block_k,
            "BV": block_v,
            "C": self.schedule.block if long else self.schedule.chunk,
            "ADJOINT": adjoint,
        }
        grid = ((self.ways[1] - self.ways[0]) * self.sequences, H, -(-K // block_k) * -(-V // block_v))
        arguments, constants = self._arguments(v) | tensors, self._constants() | constants
        on_ampere = {"C": self.schedule.chunk} if block_k * block_v < 64 * 64 else {}
        return Launch(states_kernel, grid, arguments, constants, 4, on_ampere=on_ampere)

    def _arguments(self, v: Tensor) -> dict[str, Any]:
        return {
            "q": self.q,
            "key": self.key,
            "v": v,
            "gate": self.gate,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": self.sequences,
            "scale": float(self.scale),
        }

    def _constants(self) -> dict[str, Any]:
        return {
            "H": self.q.shape[2],
            "K": self.q.shape[3],
            "V": self.v.shape[3],
            "GATE": self.kind,
            "ACTIVATION": self.activation,
            "OPERAND": _TRITON[self.operand],
            "ACC": _TRITON[self.precision],
            "FAST_MATH": self.operand == torch.bfloat16 and not interpreted(),
        }

    def _states(self, slots: int) -> tuple[int, ...]:
        H, K, V = self.q.shape[2], self.q.shape[3], self.v.shape[3]
        return (self.ways[1] - self.ways[0], slots, H, K, V)


# fp32 ends at 2^-126 and 2^128. A block is entered and left by factors of 2^(SPAN/2); between two chunks the state goes
# from the unit of one to that of the other in one step, by up to 2^SPAN.
FORWARD_SPAN, BACKWARD_SPAN = 120.0, 200.0
FLOOR = -12.0  # log2 of the smallest gate with which the gradients of logits may be taken in one piece

_TRITON = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


def _operand(*tensors: Tensor) -> torch.dtype:
    """The dtype of matrix operands. fp16 inputs go as bf16 too: a decayed value is often below fp16's range."""
    half = all(x.dtype in (torch.bfloat16, torch.float16) for x in tensors)
    return torch.bfloat16 if half else functools.reduce(torch.promote_types, (x.dtype for x in tensors))


def plan_call(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    gate: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    kind: str,
    activation: str,
    direction: str,
    schedule: Schedule | None = None,
) -> Call:
    """The call with its schedule: the given one, or the table's."""
    B, T, H, K = q.shape
    sequences = B if cu_seqlens is None else cu_seqlens.numel() - 1
    if schedule is None:
        packed, operand = cu_seqlens is not None, _operand(q, key, v)
        schedule = choose(T, sequences, H, K, v.shape[3], direction=direction, packed=packed, operand=operand)
    q, key, v, gate = (x.contiguous() for x in (q, key, v, gate))
    return Call(q, key, v, gate, cu_seqlens, scale, kind, activation, direction, schedule)
