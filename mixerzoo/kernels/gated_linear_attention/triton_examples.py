"""Launches of gated linear attention that stand for all, and what its bytes are counted of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from ..check.bytes import Passes
from ..launch import Launch
from .schedule import Schedule, choose
from .triton_op import backward, forward
from .triton_plan import Call

ROWS = (8, 2048, 16)  # B, T, H of a language model
MANY = 128  # heads that keep any GPU busy
COUNTED = (1, 2048, 1, 128)  # B, T, H, K = V


def examples() -> Iterator[tuple[str, list[Launch]]]:
    """Yields (configuration, its launches forward and backward), tensors on `meta`."""
    for K, gate in product((128, 64), ("channel", "head")):
        yield example(gate, torch.bfloat16, "causal", ROWS, K, K)
    for gate in ("channel", "head"):
        yield example(gate, torch.float32, "causal", ROWS, 64, 64)


def counted() -> Iterator[tuple[str, Passes]]:
    """Yields (inputs, passes to count the bytes of)."""
    q, k, v, log_f = torch.full((4, *COUNTED), -0.5, dtype=torch.bfloat16)
    yield f"{size_of(COUNTED)} many heads", passes(Call(q, v, k, log_f))


def example(
    kind: str,
    dtype: torch.dtype,
    direction: str,
    shape: tuple[int, int, int],
    K: int,
    V: int,
    *,
    packed: bool = False,
    schedule: Schedule | None = None,
) -> tuple[str, list[Launch]]:
    """Returns one of what `examples` yields; for the kinds see `triton_plan.Call`."""
    B, T, H = shape

    def tensor(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    q, source, v = tensor(B, T, H, K), tensor(B, T, H, K), tensor(B, T, H, V)
    cu_seqlens = tensor(9, dtype=torch.int32) if packed else None
    call = Call(q, v, cu_seqlens=cu_seqlens, direction=direction, schedule=schedule)
    if kind == "logits":
        call = replace(call, logits=source, lower_bound=tensor(H, K, dtype=torch.float32), activation="silu")
    else:
        call = replace(call, k=source, log_f=tensor(B, T, H, K if kind == "channel" else 1))
    label = f"{str(dtype).removeprefix('torch.')} {direction} B={B} T={T} H={H} K={K} V={V}{' packed' * packed}"
    if kind != "logits":
        label = f"gate per {kind} {label}"
    if schedule is not None:
        label += f" segment={schedule.segment or 'all'} BV={schedule.block_v}"
    y, state, states = call.outputs(save=True)
    if T == 1:
        return label, call.decode(y, state, state)
    return label, call.forward(y, states, state, state) + call.backward(y, states, state, call.gradients())


def passes(call: Call, heads: int = MANY) -> Passes:
    """Returns both passes of a call, laid out as for so many heads, which those of the call stand for."""
    (B, T, H, K), V, packed = call.q.shape, call.v.shape[3], call.cu_seqlens is not None
    operand = call.variant.operand
    schedule = choose(T, call.sequences, heads, K, V, direction=call.direction, packed=packed, operand=operand)
    call = call.scheduled(schedule)

    def ahead() -> tuple[Tensor, ...]:
        y, _, block_states = forward(call, None, save=True)
        return y, block_states

    return Passes(call.inputs, ahead, lambda dy, block_states: backward(call, block_states, dy, None), B * T * H)


def size_of(shape: tuple[int, int, int, int]) -> str:
    _, T, _, K = shape
    return f"bf16 T={T} K=V={K}"
