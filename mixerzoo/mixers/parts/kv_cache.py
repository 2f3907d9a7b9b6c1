"""The state of softmax attention: keys and values of the tokens so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache(NamedTuple):
    """Grows with the sequence: the token at position p is in slot p.

    keys, values: [B,S,G,K] fp32. position: [B] int64, tokens so far.
    """

    keys: Tensor
    values: Tensor
    position: Tensor


class FixedKVCache(NamedTuple):
    """As `KVCache`, with S slots for good: the token at position p is in slot p mod S."""

    keys: Tensor
    values: Tensor
    position: Tensor


def cached_positions(cache: KVCache | FixedKVCache) -> Tensor:
    """[B,S]: the position of the token in every slot, negative where there is none."""
    slots = cache.keys.shape[1]
    last = cache.position[:, None] - 1
    slot = torch.arange(slots, device=last.device)
    return last - (last - slot) % max(slots, 1)


def append(
    cache: KVCache | FixedKVCache, k: Tensor, v: Tensor, position: Tensor, window: int | None
) -> KVCache | FixedKVCache:
    """A cache with the new tokens k, v: [B,T,G,K] at `position` [B,T], -1 = padding. The old cache stays as it is.

    Raises ValueError (on the CPU) where a fixed cache would have to forget a token that is still within the window.
    """
    end = cache.position + (position >= 0).sum(1)
    slots = cache.keys.shape[1] + (k.shape[1] if isinstance(cache, KVCache) else 0)
    if isinstance(cache, FixedKVCache) and (window is None or slots < window):
        _check_capacity(end, slots)
    # Padding, and what a chunk longer than the cache would overwrite at once, goes to one more slot, cut off again.
    kept = (position >= 0) & (position >= end[:, None] - slots)
    slot = torch.where(kept, position % slots, slots)[..., None, None].expand_as(k)
    fresh = (0, 0, 0, 0, 0, slots + 1 - cache.keys.shape[1])
    keys, values = (
        F.pad(old, fresh).scatter_(1, slot, new.to(old.dtype))[
            :, :slots
        ]  # in place of the copy: a cache is copied once
        for old, new in ((cache.keys, k), (cache.values, v))
    )
    return type(cache)(keys, values, end)


def _check_capacity(end: Tensor, slots: int) -> None:
    # Reading values waits for a GPU and can't be traced, so they are checked on the CPU alone.
    if end.device.type == "cpu" and not torch.compiler.is_compiling() and int(end.max()) > slots:
        raise ValueError(
            f"the cache holds max_length={slots} tokens, got {int(end.max())}; remedy: a larger max_length"
        )
