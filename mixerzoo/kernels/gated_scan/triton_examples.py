"""Launches of the gated scan that stand for all, with and without a state, and what its bytes are counted of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from ..check.bytes import Passes
from ..launch import Launch
from .triton_op import backward, forward
from .triton_plan import Call

MANY, FEW, ODD = (8, 2048, 2048), (1, 8192, 1024), (1, 300, 77)
COUNTED = (1, 2048, 128)
DIRECTIONS = ("causal", "reverse", "both")


def examples() -> Iterator[tuple[str, list[Launch]]]:
    """Yields (configuration, its launches forward and backward), tensors on `meta`."""
    for shape, direction in product((MANY, FEW), DIRECTIONS):
        yield _example(shape, direction, torch.bfloat16, "real")
        for theta in ("theta [D]", "theta [B,T,D]"):
            yield _example(shape, direction, torch.float32, theta)
    for dtype in (torch.float16, torch.float32):
        yield _example(MANY, "causal", dtype, "real")
    for theta in ("real", "theta [D]"):
        yield _example(FEW, "both", torch.float32, theta, packed=True)
        yield _example(ODD, "causal", torch.float32, theta, packed=True)


def counted() -> Iterator[tuple[str, Passes]]:
    """Yields (inputs, passes to count the bytes of)."""
    _, T, D = COUNTED
    x, log_f = torch.full((2, *COUNTED), -0.5, dtype=torch.bfloat16)
    call = Call(x, log_f, None, None, "causal")

    def ahead() -> tuple[torch.Tensor, ...]:
        h, _, carries = forward(call, None)
        return h, carries

    yield f"bf16 T={T} D={D}", Passes([x, log_f], ahead, lambda dh, carries: backward(call, dh, None, carries), T)


def _example(
    shape: tuple[int, int, int], direction: str, dtype: torch.dtype, theta: str, *, packed: bool = False
) -> tuple[str, list[Launch]]:
    """A packed row comes with states."""
    B, T, D = shape

    def tensor(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    x_dtype = dtype if theta == "real" else dtype.to_complex()
    x, log_f, dh = tensor(B, T, D, dtype=x_dtype), tensor(B, T, D), tensor(B, T, D, dtype=x_dtype)
    angles = {"real": None, "theta [D]": tensor(D), "theta [B,T,D]": tensor(B, T, D)}[theta]
    cu_seqlens = tensor(9, dtype=torch.int32) if packed else None
    call = Call(x, log_f, angles, cu_seqlens, direction)
    h, final_state, carries = call.outputs(None)
    state = torch.empty_like(final_state) if packed else None
    launches = call.forward(state, h, final_state, carries)
    launches += call.backward(dh, state, carries, call.gradients(carries))
    name = str(x_dtype).removeprefix("torch.")
    sizes = f"B={B} T={T} D={D}"
    return f"{name} {theta} {direction} {sizes}{' packed' * packed}", launches
