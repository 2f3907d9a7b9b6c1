"""A learned blend of all tokens, as MLP-Mixer's, as a plug-in: it looks both ways and has one length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerzoo.mixers.parts import Layout, Mixer, MixerSpec, Shared


class Blend(Mixer):
    """`y = W_o A W x` with a learned matrix A over time.

    Args:
        dim: width D.
        length: tokens T of every sequence.
    """

    spec = MixerSpec(
        paper="arXiv:2105.01601",
        equation="y = W_o A W x",
        family="convolution",
        ops=(),
        state="0",
        flops="2*T*params + 2*T**2*D",
        capabilities=frozenset({"bidirectional"}),
        cannot=frozenset({"backends", "length", "padding", "packing", "orders"}),
    )

    def __init__(self, dim: int = 1024, *, length: int = 64) -> None:
        super().__init__(dim, bidirectional=True)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.over_time = nn.Parameter(torch.empty(length, length))

    def reset_own_parameters(self) -> None:
        nn.init.normal_(self.over_time, std=self.over_time.shape[0] ** -0.5)

    def run(self, x: Tensor, layout: Layout, state: None, shared: Shared) -> tuple[Tensor, None]:
        return self.o_proj(self.over_time @ self.v_proj(x)), None
