"""HGRN's forget gate and the lower bounds that grow with depth (arXiv:2311.04823, section 3.3)."""

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
        self.logits = nn.Parameter(torch.ones(depth, dim))

    def forward(self) -> Tensor:
        """[L,D], row k for layer k; row 0 is a constant zero."""
        shares = self.logits.float().softmax(0) if self.logits.dtype != torch.float64 else self.logits.softmax(0)
        added = shares[1:] if self.convention == "skip_first" else shares[:-1]
        return torch.cat([torch.zeros_like(shares[:1]), added.cumsum(0)])


def bounded_gate(x: Tensor, lower_bound: Tensor | float) -> tuple[Tensor, Tensor]:
    """(1 - f, log f) of `f = gamma + (1-gamma) sigmoid(x)`, in fp32 at least, both exact for f near 0 and near 1."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    k = (1 - lower_bound) * (-x).sigmoid()
    f = lower_bound + (1 - lower_bound) * x.sigmoid()
    # Each branch is kept finite where the other is taken: an infinite slope times zero would be a NaN gradient.
    log_f = torch.where(k < 0.5, torch.log1p(-k.clamp(max=0.5)), f.clamp(min=torch.finfo(f.dtype).tiny).log())
    return k, log_f
