"""An LSTM as a plug-in: a state of two tensors, and no input that leaves it as it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo.kernels.token_loop import token_loop
from mixerzoo.mixers.parts import Layout, LinearMixer, MixerSpec, Shared


class Cell(NamedTuple):
    """Output and memory, [B,D] each; also their shapes."""

    h: Tensor
    c: Tensor


class LSTM(LinearMixer):
    """`c_t = f_t c_{t-1} + i_t tanh(z_t)`, `h_t = o_t tanh(c_t)`, all four gates maps of x_t and h_{t-1}.

    Args:
        dim: width D.
        short_conv: 0, or the width of a causal convolution over the gates' logits.
        bidirectional: both directions, summed before the output map.
    """

    spec = MixerSpec(
        paper="doi:10.1162/neco.1997.9.8.1735",
        equation="c_t = f_t c_{t-1} + i_t tanh(z_t),  h_t = o_t tanh(c_t)",
        family="nonlinear",
        ops=(),
        state="2*D",
        flops="2*T*params + 8*T*D**2 + 10*T*D",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv", "flip_equivariant"}),
        cannot=frozenset({"backends"}),
    )

    def __init__(self, dim: int = 1024, *, short_conv: int = 0, bidirectional: bool = False) -> None:
        super().__init__(dim, 4 * dim, bidirectional=bidirectional, short_conv=short_conv)
        self.w = nn.Linear(dim, 4 * dim)
        self.r = nn.Parameter(torch.empty(4 * dim, dim))
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def reset_own_parameters(self) -> None:
        nn.init.orthogonal_(self.r)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.w(x),)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Cell | None, shared: Shared
    ) -> tuple[Tensor, Cell]:
        def step(x: Tensor, r: Tensor, cell: Cell) -> tuple[Tensor, Cell]:
            i, f, z, o = (x + cell.h @ r.mT).chunk(4, -1)
            c = f.sigmoid() * cell.c + i.sigmoid() * z.tanh()
            h = o.sigmoid() * c.tanh()
            return h, Cell(h, c)

        return token_loop(
            step,
            projected,
            memory,
            parameters=(self.r,),
            valid=layout.valid,
            cu_seqlens=layout.cu_seqlens,
            direction=self.direction,
        )

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(y)

    def memory_shape(self) -> Cell:
        return Cell((self.dim,), (self.dim,))
