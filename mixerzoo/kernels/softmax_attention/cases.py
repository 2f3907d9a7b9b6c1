"""Inputs of softmax attention for tests, benchmarks and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..sampling import DOCUMENTS, LENGTHS, OpFacts, Sampler, packed_sizes

FACTS = OpFacts(
    in_time=("q", "k", "v"),
    recurrent=False,
    variants=({}, {"causal": False}, {"window": 5}, {"H": 4, "G": 2}),
    small=tuple(
        {"H": 2, "G": 1, "K": 3, "V": 2, **options}
        for options in ({}, {"causal": False}, {"window": 2}, {"S": 7}, {"cu_seqlens": (0, 5)})
    ),
)

CASES: dict[str, dict[str, Any]] = {
    **{f"T={length}": {"B": 1, "T": length} for length in LENGTHS},
    "all-see-all": {"causal": False},
    "grouped": {"H": 4, "G": 2},
    "window": {"window": 5},
    "window-both-ways": {"window": 5, "causal": False},
    "packed": {"cu_seqlens": DOCUMENTS},
    "packed-window": {"cu_seqlens": DOCUMENTS, "window": 5},
    "packed-all-see-all": {"cu_seqlens": DOCUMENTS, "causal": False},
    "cache": {"T": 7, "S": 65, "H": 4, "G": 2},
    "cache-window": {"T": 7, "S": 65, "window": 9},
    "no-key-in-sight": {"T": 7, "S": 65, "padding": 65},
    "logits-30": {"logits": 30.0},
}


def make_inputs(
    B: int = 2,
    T: int = 65,
    H: int = 2,
    K: int = 6,
    V: int = 5,
    *,
    S: int | None = None,
    G: int | None = None,
    padding: int = 3,
    logits: float | None = None,
    causal: bool = True,
    window: int | None = None,
    cu_seqlens: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Draws keyword arguments of `softmax_attention`. `logits` is the largest |logit|. `cu_seqlens` sets B and T.

    S: number of keys, T by default; otherwise the queries are the last T of S positions, and the last `padding` keys of
    row 0 are absent. G: kv heads, H by default."""
    sample = Sampler(dtype, device, seed)
    B, T, _ = packed_sizes(B, T, cu_seqlens)
    keys, groups = S or T, G or H
    inputs: dict[str, Any] = {
        "q": sample.normal(B, T, H, K),
        "k": sample.normal(B, keys, groups, K),
        "v": sample.normal(B, keys, groups, V),
        "causal": causal,
        "window": window,
    }
    if logits is not None:
        k = inputs["k"].repeat_interleave(H // groups, 2)
        largest = torch.einsum("bthk,bshk->bhts", inputs["q"], k).abs().max()
        inputs["scale"] = logits / float(largest)
    if S is not None:
        position = torch.arange(S, device=device).repeat(B, 1)
        inputs["query_position"] = position[:, -T:]
        inputs["key_position"] = position.clone()
        inputs["key_position"][0, -padding:] = -1
    return inputs | sample.sequences(B, T, cu_seqlens, padded=False)
