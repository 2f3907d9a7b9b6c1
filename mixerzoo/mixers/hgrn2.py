"""HGRN2: gated linear RNNs with state expansion (Qin et al., arXiv:2404.07904)."""

from __future__ import annotations

from torch import Tensor, nn

from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.kernels.pointwise import ACTIVATIONS
from mixerzoo.kernels.validation import check_lower_bound
from mixerzoo.mixers.parts.contract import MixerSpec, check_choice, check_divides
from mixerzoo.mixers.parts.frame import LinearMixer
from mixerzoo.mixers.parts.layout import Layout
from mixerzoo.mixers.parts.lower_bounds import LowerBounds
from mixerzoo.mixers.parts.norms import make_norm


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
        short_conv: 0, or 4: a causal convolution over q, gate logits and i.
        bidirectional: both directions, summed before the norm."""

    spec = MixerSpec(
        paper="arXiv:2404.07904",
        equation="S_t = Diag(f_t) S_{t-1} + (1-f_t) i_t^T,  y_t = W_o Norm(o_t S_t),  "
        "f = gamma + (1-gamma) sigmoid(W_f x)",
        ops=("hgrn2",),
        state="D e",
        flops="8 T D^2 + 5 T D e",
        capabilities=frozenset(
            {"causal", "bidirectional", "constant_state", "short_conv", "flip_equivariant", "depth_shared"}
        ),
    )
    depth_shared: type[nn.Module] | None = LowerBounds

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
            self.depth_shared = None
        self.q_activation, self.v_activation = q_activation, v_activation
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.f_proj = nn.Linear(dim, dim, bias=bias)
        self.i_proj = nn.Linear(dim, dim, bias=bias)
        self.norm = make_norm(norm, dim)
        self.o_proj = nn.Linear(dim, dim, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.f_proj(x), self.i_proj(x)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, gate, v = projected
        v = ACTIVATIONS[self.v_activation](v)
        if layout.valid is not None:
            gate = gate.masked_fill(~layout.valid[..., None], float("inf"))  # f = 1, 1 - f = 0
        q, gate, v = (part.unflatten(-1, (-1, self.expand)) for part in (q, gate, v))
        y, memory = hgrn2(
            q,
            gate,
            v,
            self.gamma(shared),
            scale=self.scale,
            q_activation=self.q_activation,
            initial_state=memory,
            cu_seqlens=layout.cu_seqlens,
            direction=self.direction,
        )
        return y.flatten(-2), memory

    def gamma(self, shared: Tensor | None) -> Tensor | float:
        return self.lower_bound if shared is None else shared.unflatten(-1, (-1, self.expand))

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(self.norm(y))

    def memory_shape(self) -> tuple[int, ...]:
        return self.dim // self.expand, self.expand, self.expand

    def mixing_flops(self, length: int) -> int:
        return 5 * length * self.dim * self.expand
