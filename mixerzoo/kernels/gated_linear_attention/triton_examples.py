"""Launches of gated linear attention that stand for all, and what its bytes are counted of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ..check.bytes import Passes
from ..launch import Launch
from .schedule import Schedule, choose
from .triton_op import _outputs, backward, forward
from .triton_plan import operand_of, plan_call

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
    yield f"{size_of(COUNTED)} many heads", passes(q, k, v, log_f, "channel", heads=MANY)


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

    gate = tensor(H, K, dtype=torch.float32) if kind == "logits" else tensor(B, T, H, K if kind == "channel" else 1)
    cu_seqlens = tensor(9, dtype=torch.int32) if packed else None
    q, key, v, y = tensor(B, T, H, K), tensor(B, T, H, K), tensor(B, T, H, V), tensor(B, T, H, V)
    activation = "silu" if kind == "logits" else "none"
    call = plan_call(q, key, v, gate, cu_seqlens, 1.0, kind, activation, direction, schedule)
    label = f"{str(dtype).removeprefix('torch.')} {direction} B={B} T={T} H={H} K={K} V={V}{' packed' * packed}"
    if kind != "logits":
        label = f"gate per {kind} {label}"
    if schedule is not None:
        label += f" segment={schedule.segment or 'all'} BV={schedule.block_v}"
    _, state, states = _outputs(q, key, v, cu_seqlens, direction, save=True)
    if T == 1:
        return label, call.decode(y, state, state)
    gradients = {
        "dq": tensor(*q.shape),
        "dkey": tensor(*key.shape),
        "dv": tensor(*v.shape),
        "dgate": tensor(*[call.blocks] * (kind == "logits"), *gate.shape, dtype=state.dtype),
    }
    return label, call.forward(y, states, state, state) + call.backward(y, states, state, state, gradients)


def passes(
    q: Tensor, key: Tensor, v: Tensor, gate: Tensor, kind: str, activation: str = "none", *, heads: int = 1
) -> Passes:
    """Returns both passes of a causal call, laid out as for so many `heads`, which the given ones stand for."""
    (B, T, H, K), V = q.shape, v.shape[3]
    operand = operand_of(q.dtype, key.dtype, v.dtype)
    schedule = choose(T, B, heads, K, V, direction="causal", packed=False, operand=operand)
    call = plan_call(q, key, v, gate, None, 1.0, kind, activation, "causal", schedule)

    def ahead() -> tuple[Tensor, ...]:
        y, _, block_states = forward(call, None, save=True)
        return y, block_states

    inputs = [q, key, v, gate]
    return Passes(inputs, ahead, lambda dy, block_states: backward(call, block_states, dy, None), B * T * H)


def size_of(shape: tuple[int, int, int, int]) -> str:
    _, T, _, K = shape
    return f"bf16 T={T} K=V={K}"
