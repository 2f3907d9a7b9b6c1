"""RetNet: multi-scale retention (Sun et al., arXiv:2307.08621)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.kernels.gated_linear_attention import gated_linear_attention

from .parts.checks import check_choice, head_width
from .parts.contract import Shared
from .parts.frame import LinearMixer
from .parts.layout import Layout
from .parts.norms import make_norm
from .parts.rotary import rope_frequencies, rotate, xpos_frequencies
from .parts.spec import MixerSpec


class RetNet(LinearMixer):
    """`S_t = f S_{t-1} + k_t v_t^T`, `y_t = W_o (Norm(K^-0.5 q_t S_t) * SiLU(W_g x_t))`, head h forgets with
    `f = 1 - 2^(-5-h)`; q and k are turned by position * frequency; the norm is GroupNorm with a group a head.

    Args:
        dim: width D.
        num_heads: H; None: dim/256 as in the paper, at least 1.
        expand_k: key width of all heads together, over dim.
        expand_v: value width of all heads together, over dim.
        rotary: xpos (the authors' code: frequencies from 1 to 1/10000 inclusive) | rope (10000^(-2j/K)) | none; a pair
            is two neighbouring channels.
        output_gate: with or without the factor SiLU(W_g x).
        norm: group | layer | rms | srms, over each head's values.
        norm_eps: of that norm (flash-linear-attention's models: 1e-6).
        bias: on every linear map.
        short_conv: 0, or the width (published: 4) of a causal convolution over q, k and v, then SiLU.
        bidirectional: both directions, summed before the norm."""

    spec = MixerSpec(
        paper="arXiv:2307.08621",
        equation="S_t = f_h S_{t-1} + k_t v_t^T,  y_t = W_o (Norm(K^-0.5 q_t S_t) * SiLU(W_g x_t)),  "
        "f_h = 1 - 2^(-5-h)",
        family="matrix state",
        ops=("gated_linear_attention",),
        state="H*K*V",
        flops="2*T*params + 5*T*H*K*V",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv"}),
        without_positions={"rotary": "none"},
    )

    def __init__(
        self,
        dim: int = 1024,
        *,
        num_heads: int | None = None,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        rotary: str = "xpos",
        output_gate: bool = True,
        norm: str = "group",
        norm_eps: float = 1e-5,
        bias: bool = False,
        short_conv: int = 0,
        bidirectional: bool = False,
    ) -> None:
        heads = max(1, dim // 256) if num_heads is None else num_heads
        K = head_width("expand_k", expand_k, dim, heads)
        V = head_width("expand_v", expand_v, dim, heads)
        check_choice("rotary", rotary, ("xpos", "rope", "none"))
        if rotary != "none" and K % 2:
            raise ValueError(f"rotary={rotary!r} needs an even key width per head, got {K}; remedy: rotary='none'")
        super().__init__(
            dim, heads * (2 * K + V), bidirectional=bidirectional, short_conv=short_conv, conv_activation="silu"
        )
        self.num_heads, self.K, self.V, self.rotary = heads, K, V, rotary
        self.q_proj = nn.Linear(dim, heads * K, bias=bias)
        self.k_proj = nn.Linear(dim, heads * K, bias=bias)
        self.v_proj = nn.Linear(dim, heads * V, bias=bias)
        self.g_proj = nn.Linear(dim, heads * V, bias=bias) if output_gate else None
        self.norm = make_norm(norm, V, norm_eps)
        self.o_proj = nn.Linear(heads * V, dim, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in projected)
        if self.rotary != "none":
            frequencies = (xpos_frequencies if self.rotary == "xpos" else rope_frequencies)(self.K)
            position = layout.position
            q, k = (rotate(part, position, frequencies, interleaved=True) for part in (q, k))
        dtype = torch.promote_types(q.dtype, torch.float32)
        log_f = torch.log1p(-(2.0 ** (-5 - torch.arange(self.num_heads, device=q.device, dtype=dtype))))
        log_f = log_f[:, None].expand(*q.shape[:2], -1, -1)
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
        return self.num_heads, self.K, self.V

    def letters(self) -> dict[str, float]:
        return {"H": self.num_heads, "K": self.K, "V": self.V}

    @classmethod
    def fitted(cls, dim: int, head: int) -> dict[str, Any]:
        return {"num_heads": dim // math.gcd(dim, head)}
