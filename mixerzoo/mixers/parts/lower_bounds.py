"""HGRN's lower bounds of the forget gate, which grow with depth (arXiv:2311.04823, section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_choice
from .depth_shared import DepthShared

CONVENTIONS = ("skip_first", "skip_last", "decreasing", "random")
FARTHEST = 1e-3  # a random bound stays that far from 0 and 1 at the start


class LowerBounds(DepthShared):
    """Gives layer k = 0..L-1 a sum of rows of P in [0, 1), P = softmax over the L layers of learnable Gamma: [L,D].

    The sources disagree on which rows (not checkpoint-compatible, equal at the start: gamma_k = k/L):

        skip_first    gamma_k = P_1 + ... + P_k        the authors' language models, flash-linear-attention
        skip_last     gamma_k = P_0 + ... + P_{k-1}    the authors' ImageNet and Long Range Arena models

    Two more are controls, for the question whether it matters that the bounds grow (HGRN's ablation names them without
    their equations, so these are ours):

        decreasing    skip_first's bounds in the opposite order: the first layer has the largest, the last has 0
        random        gamma_k = sigmoid(Gamma_k), Gamma drawn so that every gamma_k starts uniform in (0, 1)
    """

    name = "lower_bound"
    attribute = "lower_bounds"

    def __init__(self, depth: int, dim: int, convention: str = "skip_first") -> None:
        super().__init__()
        check_choice("lower bound convention", convention, CONVENTIONS)
        self.convention = convention
        self.logits = nn.Parameter(torch.empty(depth, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.convention == "random":
            with torch.no_grad():
                self.logits.uniform_(FARTHEST, 1 - FARTHEST).logit_()
        else:
            nn.init.ones_(self.logits)

    def forward(self) -> Tensor:
        """Returns [L,D], row k for layer k. A row of zeros has a zero gradient, so that none is unused."""
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        if self.convention == "random":
            return logits.sigmoid()
        shares = logits.softmax(0)
        added = shares[:-1] if self.convention == "skip_last" else shares[1:]
        bounds = torch.cat([0 * shares[:1], added.cumsum(0)])
        return bounds.flip(0) if self.convention == "decreasing" else bounds

    def begin(self) -> Tensor:
        return self()

    def at(self, carried: Tensor | None, layer: int, block: Any, x: Tensor, **ways: Any) -> tuple[Tensor, Tensor]:
        assert carried is not None
        return carried[layer], carried
