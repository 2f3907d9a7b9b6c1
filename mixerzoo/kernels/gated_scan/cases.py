"""Inputs of the gated scan for tests, benchmarks and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..sampling import DECAY_CASES, RECURRENT_CASES, OpFacts, Sampler, packed_sizes, state_shape

FACTS = OpFacts(
    in_time=("x", "log_f", "theta"),
    variants=({}, {"complex": True}, {"complex": True, "theta_per_token": True}),
    small=({"D": 3}, {"D": 2, "complex": True}),
)
CASES: dict[str, dict[str, Any]] = {
    f"{number}-{name}": {**arguments, "complex": number == "complex"}
    for number in ("real", "complex")
    for name, arguments in (RECURRENT_CASES | DECAY_CASES).items()
} | {"theta-per-token": {"complex": True, "theta_per_token": True}}


def make_inputs(
    B: int = 2,
    T: int = 65,
    D: int = 5,
    *,
    complex: bool = False,
    theta_per_token: bool = False,
    decay: str = "mild",
    padded: bool = False,
    initial_state: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    direction: str = "causal",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Draws keyword arguments of `gated_scan`; decay is "mild" or a key of LOG_GATES. `cu_seqlens` sets B and T."""
    sample = Sampler(dtype, device, seed)
    B, T, sequences = packed_sizes(B, T, cu_seqlens)
    states = state_shape(direction, sequences, D)
    inputs: dict[str, Any] = {
        "x": sample.complex(B, T, D) if complex else sample.normal(B, T, D),
        "log_f": sample.log_gates(decay, B, T, D),
        "direction": direction,
    }
    if complex:
        inputs["theta"] = sample.normal(B, T, D) if theta_per_token else sample.normal(D)
    if initial_state:
        inputs["initial_state"] = sample.complex(*states) if complex else sample.normal(*states)
    return inputs | sample.sequences(B, T, cu_seqlens, padded)
