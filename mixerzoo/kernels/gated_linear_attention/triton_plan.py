"""From one call of gated linear attention or HGRN2 to its launches. Nothing runs here: tensors may be on `meta`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..launch import Arguments, Launch, Program
from .schedule import Schedule, candidates, choose
from .triton_programs import Variant, operand_of, variant


@dataclass(frozen=True)
class Call:
    """What one call's forward and backward passes have in common.

    Of kind "logits", key are logits and gate is the lower bound [H,K]; "channel" | "head": key is k, gate is log f
    [B,T,H,K] or [B,T,H,1]. All contiguous.
    """

    variant: Variant
    q: Tensor
    key: Tensor
    v: Tensor
    gate: Tensor
    cu_seqlens: Tensor | None
    scale: float

    @property
    def candidates(self) -> list[Schedule]:
        return candidates(self.q.shape[1], self.variant.K, self.variant.V, operand=self.variant.operand)

    @property
    def blocks(self) -> int:
        """Blocks of tokens, with a state ahead of each."""
        return slots(self.q, self.cu_seqlens, self.variant.block)

    def scheduled(self, schedule: Schedule) -> Call:
        """The same call, laid out differently."""
        one = self.variant
        laid_out = variant(one.H, one.K, one.V, one.kind, one.activation, one.direction, one.dtypes, schedule)
        return replace(self, variant=laid_out)

    def forward(
        self, y: Tensor, block_states: Tensor | None, final_states: Tensor, initial_state: Tensor | None
    ) -> list[Launch]:
        """Writes y, the final states and, where given, the block states."""
        one, segment = self.variant, self.variant.schedule.segment
        launches, first_states, segments = [], initial_state, sequence_count(self.q, self.cu_seqlens)
        if segment is not None:
            segments = slots(self.q, self.cu_seqlens, segment)
            first_states = self.q.new_empty((one.ways, segments, one.H, one.K, one.V), dtype=one.precision)
            launches = [self._between(segment, one.states, self.v, initial_state, first_states, None)]
        arguments: Arguments = {
            "q": self.q,
            "key": self.key,
            "v": self.v,
            "gate": self.gate,
            "first_states": first_states,
            "y": y,
            "block_states": block_states,
            "final_states": final_states,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": sequence_count(self.q, self.cu_seqlens),
            "segment_size": segment or self.q.shape[1],
            "segment_slots": segments,
            "block_slots": self.blocks,
            "scale": self.scale,
        }
        return [*launches, Launch(one.forward, (segments, one.H, -(-one.V // one.schedule.block_v)), arguments)]

    def decode(self, y: Tensor, final_states: Tensor, initial_state: Tensor | None) -> list[Launch]:
        """`forward` for T = 1 in one direction, without packing."""
        one = self.variant
        arguments: Arguments = {
            "q": self.q,
            "key": self.key,
            "v": self.v,
            "gate": self.gate,
            "first_states": initial_state,
            "y": y,
            "final_states": final_states,
            "scale": self.scale,
        }
        blocks = -(-one.V // one.decode.constants["BV"])
        return [Launch(one.decode, (self.q.shape[0], one.H, blocks), arguments)]

    def backward(
        self,
        dy: Tensor,
        block_states: Tensor,
        last_gradients: Tensor | None,
        first_gradients: Tensor,
        gradients: dict[str, Tensor],
    ) -> list[Launch]:
        """Writes `gradients`: dq, dkey, dv, dgate (of logits a part for every block, [blocks,H,K]), and that of the
        initial state."""
        one, block_gradients = self.variant, torch.empty_like(block_states)
        arguments: Arguments = {
            "q": self.q,
            "key": self.key,
            "v": self.v,
            "gate": self.gate,
            "dy": dy,
            **gradients,
            "block_states": block_states,
            "block_gradients": block_gradients,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": sequence_count(self.q, self.cu_seqlens),
            "k_end": -(-one.K // 16) * 16,
            "v_end": -(-one.V // 16) * 16,
            "scale": self.scale,
        }
        return [
            self._between(one.block, one.gradients, dy, last_gradients, block_gradients, first_gradients),
            Launch(one.backward, (self.blocks, one.H), arguments),
        ]

    def _between(
        self, size: int, program: Program, v: Tensor, outer: Tensor | None, found: Tensor, last: Tensor | None
    ) -> Launch:
        """Finds the states (or gradients) between parts of `size` tokens."""
        one, count = self.variant, sequence_count(self.q, self.cu_seqlens)
        arguments: Arguments = {
            "q": self.q,
            "key": self.key,
            "v": v,
            "gate": self.gate,
            "outer_states": outer,
            "part_states": found,
            "last_states": last,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": count,
            "part_slots": slots(self.q, self.cu_seqlens, size),
            "part_size": size,
            "scale": self.scale,
        }
        blocks = -(-one.K // program.constants["BK"]) * -(-one.V // program.constants["BV"])
        return Launch(program, (one.ways * count, one.H, blocks), arguments)


def sequence_count(q: Tensor, cu_seqlens: Tensor | None) -> int:
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def slots(q: Tensor, cu_seqlens: Tensor | None, size: int) -> int:
    """Parts of `size` tokens that the sequences have together, at the most: see `first_slot`."""
    B, T = q.shape[:2]
    return B * -(-T // size) if cu_seqlens is None else T // size + cu_seqlens.shape[0] - 1


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
    (_, T, H, K), V = q.shape, v.shape[3]
    dtypes = q.dtype, key.dtype, v.dtype
    if schedule is None:
        count, packed, operand = sequence_count(q, cu_seqlens), cu_seqlens is not None, operand_of(*dtypes)
        schedule = choose(T, count, H, K, V, direction=direction, packed=packed, operand=operand)
    one = variant(H, K, V, kind, activation, direction, dtypes, schedule)
    return Call(one, q.contiguous(), key.contiguous(), v.contiguous(), gate.contiguous(), cu_seqlens, float(scale))
