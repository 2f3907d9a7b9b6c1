"""A selective state space layer as a plug-in: a convolution with a bias, and maps of what was convolved."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.mixers.parts import Layout, LinearMixer, MixerSpec, Shared


class Selective(LinearMixer):
    """`S_t = exp(-dt_t e^a) S_{t-1} + b_t (dt_t u_t)^T`, `y_t = W_o ((c_t S_t + d u_t) * SiLU(W_z x_t))`, u convolved.

    dt, b and c are maps of u; b and c are shared by all heads.

    Args:
        dim: width D.
        head_dim: channels P of a head; divides D.
        state_dim: width N of b and c.
        short_conv: the width of the convolution over u, then SiLU; 0: none.
        bidirectional: both directions, summed before the gate.
    """

    spec = MixerSpec(
        paper="arXiv:2405.21060",
        equation="S_t = exp(-dt_t e^a) S_{t-1} + b_t (dt_t u_t)^T",
        family="matrix state",
        ops=("gated_linear_attention",),
        state="D*N",
        flops="2*T*params + 5*T*D*N + 2*T*D",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv"}),
    )

    def __init__(
        self,
        dim: int = 1024,
        *,
        head_dim: int = 64,
        state_dim: int = 8,
        short_conv: int = 4,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            dim, dim, bidirectional=bidirectional, short_conv=short_conv, conv_activation="silu", conv_bias=True
        )
        if dim % head_dim:
            raise ValueError(f"head_dim must divide dim={dim}, got {head_dim}")
        heads = dim // head_dim
        self.head_dim, self.state_dim = head_dim, state_dim
        self.u_proj, self.z_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.bc_proj = nn.Linear(dim, 2 * state_dim, bias=False)
        self.dt_proj = nn.Linear(dim, heads)
        self.a, self.d = nn.Parameter(torch.empty(heads)), nn.Parameter(torch.empty(heads))

    @classmethod
    def fitted(cls, dim: int, head: int) -> dict[str, Any]:
        return {"head_dim": math.gcd(dim, head)}

    def reset_own_parameters(self) -> None:
        with torch.no_grad():
            self.a.copy_(torch.arange(1, len(self.a) + 1).log())
            self.d.fill_(1)
            self.dt_proj.bias.fill_(-2)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.u_proj(x),)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        (u,) = projected
        b, c = self.bc_proj(u).chunk(2, -1)
        dt = F.softplus(self.dt_proj(u).to(torch.promote_types(u.dtype, torch.float32)))
        heads = u.unflatten(-1, (-1, self.head_dim))
        y, memory = gated_linear_attention(
            c[:, :, None],
            b[:, :, None],
            heads * dt[..., None],
            (-dt * self.a.exp())[..., None],
            initial_state=memory,
            valid=layout.valid,
            cu_seqlens=layout.cu_seqlens,
            direction=self.direction,
        )
        return (y + self.d[:, None] * heads).flatten(-2), memory

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(y.to(x.dtype) * F.silu(self.z_proj(x)))

    def memory_shape(self) -> tuple[int, ...]:
        return self.dim // self.head_dim, self.state_dim, self.head_dim

    def letters(self) -> dict[str, float]:
        return {"N": self.state_dim}
