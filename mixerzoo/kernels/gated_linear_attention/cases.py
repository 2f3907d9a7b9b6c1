"""Inputs of gated linear attention for tests, benchmarks and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixerzoo.kernels.gated_scan.cases import (
    DECAY_CASES,
    DOCUMENTS,
    RECURRENT_CASES,
    Sampler,
    packed_sizes,
    state_shape,
)

SIZES: dict[str, dict[str, Any]] = {
    "K=1,V=1": {"K": 1, "V": 1},
    "K=3,V=5": {"K": 3, "V": 5},
    "K=256,V=1": {"B": 1, "H": 1, "K": 256, "V": 1},
    "K=1,V=256": {"B": 1, "H": 1, "K": 1, "V": 256},
    "K=2,V=3,packed": {"K": 2, "V": 3, "cu_seqlens": DOCUMENTS},
}
CASES: dict[str, dict[str, Any]] = {
    **RECURRENT_CASES,
    **DECAY_CASES,
    **SIZES,
    "gate-per-head": {"gate_per_head": True},
    "gate-per-head-closed": {"gate_per_head": True, "decay": "closed"},
    "gate-per-head-packed": {"gate_per_head": True, "cu_seqlens": DOCUMENTS},
    "gate-per-head-both": {"gate_per_head": True, "direction": "both"},
    "gate-per-head-small": {"gate_per_head": True, "K": 3, "V": 5},
}


def make_inputs(
    B: int = 2,
    T: int = 65,
    H: int = 2,
    K: int = 6,
    V: int = 9,
    *,
    gate_per_head: bool = False,
    decay: str = "mild",
    initial_state: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    direction: str = "causal",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of `gated_linear_attention`; decay as for the gated scan. `cu_seqlens` sets B and T."""
    sample = Sampler(dtype, device, seed)
    B, T, sequences = packed_sizes(B, T, cu_seqlens)
    inputs: dict[str, Any] = {
        "q": sample.normal(B, T, H, K),
        "k": sample.normal(B, T, H, K),
        "v": sample.normal(B, T, H, V),
        "log_f": sample.log_gates(decay, B, T, H, 1 if gate_per_head else K),
        "scale": K**-0.5,
        "direction": direction,
    }
    if initial_state:
        inputs["initial_state"] = sample.normal(*state_shape(direction, sequences, H, K, V))
    return inputs | sample.packing(cu_seqlens)
