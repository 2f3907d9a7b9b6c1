"""GLA: gated linear attention (Yang et al., arXiv:2312.06635)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.kernels.gated_linear_attention import gated_linear_attention

from .parts.checks import check_divides, head_width
from .parts.contract import Shared
from .parts.frame import LinearMixer
from .parts.layout import Layout
from .parts.norms import make_norm
from .parts.spec import MixerSpec


class GLA(LinearMixer):
    """`f = sigmoid(W_2 W_1 x + b)^(1/16)`, `S_t = Diag(f_t) S_{t-1} + k_t v_t^T`,
    `y_t = W_o (Norm(K^-0.5 q_t S_t) * SiLU(W_g x_t))`, the norm over each head.

    Args:
        dim: width D.
        num_heads: H.
        num_kv_heads: heads of k, v and the gate, each shared by H/num_kv_heads query heads; None: H.
        expand_k: key width of all heads together, over dim.
        expand_v: value width of all heads together, over dim.
        gate_low_rank: the rank of W_2 W_1.
        gate_normalizer: the 16 in the equation.
        output_gate: with or without the factor SiLU(W_g x).
        norm: layer | rms | srms | group, over each head's values.
        norm_eps: of that norm (flash-linear-attention's models: 1e-6).
        bias: on the linear maps; the gate's b is always there.
        short_conv: 0, or the width (published: 4) of a causal convolution over q, k and v, then SiLU.
        bidirectional: both directions, summed before the norm."""

    spec = MixerSpec(
        paper="arXiv:2312.06635",
        equation="S_t = Diag(f_t) S_{t-1} + k_t v_t^T,  y_t = W_o (Norm(K^-0.5 q_t S_t) * SiLU(W_g x_t)),  "
        "f = sigmoid(W_2 W_1 x + b)^(1/16)",
        family="matrix state",
        ops=("gated_linear_attention",),
        state="G*K*V",
        flops="2*T*params + 5*T*H*K*V",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv", "flip_equivariant"}),
    )

    def __init__(
        self,
        dim: int = 1024,
        *,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_low_rank: int = 16,
        gate_normalizer: float = 16.0,
        output_gate: bool = True,
        norm: str = "rms",
        norm_eps: float = 1e-5,
        bias: bool = False,
        short_conv: int = 0,
        bidirectional: bool = False,
    ) -> None:
        K = head_width("expand_k", expand_k, dim, num_heads)
        V = head_width("expand_v", expand_v, dim, num_heads)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_divides("num_kv_heads", kv_heads, "num_heads", num_heads)
        super().__init__(
            dim,
            num_heads * K + kv_heads * (K + V),
            bidirectional=bidirectional,
            short_conv=short_conv,
            conv_activation="silu",
        )
        self.K, self.V, self.num_heads, self.num_kv_heads = K, V, num_heads, kv_heads
        self.gate_normalizer = gate_normalizer
        self.q_proj = nn.Linear(dim, num_heads * K, bias=bias)
        self.k_proj = nn.Linear(dim, kv_heads * K, bias=bias)
        self.v_proj = nn.Linear(dim, kv_heads * V, bias=bias)
        self.f_proj = nn.Sequential(nn.Linear(dim, gate_low_rank, bias=False), nn.Linear(gate_low_rank, kv_heads * K))
        self.g_proj = nn.Linear(dim, num_heads * V, bias=bias) if output_gate else None
        self.norm = make_norm(norm, V, norm_eps)
        self.o_proj = nn.Linear(num_heads * V, dim, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x), self.f_proj(x)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        q, k, v, logits = projected
        log_f = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / self.gate_normalizer
        q, k, v, log_f = (
            part.unflatten(-1, (-1, width)) for part, width in ((q, self.K), (k, self.K), (v, self.V), (log_f, self.K))
        )
        return gated_linear_attention(
            q,
            k,
            v,
            log_f,
            scale=self.K**-0.5,
            initial_state=memory,
            valid=layout.valid,
            cu_seqlens=layout.cu_seqlens,
            direction=self.direction,
        )

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        y = self.norm(y).flatten(-2)
        return self.o_proj(y if self.g_proj is None else y * F.silu(self.g_proj(x)))

    def memory_shape(self) -> tuple[int, ...]:
        return self.num_kv_heads, self.K, self.V

    def letters(self) -> dict[str, float]:
        """H are the heads of q, G those of k and v."""
        return {"H": self.num_heads, "G": self.num_kv_heads, "K": self.K, "V": self.V}

    @classmethod
    def fitted(cls, dim: int, head: int) -> dict[str, Any]:
        return {"num_heads": dim // math.gcd(dim, head)}
