"""Launches of linear attention that stand for all: widths, gates, directions, dtypes and schedules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from mixerzoo.kernels.launch import Launch

from .schedule import Schedule, candidates
from .triton_op import _outputs
from .triton_plan import plan_call

WIDTHS = ((128, 128), (64, 64), (32, 32), (16, 16), (1, 1), (100, 60), (33, 33), (64, 128), (256, 256))
ROWS, LONG, IMAGE, TOKEN = (8, 2048, 16), (1, 8192, 4), (128, 196, 6), (64, 1, 16)
SINGLE = ("hgrn2", torch.bfloat16, "causal")


def examples() -> Iterator[tuple[str, list[Launch]]]:
    """(what it is, its launches forward and backward), tensors on `meta`."""
    for K, V in WIDTHS:
        yield _example(*SINGLE, ROWS, K, V)
    for K, direction in product((128, 64), ("reverse", "both")):
        yield _example("hgrn2", torch.bfloat16, direction, ROWS, K, K)
    yield _example("hgrn2", torch.bfloat16, "both", ROWS, 150, 200)
    for K, gate in product((128, 64), ("channel", "head")):
        yield _example(f"gated_linear_attention gate per {gate}", torch.bfloat16, "causal", ROWS, K, K)
    yield _example("hgrn2", torch.float16, "causal", ROWS, 64, 64)
    for K, direction in product((128, 64), ("causal", "both")):
        yield _example("hgrn2", torch.float32, direction, ROWS, K, K)
    for gate in ("channel", "head"):
        yield _example(f"gated_linear_attention gate per {gate}", torch.float32, "causal", ROWS, 64, 64)
    for schedule in candidates(LONG[1], 128, 128, operand=torch.bfloat16):
        yield _example(*SINGLE, LONG, 128, 128, schedule=schedule)
    yield _example(*SINGLE, LONG, 128, 128, packed=True)
    yield _example("hgrn2", torch.bfloat16, "both", IMAGE, 64, 64)
    for K in (128, 64):
        yield _example(*SINGLE, TOKEN, K, K)


def _example(
    name: str,
    dtype: torch.dtype,
    direction: str,
    shape: tuple[int, int, int],
    K: int,
    V: int,
    *,
    packed: bool = False,
    schedule: Schedule | None = None,
) -> tuple[str, list[Launch]]:
    B, T, H = shape

    def tensor(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    kind = "logits" if name == "hgrn2" else name.split()[-1]
    gate = tensor(H, K, dtype=torch.float32) if kind == "logits" else tensor(B, T, H, K if kind == "channel" else 1)
    cu_seqlens = tensor(9, dtype=torch.int32) if packed else None
    q, key, v, y = tensor(B, T, H, K), tensor(B, T, H, K), tensor(B, T, H, V), tensor(B, T, H, V)
    activation = "silu" if kind == "logits" else "none"
    call = plan_call(q, key, v, gate, cu_seqlens, 1.0, kind, activation, direction, schedule)
    label = f"{name} {str(dtype).removeprefix('torch.')} {direction} B={B} T={T} H={H} K={K} V={V}{' packed' * packed}"
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
