"""Inputs of gated linear attention for tests, benchmarks and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..sampling import DECAY_CASES, DOCUMENTS, RECURRENT_CASES, OpFacts, Sampler, packed_sizes, state_shape

FACTS = OpFacts(
    in_time=("q", "k", "v", "log_f"),
    variants=({}, {"gate_per_head": True}, {"H": 4, "kv_heads": 2}, {"H": 4, "qk_heads": 2}),
    small=(
        {"K": 6, "V": 7, "H": 1},  # matrix products over chunks
        {"K": 2, "V": 3},  # a scan over small states
        {"K": 6, "V": 7, "H": 1, "gate_per_head": True},
        {"K": 6, "V": 7, "H": 2, "kv_heads": 1},
        {"K": 2, "V": 3, "H": 2, "qk_heads": 1},
    ),
)

SIZES: dict[str, dict[str, Any]] = {
    "K=1,V=1": {"K": 1, "V": 1},
    "K=3,V=5": {"K": 3, "V": 5},
    "K=256,V=1": {"B": 1, "H": 1, "K": 256, "V": 1},
    "K=1,V=256": {"B": 1, "H": 1, "K": 1, "V": 256},
    "K=2,V=3,packed": {"K": 2, "V": 3, "cu_seqlens": DOCUMENTS},
}
HEADS: dict[str, dict[str, Any]] = {
    "grouped-queries": {"T": 70, "B": 1, "H": 4, "kv_heads": 2},
    "one-key": {"T": 9, "H": 2, "kv_heads": 1, "direction": "both"},
    "grouped-queries-small": {"T": 9, "H": 4, "kv_heads": 2, "K": 3, "V": 5},
    "grouped-queries-packed": {"H": 2, "kv_heads": 1, "cu_seqlens": (0, 0, 1, 7, 20)},
    "shared-keys": {"T": 70, "B": 1, "H": 4, "qk_heads": 2},
    "shared-keys-packed": {"H": 2, "qk_heads": 1, "cu_seqlens": (0, 0, 1, 7, 20)},
    "shared-keys-small": {"T": 9, "H": 4, "qk_heads": 2, "K": 3, "V": 5, "direction": "both"},
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
    **HEADS,
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
    gate_per_head: bool = False,
    decay: str = "mild",
    padded: bool = False,
    initial_state: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    direction: str = "causal",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Draws keyword arguments of `gated_linear_attention`; decay as for the gated scan. `cu_seqlens` sets B and T.

    kv_heads: heads of k, v and gate, H by default (grouped-query attention). qk_heads: of q and k (Mamba-2)."""
    sample = Sampler(dtype, device, seed)
    B, T, sequences = packed_sizes(B, T, cu_seqlens)
    states = kv_heads or H
    inputs: dict[str, Any] = {
        "q": sample.normal(B, T, qk_heads or H, K),
        "k": sample.normal(B, T, qk_heads or states, K),
        "v": sample.normal(B, T, states, V),
        "log_f": sample.log_gates(decay, B, T, states, 1 if gate_per_head else K),
        "scale": K**-0.5,
        "direction": direction,
    }
    if initial_state:
        inputs["initial_state"] = sample.normal(*state_shape(direction, sequences, states, K, V))
    return inputs | sample.sequences(B, T, cu_seqlens, padded)
