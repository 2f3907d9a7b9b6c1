"""HGRN's lower bounds of the forget gate, which grow with depth (arXiv:2311.04823, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import check_choice


class LowerBounds(nn.Module):
    """Gamma: [L,D] learnable, P = softmax over the L layers; layer k = 0..L-1 gets a sum of rows of P, in [0, 1).

    The sources disagree on which rows (not checkpoint-compatible, equal at the start: gamma_k = k/L):

        skip_first    gamma_k = P_1 + ... + P_k        the authors' language models, flash-linear-attention
        skip_last     gamma_k = P_0 + ... + P_{k-1}    the authors' ImageNet and Long Range Arena models
    """

    def __init__(self, depth: int, dim: int, convention: str = "skip_first") -> None:
        super().__init__()
        check_choice("lower bound convention", convention, ("skip_first", "skip_last"))
        self.convention = convention
        self.logits = nn.Parameter(torch.empty(depth, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.logits)

    def forward(self) -> Tensor:
        """[L,D], row k for layer k; row 0 is zero, with a zero gradient: of a stack cut to one layer none is unused."""
        shares = self.logits.float().softmax(0) if self.logits.dtype != torch.float64 else self.logits.softmax(0)
        added = shares[1:] if self.convention == "skip_first" else shares[:-1]
        return torch.cat([0 * shares[:1], added.cumsum(0)])
