"""Inputs of the gated scan for tests, benchmarks and docs, and what every recurrent op's cases have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTHS = (1, 7, 63, 64, 65, 130, 200)
DOCUMENTS = (0, 0, 1, 64, 64, 130, 130)  # cu_seqlens with empty documents first, between and last
LOG_GATES = {
    "open": (0.0,),
    "strong": (0.0, -1e-6, -1.0, -30.0, -1e4),
    "closed": (0.0, -1.0, -1e4, float("-inf")),
}
RECURRENT_CASES: dict[str, dict[str, Any]] = {
    **{f"T={length}": {"T": length} for length in LENGTHS},
    "from-zero": {"initial_state": False},
    **{direction: {"direction": direction} for direction in ("reverse", "both")},
    "packed": {"cu_seqlens": DOCUMENTS},
    "packed-from-zero": {"cu_seqlens": DOCUMENTS, "initial_state": False},
    "packed-both": {"cu_seqlens": DOCUMENTS, "direction": "both"},
}
DECAY_CASES: dict[str, dict[str, Any]] = {
    **{f"decay-{decay}": {"decay": decay} for decay in LOG_GATES},
    "packed-closed": {"cu_seqlens": DOCUMENTS, "decay": "closed"},
}
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
    initial_state: bool = True,
    cu_seqlens: Sequence[int] | None = None,
    direction: str = "causal",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of `gated_scan`; decay is "mild" or a key of LOG_GATES. `cu_seqlens` sets B and T."""
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
    return inputs | sample.packing(cu_seqlens)


class Sampler:
    """Random tensors that are the same on every device, and up to rounding in every dtype."""

    def __init__(self, dtype: torch.dtype, device: str | torch.device, seed: int) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return self._place(torch.randn(shape, generator=self.generator, dtype=torch.float64))

    def complex(self, *shape: int) -> Tensor:
        # torch has no complex arithmetic in half precision.
        return torch.view_as_complex(self.normal(*shape, 2).to(torch.promote_types(self.dtype, torch.float32)))

    def choice(self, values: Sequence[float], *shape: int) -> Tensor:
        index = torch.randint(len(values), shape, generator=self.generator)
        return self._place(torch.tensor(values, dtype=torch.float64)[index])

    def log_gates(self, decay: str, *shape: int) -> Tensor:
        return F.logsigmoid(self.normal(*shape) + 2) if decay == "mild" else self.choice(LOG_GATES[decay], *shape)

    def packing(self, cu_seqlens: Sequence[int] | None) -> dict[str, Tensor]:
        return {} if cu_seqlens is None else {"cu_seqlens": torch.tensor(cu_seqlens, device=self.device)}

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)


def packed_sizes(B: int, T: int, cu_seqlens: Sequence[int] | None) -> tuple[int, int, int]:
    """(B, T, number of sequences) of a batch, or of the row that `cu_seqlens` describes."""
    return (B, T, B) if cu_seqlens is None else (1, cu_seqlens[-1], len(cu_seqlens) - 1)


def state_shape(direction: str, *shape: int) -> tuple[int, ...]:
    return (2, *shape) if direction == "both" else shape
