"""Inputs of the HGRN2 recurrence for tests, benchmarks and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixerzoo.kernels.gated_linear_attention.cases import SIZES
from mixerzoo.kernels.gated_scan.cases import DOCUMENTS, RECURRENT_CASES, Sampler, packed_sizes, state_shape

CASES: dict[str, dict[str, Any]] = {
    **RECURRENT_CASES,
    **SIZES,
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
    gamma: float | None = None,
    logits: Sequence[float] | None = None,
    initial_state: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    direction: str = "causal",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of `hgrn2`. The lower bound is gamma everywhere, or differs by channel; `logits` are drawn from
    the given values, or normal around 2. `cu_seqlens` sets B and T."""
    sample = Sampler(dtype, device, seed)
    B, T, sequences = packed_sizes(B, T, cu_seqlens)
    inputs: dict[str, Any] = {
        "q": sample.normal(B, T, H, K),
        "x": sample.normal(B, T, H, K) + 2 if logits is None else sample.choice(logits, B, T, H, K),
        "v": sample.normal(B, T, H, V),
        "lower_bound": sample.normal(H, K).sigmoid(),
        "scale": K**-0.5,
        "direction": direction,
    }
    if gamma is not None:
        inputs["lower_bound"].fill_(gamma)
    if initial_state:
        inputs["initial_state"] = sample.normal(*state_shape(direction, sequences, H, K, V))
    return inputs | sample.packing(cu_seqlens)
