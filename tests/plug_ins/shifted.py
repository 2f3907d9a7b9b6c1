"""A mixer with a token shift that reads a value of the model's first layer, as a plug-in; it starts by its depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.mixers.parts import FirstValue, Layout, LinearMixer, MixerSpec, RecurrentState, Shared, TokenShift


class Shifted(LinearMixer):
    """`h_t = f_t h_{t-1} + (1-f_t) v_t`, v and f maps of x_t and x_{t-1}, v mixed with that of the first layer.

    Args:
        dim: width D.
        bidirectional: both directions, summed before the output map.
    """

    spec = MixerSpec(
        paper="none",
        equation="h_t = f_t h_{t-1} + (1-f_t) v_t",
        family="vector state",
        ops=("gated_scan",),
        state="D",
        flops="2*T*params + 8*T*D",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "depth_shared"}),
    )
    depth_shared = (FirstValue,)

    def __init__(self, dim: int = 1024, *, bidirectional: bool = False) -> None:
        super().__init__(dim, bidirectional=bidirectional, before=TokenShift(dim))
        self.v_proj, self.f_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.of_v, self.of_f, self.share = (nn.Parameter(torch.empty(dim)) for _ in range(3))

    def reset_own_parameters(self) -> None:
        with torch.no_grad():
            self.of_v.fill_((self.layer + 1) / (self.depth + 1))
            self.of_f.copy_(torch.linspace(0, 1, self.dim))
            self.share.fill_(0.25)

    def place(self, layer: int, depth: int) -> None:
        super().place(layer, depth)
        self.reset_own_parameters()

    def value(self, x: Tensor) -> Tensor:
        now, before = x.chunk(2, -1)
        return self.v_proj(now + self.of_v * (before - now))

    def first_value(self, x: Tensor, layout: Layout, state: RecurrentState | None) -> Tensor:
        seen, _ = self.before(x, None if state is None else state.conv[0], layout)
        return self.value(seen)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        now, before = x.chunk(2, -1)
        return self.value(x), self.f_proj(now + self.of_f * (before - now))

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        v, logits = projected
        v = v + self.share * (shared.get("first_value", v.square()) - v)
        log_f = F.logsigmoid(logits.to(torch.promote_types(v.dtype, torch.float32)))
        return gated_scan(
            v * (-logits).sigmoid(),
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
