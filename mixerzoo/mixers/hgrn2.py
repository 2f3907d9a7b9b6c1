"""HGRN2: gated linear RNNs with state expansion (Qin et al., arXiv:2404.07904)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.kernels.pointwise import ACTIVATIONS
from mixerzoo.kernels.validation import check_lower_bound

from .parts.checks import check_choice, check_divides
from .parts.contract import Shared
from .parts.depth_shared import DepthShared
from .parts.frame import LinearMixer
from .parts.layout import Layout
from .parts.lower_bounds import LowerBounds
from .parts.norms import make_norm
from .parts.spec import MixerSpec


class HGRN2(LinearMixer):
    """`f = gamma + (1-gamma) sigmoid(W_f x)`, `S_t = Diag(f_t) S_{t-1} + (1-f_t) i_t^T`, `y_t = W_o Norm(o_t S_t)`.

    H = dim/expand heads with a state of expand x expand each; gamma is the lower bound. `i = W_i x`, `o = SiLU(W_q x)`
    and a LayerNorm over the whole width are the paper's figure; the rest of what the sources disagree on are switches.
    4 dim^2 parameters.

    Args:
        dim: width D.
        expand: head dimension e, 1 to 256, divides dim.
        lower_bound: a constant in [0, 1) in place of the stack's learned bounds; None: those, or 0 when built alone.
        q_activation: silu (figure, authors' language model) | sigmoid (authors' hgru2-pytorch modules) | none.
        v_activation: none (figure, authors' language model) | silu (authors' modules).
        norm: layer | rms | srms | group, over the width.
        bias: on every linear map (authors' modules: True).
        scale: factor on the readout (flash-linear-attention: expand^-0.5).
        short_conv: 0, or the width (published: 4) of a causal convolution over q, gate logits and i.
        bidirectional: both directions, summed before the norm."""

    spec = MixerSpec(
        paper="arXiv:2404.07904",
        equation="S_t = Diag(f_t) S_{t-1} + (1-f_t) i_t^T,  y_t = W_o Norm(o_t S_t),  "
        "f = gamma + (1-gamma) sigmoid(W_f x)",
        family="matrix state",
        ops=("hgrn2",),
        state="D*e",
        flops="2*T*params + 5*T*D*e",
        capabilities=frozenset(
            {"causal", "bidirectional", "constant_state", "short_conv", "flip_equivariant", "depth_shared"}
        ),
        paper_images={"bias": True, "q_activation": "sigmoid", "v_activation": "silu"},
    )
    depth_shared: tuple[type[DepthShared], ...] = (LowerBounds,)

    def __init__(
        self,
        dim: int = 1024,
        *,
        expand: int = 128,
        lower_bound: float | None = None,
        q_activation: str = "silu",
        v_activation: str = "none",
        norm: str = "layer",
        bias: bool = False,
        scale: float = 1.0,
        short_conv: int = 0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(dim, 3 * dim, bidirectional=bidirectional, short_conv=short_conv)
        check_divides("expand", expand, "dim", dim)
        if expand > 256:
            raise ValueError(f"expand must be at most 256, got {expand}")
        check_choice("q_activation", q_activation, tuple(ACTIVATIONS))
        check_choice("v_activation", v_activation, ("none", "silu"))
        self.expand, self.scale, self.lower_bound = expand, scale, lower_bound or 0.0
        if lower_bound is not None:
            check_lower_bound(lower_bound)
            self.depth_shared = ()
        self.q_activation, self.v_activation = q_activation, v_activation
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.f_proj = nn.Linear(dim, dim, bias=bias)
        self.i_proj = nn.Linear(dim, dim, bias=bias)
        self.norm = make_norm(norm, dim)
        self.o_proj = nn.Linear(dim, dim, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.f_proj(x), self.i_proj(x)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        q, logits, v = projected
        v = ACTIVATIONS[self.v_activation](v)
        q, logits, v = (part.unflatten(-1, (-1, self.expand)) for part in (q, logits, v))
        lower_bound = shared.get("lower_bound", self.lower_bound)
        if isinstance(lower_bound, Tensor):
            lower_bound = lower_bound.unflatten(-1, (-1, self.expand))
        y, memory = hgrn2(
            q,
            logits,
            v,
            lower_bound,
            scale=self.scale,
            q_activation=self.q_activation,
            initial_state=memory,
            valid=layout.valid,
            cu_seqlens=layout.cu_seqlens,
            direction=self.direction,
        )
        return y.flatten(-2), memory

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(self.norm(y))

    def memory_shape(self) -> tuple[int, ...]:
        return self.dim // self.expand, self.expand, self.expand

    def letters(self) -> dict[str, float]:
        """e is `expand`."""
        return {"e": self.expand}

    @classmethod
    def fitted(cls, dim: int, head: int) -> dict[str, Any]:
        return {"expand": math.gcd(dim, head)}
