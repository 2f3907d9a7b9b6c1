"""Inputs of the HGRN2 recurrence for tests, benchmarks and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..gated_linear_attention.cases import HEADS, SIZES
from ..sampling import DOCUMENTS, RECURRENT_CASES, OpFacts, Sampler, packed_sizes, state_shape

FACTS = OpFacts(
    in_time=("q", "logits", "v"),
    variants=({}, {"H": 4, "kv_heads": 2}, {"H": 4, "qk_heads": 2}),
    small=({"K": 6, "V": 7, "H": 1}, {"K": 2, "V": 3}, {"K": 6, "V": 7, "H": 2, "kv_heads": 1}),
)

CASES: dict[str, dict[str, Any]] = {
    **RECURRENT_CASES,
    **SIZES,
    **HEADS,
    **{f"gamma={gamma}": {"gamma": gamma} for gamma in (0.0, 0.5, 0.99)},
    **{f"logits-30,gamma={gamma}": {"logits": (-30.0, 0.0, 30.0), "gamma": gamma} for gamma in (0.0, 0.5, 0.99)},
    "logits-inf": {"logits": (-1e4, 0.0, 1e4, float("inf")), "gamma": 0.0},
    "packed-logits-inf": {"logits": (-1e4, 0.0, 1e4, float("inf")), "cu_seqlens": DOCUMENTS},
}


def make_inputs(
    B: int = 2,
    T: int = 65,
    H: int = 2,
    K: int = 6,
    V: int = 9,
    *,
    kv_heads: int | None = None,
    qk_heads: int | None = None,
    gamma: float | None = None,
    padded: bool = False,
    logits: Sequence[float] | None = None,
    initial_state: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    direction: str = "causal",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Draws keyword arguments of `hgrn2`; heads and packing as for `gated_linear_attention`.

    The lower bound is gamma everywhere, or differs by channel. `logits` are drawn from the given values, or normal
    around 2."""
    sample = Sampler(dtype, device, seed)
    B, T, sequences = packed_sizes(B, T, cu_seqlens)
    states = kv_heads or H
    gates = qk_heads or states
    inputs: dict[str, Any] = {
        "q": sample.normal(B, T, qk_heads or H, K),
        "logits": sample.normal(B, T, gates, K) + 2 if logits is None else sample.choice(logits, B, T, gates, K),
        "v": sample.normal(B, T, states, V),
        "lower_bound": sample.normal(gates, K).sigmoid(),
        "scale": K**-0.5,
        "direction": direction,
    }
    if gamma is not None:
        inputs["lower_bound"].fill_(gamma)
    if initial_state:
        inputs["initial_state"] = sample.normal(*state_shape(direction, sequences, states, K, V))
    return inputs | sample.sequences(B, T, cu_seqlens, padded)
