"""A leaky average whose memory starts at a learned value, as a plug-in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.mixers.parts import Layout, LinearMixer, MixerSpec, Shared


class Leaky(LinearMixer):
    """`h_t = f h_{t-1} + (1-f) W x_t`, `y_t = W_o h_t`, h_0 and f learned per channel.

    Args:
        dim: width D.
        short_conv: 0, or the width of a causal convolution over W x.
        bidirectional: both directions from one h_0, summed before the output map.
    """

    spec = MixerSpec(
        paper="none",
        equation="h_t = f h_{t-1} + (1-f) W x_t",
        family="vector state",
        ops=("gated_scan",),
        state="D",
        flops="2*T*params + 3*T*D",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv", "flip_equivariant"}),
    )

    def __init__(self, dim: int = 1024, *, short_conv: int = 0, bidirectional: bool = False) -> None:
        super().__init__(dim, dim, bidirectional=bidirectional, short_conv=short_conv)
        self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.decay, self.h_0 = (nn.Parameter(torch.empty(dim)) for _ in range(2))

    def reset_own_parameters(self) -> None:
        with torch.no_grad():
            self.decay.copy_(torch.linspace(0, 6, self.dim))
            self.h_0.fill_(0.5)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.v_proj(x),)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        v = projected[0] * (-self.decay).sigmoid()
        log_f = nn.functional.logsigmoid(self.decay).expand_as(v)
        return gated_scan(
            v,
            log_f,
            initial_state=memory,
            valid=layout.valid,
            cu_seqlens=layout.cu_seqlens,
            direction=self.direction,
        )

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(y.to(x.dtype))

    def memory_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def start(self, like: Tensor) -> Tensor:
        return self.h_0.to(like)
