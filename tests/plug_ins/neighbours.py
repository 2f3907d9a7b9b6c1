"""A gated convolution that knows both axes of an image, as a plug-in: HorNet's gnConv of order 1, without its norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.mixers.parts import Layout, LinearMixer, MixerSpec, RecurrentState, Shared


class Neighbours(LinearMixer):
    """`y = W_o (p * conv(a))`, `p, a = W x`: over a sequence causal, over an image in a window of both axes.

    Args:
        dim: width D.
        window: tokens that the convolution sees of a sequence, and rows and columns that it sees of an image; odd.
    """

    spec = MixerSpec(
        paper="arXiv:2207.14284",
        equation="y = W_o (p * conv(a)),  p, a = W x",
        family="convolution",
        ops=(),
        state="0",
        flops="2*T*params + T*D",
        capabilities=frozenset({"causal", "constant_state", "plane"}),
        cannot=frozenset({"backends"}),
    )

    def __init__(self, dim: int = 1024, *, window: int = 3) -> None:
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be odd, got {window}")
        super().__init__(dim, dim, bidirectional=False, short_conv=window)
        self.a_proj, self.p_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.below = nn.Parameter(torch.empty(window))  # how much of the window every row of an image has

    def reset_own_parameters(self) -> None:
        nn.init.ones_(self.below)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.a_proj(x), self.p_proj(x)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor | None]:
        a, p = projected
        return p * a * self.below.mean(), memory

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(y)

    def memory_shape(self) -> tuple[int, ...]:
        return (0,)

    def run(
        self, x: Tensor, layout: Layout, state: RecurrentState | None, shared: Shared
    ) -> tuple[Tensor, RecurrentState | None]:
        if layout.plane is None:
            return super().run(x, layout, state, shared)
        a, p = self.project(x)
        window = self.conv.width
        kernel = (self.below[:, None] * self.conv.weight[:, None]).unsqueeze(1)  # [D,1,window,window]
        image = a.unflatten(1, layout.plane).permute(0, 3, 1, 2)
        seen = F.conv2d(image, kernel, padding=window // 2, groups=self.dim)
        return self.readout(p * seen.permute(0, 2, 3, 1).flatten(1, 2), x), None
