"""Softmax attention with rotary positions (arXiv:1706.03762, arXiv:2104.09864) and a key-value cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.kernels.softmax_attention import softmax_attention

from .parts.checks import check_divides
from .parts.contract import Mixer, Shared
from .parts.kv_cache import FixedKVCache, KVCache, append, cached_positions
from .parts.layout import Layout
from .parts.rotary import rope_frequencies, rotate
from .parts.spec import MixerSpec


class Attention(Mixer):
    """`y_t = W_o sum_{s<=t} softmax_s(q_t k_s / sqrt(K)) v_s`, q and k turned by position * 10000^(-2j/K).

    Args:
        dim: width D.
        num_heads: H; None: dim/64, at least 1.
        num_kv_heads: heads of k and v, each shared by H/num_kv_heads query heads (arXiv:2305.13245); None: H.
        rotary: rotary positions, channel j paired with j + K/2.
        rotary_base: the 10000 in the equation.
        qk_norm: RMSNorm on q and k, over each head.
        window: a token sees itself and the window-1 tokens before it (bidirectional: and after it); None: all.
        bias: on every linear map.
        qkv_bias: on those of q, k and v.
        bidirectional: every token sees all."""

    spec = MixerSpec(
        paper="arXiv:1706.03762",
        equation="y_t = W_o sum_s softmax_s(q_t k_s / sqrt(K)) v_s",
        family="attention",
        ops=("softmax_attention",),
        state="2*min(T, W)*G*K",
        flops="2*T*params + 4*D*(b*min(T, W)*(2*T - min(T, W) + 1)//2 - (b - 1)*T)",
        capabilities=frozenset({"causal", "bidirectional"}),
        without_positions={"rotary": False},
    )

    def __init__(
        self,
        dim: int = 1024,
        *,
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        rotary: bool = True,
        rotary_base: float = 10000.0,
        qk_norm: bool = False,
        window: int | None = None,
        bias: bool = False,
        qkv_bias: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(dim, bidirectional=bidirectional)
        heads = max(1, dim // 64) if num_heads is None else num_heads
        check_divides("num_heads", heads, "dim", dim)
        kv_heads = heads if num_kv_heads is None else num_kv_heads
        check_divides("num_kv_heads", kv_heads, "num_heads", heads)
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, got {window}; remedy: None for no window")
        K = dim // heads
        if rotary and K % 2:
            raise ValueError(f"rotary positions need an even head width, got dim/num_heads={K}; remedy: rotary=False")
        self.num_heads, self.num_kv_heads, self.K, self.rotary, self.window = heads, kv_heads, K, rotary, window
        self.rotary_base = rotary_base
        self.q_proj = nn.Linear(dim, dim, bias=bias or qkv_bias)
        self.k_proj = nn.Linear(dim, kv_heads * K, bias=bias or qkv_bias)
        self.v_proj = nn.Linear(dim, kv_heads * K, bias=bias or qkv_bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        self.q_norm = nn.RMSNorm(K, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(K, eps=1e-5) if qk_norm else nn.Identity()

    def run(
        self, x: Tensor, layout: Layout, state: KVCache | FixedKVCache | None, shared: Shared
    ) -> tuple[Tensor, KVCache | FixedKVCache | None]:
        q, k, v = (proj(x).unflatten(-1, (-1, self.K)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        position = layout.position
        if self.rotary:
            frequencies = rope_frequencies(self.K, self.rotary_base)
            q, k = (rotate(part, position, frequencies, interleaved=False) for part in (q, k))

        past = state is not None and state.keys.shape[1] > 0
        everything_counts = not past and layout.valid is None
        query_position = key_position = position.expand(x.shape[:2])
        if layout.valid is not None:
            key_position = key_position.masked_fill(~layout.valid, -1)
        if state is not None:
            old_state, state = state, append(state, k, v, key_position, self.window)
            if past and isinstance(state, KVCache):  # which forgets nothing, so that no query misses a key in it
                k, v, key_position = state.keys.to(k.dtype), state.values.to(v.dtype), cached_positions(state)
            elif past:
                k, v = (
                    torch.cat([old.to(new.dtype), new], 1) for old, new in ((old_state.keys, k), (old_state.values, v))
                )
                key_position = torch.cat([cached_positions(old_state), key_position], 1)
        y = softmax_attention(
            q,
            k,
            v,
            causal=not self.bidirectional,
            window=self.window,
            query_position=None if everything_counts else query_position,
            key_position=None if everything_counts else key_position,
            cu_seqlens=layout.cu_seqlens,
        )
        return self.o_proj(y.flatten(-2)), state

    def empty_state(self, batch_size: int, max_length: int | None, like: Tensor) -> KVCache | FixedKVCache:
        slots = max_length or 0
        if self.window is not None:
            slots = min(self.window, max_length or self.window)
        keys, values = (like.new_zeros(batch_size, slots, self.num_kv_heads, self.K) for _ in range(2))
        return (FixedKVCache if slots else KVCache)(keys, values, like.new_zeros(batch_size, dtype=torch.int64))

    def letters(self) -> dict[str, float]:
        """W is the window, G the heads of k and v, K the width of a head; b is 2 in both directions, else 1."""
        window = math.inf if self.window is None else self.window
        return {"W": window, "G": self.num_kv_heads, "K": self.K, "b": 1 + self.bidirectional}

    @classmethod
    def fitted(cls, dim: int, head: int) -> dict[str, Any]:
        return {"num_heads": dim // math.gcd(dim, head)}
