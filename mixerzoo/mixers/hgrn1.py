"""HGRN: hierarchically gated recurrent network (Qin et al., arXiv:2311.04823)."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.pointwise import bounded_gate
from mixerzoo.kernels.validation import check_lower_bound

from .parts.checks import check_choice
from .parts.contract import Shared
from .parts.depth_shared import DepthShared
from .parts.frame import LinearMixer
from .parts.layout import Layout
from .parts.lower_bounds import LowerBounds
from .parts.norms import make_norm
from .parts.spec import MixerSpec


class HGRN1(LinearMixer):
    """`f = gamma + (1-gamma) sigmoid(W_f x)`, `h_t = f_t e^{i theta} h_{t-1} + (1-f_t) c_t`,
    `y_t = W_o (Norm([Re h_t; Im h_t]) * SiLU(W_g x_t))` with complex `c = SiLU(W_c x)`: the published model.

    theta is learned, starts at 10000^(-2j/dim) and does not depend on the data; gamma is the lower bound; the channels
    of W_c x alternate between real and imaginary part. 7 dim^2 parameters; 4 dim^2 with real h and c, without theta.

    Args:
        dim: width D.
        complex: complex or real state.
        output_gate: with or without the factor SiLU(W_g x).
        norm: layer | rms | srms | group, over [Re h; Im h].
        norm_eps: of that norm (flash-linear-attention's models: 1e-6).
        norm_order: norm_gate (every published module) | gate_norm (the paper's equation: Norm(h * gate)).
        lower_bound: a constant in [0, 1) in place of the stack's learned bounds; None: those, or 0 when built alone.
        bias: on every linear map.
        short_conv: 0, or the width (published: 4) of a causal convolution over gate logits and W_c x.
        bidirectional: both directions, each with its own theta, summed before the norm."""

    spec = MixerSpec(
        paper="arXiv:2311.04823",
        equation="h_t = f_t e^{i theta} h_{t-1} + (1-f_t) c_t,  y_t = W_o (Norm([Re h_t; Im h_t]) * SiLU(W_g x_t)),  "
        "f = gamma + (1-gamma) sigmoid(W_f x)",
        family="vector state",
        ops=("gated_scan",),
        state="2*D if complex else D",
        flops="2*T*params + (16*T*D if complex else 3*T*D)",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv", "depth_shared"}),
    )
    depth_shared: tuple[type[DepthShared], ...] = (LowerBounds,)

    def __init__(
        self,
        dim: int = 1024,
        *,
        complex: bool = True,
        output_gate: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        norm_order: str = "norm_gate",
        lower_bound: float | None = None,
        bias: bool = True,
        short_conv: int = 0,
        bidirectional: bool = False,
    ) -> None:
        width = 2 * dim if complex else dim
        super().__init__(dim, dim + width, bidirectional=bidirectional, short_conv=short_conv)
        check_choice("norm_order", norm_order, ("norm_gate", "gate_norm"))
        self.complex, self.norm_order, self.lower_bound = complex, norm_order, lower_bound or 0.0
        if lower_bound is not None:
            check_lower_bound(lower_bound)
            self.depth_shared = ()
        self.f_proj = nn.Linear(dim, dim, bias=bias)
        self.c_proj = nn.Linear(dim, width, bias=bias)
        self.g_proj = nn.Linear(dim, width, bias=bias) if output_gate else None
        self.norm = make_norm(norm, width, norm_eps)
        self.o_proj = nn.Linear(width, dim, bias=bias)
        if complex:
            self.theta, self.theta_reverse = self._new_theta(), self._new_theta() if bidirectional else None

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.f_proj(x), self.c_proj(x)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        logits, c = projected
        k, log_f = bounded_gate(logits, shared.get("lower_bound", self.lower_bound))
        c = F.silu(c).to(k.dtype)
        scan = functools.partial(gated_scan, valid=layout.valid, cu_seqlens=layout.cu_seqlens)
        if not self.complex:
            return scan(k * c, log_f, initial_state=memory, direction=self.direction)
        c = k * torch.view_as_complex(c.unflatten(-1, (-1, 2)))
        memory = None if memory is None else torch.view_as_complex(memory)
        h, memory = scan(c, log_f, self.theta, initial_state=memory)
        if self.theta_reverse is not None:
            h = h + scan(c, log_f, self.theta_reverse, direction="reverse")[0]
        return torch.cat([h.real, h.imag], -1), torch.view_as_real(memory)

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        y = y.to(x.dtype)
        if self.g_proj is None:
            return self.o_proj(self.norm(y))
        gate = F.silu(self.g_proj(x))
        return self.o_proj(self.norm(y) * gate if self.norm_order == "norm_gate" else self.norm(y * gate))

    def memory_shape(self) -> tuple[int, ...]:
        return (self.dim, 2) if self.complex else (self.dim,)

    def letters(self) -> dict[str, float]:
        return {"complex": self.complex}

    def reset_own_parameters(self) -> None:
        with torch.no_grad():
            for theta in (self.theta, self.theta_reverse) if self.complex else ():
                if theta is not None:
                    theta.copy_(10000 ** (-2 * torch.arange(self.dim) / self.dim))

    def _new_theta(self) -> nn.Parameter:
        theta = nn.Parameter(torch.empty(self.dim))
        theta._no_weight_decay = True  # type: ignore[attr-defined]
        return theta
