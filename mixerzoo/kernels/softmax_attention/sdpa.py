"""Softmax attention through torch's scaled_dot_product_attention: FlashAttention where there is one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None, causal: bool) -> Tensor:
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, 2) if repeats > 1 else x for x in (k, v))
    mask = None if allowed is None else allowed[:, None]
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and allowed is None,
        scale=scale,
    )
    return y.transpose(1, 2)
