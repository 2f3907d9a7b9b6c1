"""Random inputs that the cases of all ops are made of, and the facts that an op's `cases.py` states about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    "from-start": {"initial_state": False},
    **{direction: {"direction": direction} for direction in ("reverse", "both")},
    "packed": {"cu_seqlens": DOCUMENTS},
    "packed-from-start": {"cu_seqlens": DOCUMENTS, "initial_state": False},
    "packed-both": {"cu_seqlens": DOCUMENTS, "direction": "both"},
}
DECAY_CASES: dict[str, dict[str, Any]] = {
    **{f"decay-{decay}": {"decay": decay} for decay in LOG_GATES},
    "packed-closed": {"cu_seqlens": DOCUMENTS, "decay": "closed"},
}


@dataclass(frozen=True)
class OpFacts:
    """States what an op is, so that the laws that hold for it are tried on it, and no other.

    in_time: its inputs [B,T,...]. recurrent: it has a state, a direction and padding, with the signature of
    `gated_linear_attention`; the laws of recurrences are tried. variants: arguments of `make_inputs` for each of the
    op's forms that all laws are tried on. small: arguments for the forms whose gradients are compared with differences.
    """

    in_time: tuple[str, ...]
    recurrent: bool = True
    variants: tuple[Mapping[str, Any], ...] = ({},)
    small: tuple[Mapping[str, Any], ...] = field(default=({},))


class Sampler:
    """Draws random tensors that are the same on every device, and up to rounding in every dtype."""

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

    def sequences(self, B: int, T: int, cu_seqlens: Sequence[int] | None, padded: bool) -> dict[str, Tensor]:
        """Draws `cu_seqlens` or `valid`, padding anywhere; in the first row on the left and the right."""
        if cu_seqlens is not None:
            return {"cu_seqlens": torch.tensor(cu_seqlens, device=self.device)}
        if not padded:
            return {}
        valid = torch.rand(B, T, generator=self.generator) < 0.7
        valid[0] = (torch.arange(T) >= T // 4) & (torch.arange(T) < T - T // 4)
        return {"valid": valid.to(self.device)}

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)


def packed_sizes(B: int, T: int, cu_seqlens: Sequence[int] | None) -> tuple[int, int, int]:
    """Returns (B, T, number of sequences) of a batch, or of the row that `cu_seqlens` describes."""
    return (B, T, B) if cu_seqlens is None else (1, cu_seqlens[-1], len(cu_seqlens) - 1)


def state_shape(direction: str, *shape: int) -> tuple[int, ...]:
    return (2, *shape) if direction == "both" else shape
