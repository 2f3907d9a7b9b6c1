"""Plans the launches of one call of gated linear attention or HGRN2. Nothing runs here: tensors may be on `meta`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..launch import Arguments, Launch, Program
from .schedule import Schedule, block_size, candidates, choose
from .triton_programs import Variant, operand_of, variant


@dataclass(frozen=True, eq=False)
class Call:
    """Plans a call: q [B,T,H,K], v [B,T,H,V]; k [B,T,H,K] with log_f [B,T,H,K] or [B,T,H,1]; or logits and lower_bound.

    Logits are [B,T,H,K], the lower bound is [H,K]; what a call does not have is None. Without a schedule the table
    chooses one. Both passes write into tensors that `outputs` and `gradients` allocate.
    """

    q: Tensor
    v: Tensor
    k: Tensor | None = None
    log_f: Tensor | None = None
    logits: Tensor | None = None
    lower_bound: Tensor | None = None
    cu_seqlens: Tensor | None = None
    scale: float = 1.0
    activation: str = "none"
    direction: str = "causal"
    schedule: Schedule | None = None

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns q, k or logits, v, log_f or lower_bound."""
        source, gate = (self.logits, self.lower_bound) if self.k is None else (self.k, self.log_f)
        assert source is not None and gate is not None
        return self.q, source, self.v, gate

    @cached_property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        """Returns those of q, k or logits, and v."""
        q, source, v, _ = self.inputs
        return q.dtype, source.dtype, v.dtype

    @cached_property
    def kind(self) -> str:
        """Returns "logits", or whether every "channel" or "head" has a gate log_f."""
        if self.log_f is None:
            return "logits"
        return "head" if self.log_f.shape[3] == 1 else "channel"

    @cached_property
    def variant(self) -> Variant:
        """Returns all that decides what is compiled."""
        (_, T, H, K), V, dtypes, schedule = self.q.shape, self.v.shape[3], self.dtypes, self.schedule
        if schedule is None:
            packed, operand = self.cu_seqlens is not None, operand_of(*dtypes)
            schedule = choose(T, self.sequences, H, K, V, direction=self.direction, packed=packed, operand=operand)
        return variant(H, K, V, self.kind, self.activation, self.direction, dtypes, schedule)

    @property
    def candidates(self) -> list[Schedule]:
        return candidates(self.q.shape[1], self.variant.K, self.variant.V, operand=self.variant.operand)

    def scheduled(self, schedule: Schedule) -> Call:
        """Returns the same call, laid out differently."""
        return replace(self, schedule=schedule)

    @property
    def is_one_token(self) -> bool:
        """Says whether `decode` can take the place of `forward`."""
        return is_one_token(self.q, self.cu_seqlens, self.direction)

    @cached_property
    def sequences(self) -> int:
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def blocks(self) -> int:
        """Returns the number of blocks of tokens, with a state ahead of each."""
        return self.slots(block_size(self._operand))

    def slots(self, size: int) -> int:
        """Returns how many parts of `size` tokens the sequences have together, at the most: see `first_slot`."""
        B, T = self.q.shape[:2]
        return B * -(-T // size) if self.cu_seqlens is None else T // size + self.sequences

    def outputs(self, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Allocates y, the final states, and the states ahead of blocks; none of these where nothing is saved."""
        blocks = self._states(self.blocks if save else 0, self._operand)
        return _contiguous_like(self.v), self._states(self.sequences, self._precision), blocks

    def gradients(self) -> tuple[Tensor, ...]:
        """Allocates what the backward pass writes: the gradients of `inputs` and of the initial states.

        The lower bound's has a part for every block: `summed` returns the gradients themselves.
        """
        q, source, v, gate = self.inputs
        shape = gate.shape if self.logits is None else (self.blocks, *gate.shape)
        dgate = gate.new_empty(shape, dtype=self._precision)
        dinitial_states = self._states(self.sequences, self._precision)
        return _contiguous_like(q), _contiguous_like(source), _contiguous_like(v), dgate, dinitial_states

    def summed(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the gradients of `inputs` and of the initial states from what the backward pass has written."""
        dq, dsource, dv, dgate, dinitial_states = gradients
        dgate = dgate if self.logits is None else dgate.sum(0)
        return dq, dsource, dv, dgate.to(self.inputs[3].dtype), dinitial_states

    def forward(
        self, y: Tensor, block_states: Tensor | None, final_states: Tensor, initial_state: Tensor | None
    ) -> list[Launch]:
        """Plans what writes y, the final states and, where given, the block states."""
        one, given = self.variant, self._arguments()
        launches, segment, segments, first_states = [], one.schedule.segment, self.sequences, initial_state
        if segment is not None:
            segments = self.slots(segment)
            first_states = self.q.new_empty((one.ways, segments, one.H, one.K, one.V), dtype=one.precision)
            launches = [self._between(one, given, segment, one.states, initial_state, first_states, None)]
        arguments = given | {
            "first_states": first_states,
            "y": y,
            "block_states": block_states,
            "final_states": final_states,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": self.sequences,
            "segment_size": segment or self.q.shape[1],
            "segment_slots": segments,
            "block_slots": self.slots(one.block),
        }
        return [*launches, Launch(one.forward, (segments, one.H, -(-one.V // one.schedule.block_v)), arguments)]

    def decode(self, y: Tensor, final_states: Tensor, initial_state: Tensor | None) -> list[Launch]:
        """Plans `forward` for T = 1 in one direction, without packing."""
        one = self.variant
        arguments = self._arguments() | {"first_states": initial_state, "y": y, "final_states": final_states}
        blocks = -(-one.V // one.decode.constants["BV"])
        return [Launch(one.decode, (self.q.shape[0], one.H, blocks), arguments)]

    def backward(
        self, dy: Tensor, block_states: Tensor, dfinal_states: Tensor | None, gradients: tuple[Tensor, ...]
    ) -> list[Launch]:
        """Plans what writes `gradients`."""
        one, given = self.variant, self._arguments()
        dq, dsource, dv, dgate, dinitial_states = gradients
        block_gradients = torch.empty_like(block_states)
        of_logits = self.logits is not None
        arguments = given | {
            "dy": dy,
            "dq": dq,
            "dk": None if of_logits else dsource,
            "dlogits": dsource if of_logits else None,
            "dv": dv,
            "dlog_f": None if of_logits else dgate,
            "dlower_bound": dgate if of_logits else None,
            "block_states": block_states,
            "block_gradients": block_gradients,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": self.sequences,
            "k_end": -(-one.K // 16) * 16,
            "v_end": -(-one.V // 16) * 16,
        }
        adjoint = given | {"v": dy}
        return [
            self._between(one, adjoint, one.block, one.gradients, dfinal_states, block_gradients, dinitial_states),
            Launch(one.backward, (self.slots(one.block), one.H), arguments),
        ]

    def _between(
        self,
        one: Variant,
        given: Arguments,
        size: int,
        program: Program,
        outer: Tensor | None,
        found: Tensor,
        last: Tensor | None,
    ) -> Launch:
        """Plans what finds the states (or gradients) between parts of `size` tokens."""
        arguments = given | {
            "outer_states": outer,
            "part_states": found,
            "last_states": last,
            "cu_seqlens": self.cu_seqlens,
            "T": self.q.shape[1],
            "sequences": self.sequences,
            "part_slots": self.slots(size),
            "part_size": size,
        }
        blocks = -(-one.K // program.constants["BK"]) * -(-one.V // program.constants["BV"])
        return Launch(program, (one.ways * self.sequences, one.H, blocks), arguments)

    def _arguments(self) -> Arguments:
        """Returns what all kernels take: the inputs, contiguous, and the scale."""
        q, source, v, gate = self.inputs
        q, source, v, gate = q.contiguous(), source.contiguous(), v.contiguous(), gate.contiguous()
        k, log_f, logits, lower_bound = (
            (source, gate, None, None) if self.logits is None else (None, None, source, gate)
        )
        return {
            "q": q,
            "k": k,
            "logits": logits,
            "v": v,
            "log_f": log_f,
            "lower_bound": lower_bound,
            "scale": float(self.scale),
        }

    @cached_property
    def _operand(self) -> torch.dtype:
        return operand_of(*self.dtypes)

    @cached_property
    def _precision(self) -> torch.dtype:
        return torch.promote_types(self._operand, torch.float32)

    def _states(self, count: int, dtype: torch.dtype) -> Tensor:
        """Allocates [count,H,K,V], for both directions [2,count,H,K,V]."""
        shape = count, self.q.shape[2], self.q.shape[3], self.v.shape[3]
        return self.q.new_empty((2, *shape) if self.direction == "both" else shape, dtype=dtype)


def is_one_token(q: Tensor, cu_seqlens: Tensor | None, direction: str) -> bool:
    return q.shape[1] == 1 and cu_seqlens is None and direction != "both"


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
