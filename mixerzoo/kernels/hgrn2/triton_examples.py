"""Launches of HGRN2, gated linear attention's on logits, that stand for all, and what its bytes are counted of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from ..check.bytes import Passes
from ..gated_linear_attention.schedule import candidates
from ..gated_linear_attention.triton_examples import COUNTED, MANY, ROWS, example, passes, size_of
from ..gated_linear_attention.triton_plan import Call
from ..launch import Launch

WIDTHS = ((128, 128), (64, 64), (32, 32), (16, 16), (1, 1), (100, 60), (33, 33), (64, 128), (256, 256))
LONG, IMAGE, TOKEN = (1, 8192, 4), (128, 196, 6), (64, 1, 16)
SINGLE = ("logits", torch.bfloat16, "causal")


def examples() -> Iterator[tuple[str, list[Launch]]]:
    """Yields (configuration, its launches forward and backward), tensors on `meta`."""
    for K, V in WIDTHS:
        yield example(*SINGLE, ROWS, K, V)
    for K, direction in product((128, 64), ("reverse", "both")):
        yield example("logits", torch.bfloat16, direction, ROWS, K, K)
    yield example("logits", torch.bfloat16, "both", ROWS, 150, 200)
    yield example("logits", torch.float16, "causal", ROWS, 64, 64)
    for K, direction in product((128, 64), ("causal", "both")):
        yield example("logits", torch.float32, direction, ROWS, K, K)
    for schedule in candidates(LONG[1], 128, 128, operand=torch.bfloat16):
        yield example(*SINGLE, LONG, 128, 128, schedule=schedule)
    yield example(*SINGLE, LONG, 128, 128, packed=True)
    yield example("logits", torch.bfloat16, "both", IMAGE, 64, 64)
    for K in (128, 64):
        yield example(*SINGLE, TOKEN, K, K)


def counted() -> Iterator[tuple[str, Passes]]:
    """Yields (inputs, passes to count the bytes of)."""
    q, logits, v = torch.full((3, *COUNTED), -0.5, dtype=torch.bfloat16)
    lower_bound = torch.full((COUNTED[2], COUNTED[3]), 0.5)
    call = Call(q, v, logits=logits, lower_bound=lower_bound)
    for name, heads in (("many", MANY), ("few", 1)):
        yield f"{size_of(COUNTED)} {name} heads", passes(call, heads)
