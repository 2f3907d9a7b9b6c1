"""Holds the states of all layers as one transformers `Cache`: `generate` reorders, repeats and crops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, StaticCache, StaticLayer
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

from mixerzoo.blocks.residual import ResidualBlock
from mixerzoo.mixers.parts.frame import RecurrentState
from mixerzoo.mixers.parts.kv_cache import FixedKVCache, KVCache
from mixerzoo.tasks.lm.configuration import CACHE_NAMES

# What outputs and `generate` call a model's cache in the version at hand.
CACHE_NAME = next(name for name in CACHE_NAMES if hasattr(BaseModelOutputWithPast, name))
# A `forward` that takes `cache` takes it under the old name too, which is what `generate` passes before 5.24: there is
# nothing to warn of, and transformers doesn't from the version on that is given here.
accepts_past_key_values = deprecate_kwarg("past_key_values", "5.0.0", new_name="cache", raise_if_both_names=True)


class Record(NamedTuple):
    """Holds what a layer took in since `state`: it forgets its latest tokens by taking the others again."""

    state: Any
    x: Tensor
    mask: Tensor | None
    shared: dict[str, Tensor]  # what the layers share and has a row for every token of x


class MixerCacheLayer(CacheLayerMixin):
    """Holds one layer's state, and how many columns of the batch went into it, padding included.

    Args:
        max_length: for mixers whose state grows, allocate it once for so many tokens; None: let it grow. Then new
            states are written over the old ones, so that compiled code finds them at one address.
        offloaded: keep the state in the CPU's memory while the layer doesn't run.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, max_length: int | None = None, offloaded: bool = False) -> None:
        # Not the base's attributes: what it calls keys, values and is_initialized are views of the state here.
        self.max_length, self.offloaded = max_length, offloaded
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        self.state: Any = None
        self.length: int | Tensor = 0
        self.record: Record | None = None
        self.shared: dict[str, Tensor] = {}  # what the layers share and is the same for all tokens
        self.cropped = False  # the record is what is left of it, and `state` is out of date

    def prepare(self, block: ResidualBlock, x: Tensor) -> None:
        """Makes `state` the one before x [B,T,D] comes into the block: started, at hand, without what was cropped."""
        if self.state is None:
            # Like x, not like the weights: accelerate may keep those elsewhere until they are used.
            like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
            if self.is_compileable:  # a number would be compiled into the code
                self.length = torch.zeros((), dtype=torch.int64, device=x.device)
            self._keep(block.mixer.empty_state(x.shape[0], self.max_length, like))
        if self.offloaded:
            self._change(lambda tensor: tensor.to(x.device))
        if self.cropped and self.record is not None:
            past = self.record
            _, self.state = block.prefill(past.x, past.state, mask=past.mask, shared=self.shared | past.shared)
            self.record, self.cropped = None, False

    def advance(self, block: ResidualBlock, x: Tensor, mask: Tensor | None, shared: Mapping[str, Tensor]) -> Tensor:
        """Takes the next tokens of every sequence, after `prepare`: x [B,T,D] -> y [B,T,D], by the block's prefill."""
        if self.record_past:
            in_time = {name: value for name, value in shared.items() if name in block.mixer.shared_in_time}
            self.shared = {name: value for name, value in shared.items() if name not in in_time}
            new = Record(self.state, x, mask, in_time)
            self.record = new if self.record is None else _extended(self.record, new)
        y, state = block.prefill(x, self.state, mask=mask, shared=shared)
        self._keep(state)
        self.length += x.shape[1]
        if self.offloaded:
            self._change(lambda tensor: tensor.to("cpu"))
        return y

    def activate_past_recording(self) -> None:
        """Records from now on what it takes to forget everything since the latest `crop`."""
        self.record_past = True

    def crop(self, tokens: int) -> None:
        """Forgets the latest -tokens columns, or, as transformers 5.6 has it, all but the first `tokens`."""
        removed = int(self.length) - tokens if tokens > 0 else -tokens
        if removed <= 0:
            self.record = self.record if self.cropped else None
            return
        recorded = 0 if self.record is None else self.record.x.shape[1]
        if self.record is None or removed > recorded:
            raise ValueError(
                f"the cache can forget the {recorded} tokens it has recorded, got {removed} to remove; remedy: "
                "activate_past_recording() before they come in"
            )
        state, x, mask, shared = self.record
        kept = recorded - removed
        self.length -= removed
        self.cropped = kept > 0
        mask = None if mask is None else mask[:, :kept]
        shared = {name: value[:, :kept] for name, value in shared.items()}
        self.record = Record(state, x[:, :kept], mask, shared) if kept else None
        self.state = self.state if kept else state

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda tensor: tensor[indices.to(tensor.device)])

    def get_seq_length(self) -> int:
        return self.length  # type: ignore[return-value]  # transformers' static layers give a tensor as well

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0  # type: ignore[return-value]

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.6

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("the mixer makes the state")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("keys and values are the mixer's own business; remedy: advance()")

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        return self.max_length is not None and not self.offloaded and not self.record_past

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        return self.state is not None

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else self.state.position.shape[0]

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """Returns [B,G,S,K], a softmax attention's; None for other mixers."""
        return self.state.keys[:, : self.length].transpose(1, 2) if self._has_keys else None

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """Returns [B,G,S,K], a softmax attention's; None for other mixers."""
        return self.state.values[:, : self.length].transpose(1, 2) if self._has_keys else None

    @property
    def recurrent_states(self) -> dict[int, Tensor]:
        """Returns a linear mixer's memory, its fields numbered from 0 as transformers numbers a layer's states."""
        if not isinstance(self.state, RecurrentState):
            return {}
        memory = self.state.memory
        return dict(enumerate(memory if isinstance(memory, tuple) else (memory,)))

    @property
    def conv_states(self) -> dict[int, Tensor]:
        """Returns [B,channels,W-1], the pasts of a linear mixer's windows."""
        pasts = self.state.conv if isinstance(self.state, RecurrentState) else ()
        return {index: past.transpose(1, 2) for index, past in enumerate(pasts)}

    @property
    def _has_keys(self) -> bool:
        return isinstance(self.state, (KVCache, FixedKVCache))

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        state, self.record = tree_map_only(Tensor, change, (self.state, self.record))
        self._keep(state)

    def _keep(self, state: Any) -> None:
        old, new = tree_leaves(self.state), tree_leaves(state)
        if self.is_compileable and self.state is not None and all(map(_same_shape, old, new)):
            for tensor, value in zip(old, new, strict=True):
                tensor.copy_(value)
            return
        self.state = state
        if self.is_compileable and not torch.compiler.is_compiling():
            for tensor in (*new, self.length):
                torch._dynamo.mark_static_address(tensor, guard=False)


class _Recording(Cache):
    """Adds what transformers 5.6 lacks."""

    def activate_past_recording(self) -> None:
        for layer in self.layers:
            layer.activate_past_recording()  # type: ignore[union-attr]


class MixerCache(_Recording, DynamicCache):
    """Holds a `MixerCacheLayer` for every layer. It grows where a mixer's state does, and nowhere else."""

    def __init__(self, config: PreTrainedConfig, *, offloaded: bool = False) -> None:
        layers = [MixerCacheLayer(offloaded=offloaded) for _ in range(config.num_hidden_layers)]
        Cache.__init__(self, layers=layers)  # type: ignore[arg-type]


class StaticMixerCache(_Recording, StaticCache):
    """Makes a `MixerCache` that is allocated once for `max_length` tokens."""

    def __init__(self, config: PreTrainedConfig, max_length: int) -> None:
        layers = [MixerCacheLayer(max_length) for _ in range(config.num_hidden_layers)]
        Cache.__init__(self, layers=layers)  # type: ignore[arg-type]


def cache_for(config: PreTrainedConfig, implementation: str | None, max_length: int) -> Cache:
    """Makes the cache that `generate` calls `cache_implementation`. Raises ValueError for `quantized`."""
    if implementation == "quantized":
        raise ValueError(
            "cache_implementation='quantized' isn't supported, a linear mixer's state is no list of keys and "
            "values; remedy: leave it out, or 'static' or 'offloaded'"
        )
    if implementation == "static":
        return StaticMixerCache(config, max_length)
    return MixerCache(config, offloaded=implementation in ("offloaded", "offloaded_static"))


def adopt(cache: Cache, config: PreTrainedConfig) -> Cache:
    """Gives an empty cache of transformers' own layers that hold our states; ours stays as it is.

    In a `StaticCache` they are allocated once.

    Raises ValueError for a cache that already holds another model's tokens."""
    if all(isinstance(layer, MixerCacheLayer) for layer in cache.layers) and cache.layers:
        return cache
    if holds_tokens(cache):
        raise ValueError(
            f"the cache holds tokens of another kind of model, got {type(cache).__name__}; remedy: leave it out, or "
            "pass MixerCache(model.config)"
        )
    if isinstance(cache, StaticCache):
        lengths = [layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer)]
        cache.layers = StaticMixerCache(config, max(lengths, default=1)).layers  # without attention nothing grows
    else:
        cache.layers = MixerCache(config).layers
    cache.layer_class_to_replicate = None
    return cache


def holds_tokens(cache: Cache) -> bool:
    """Returns whether anything has gone into a cache.

    Where compiled code keeps its length, that would not say at once.
    """
    return any(_layer_holds_tokens(layer) for layer in cache.layers)


def _extended(record: Record, new: Record) -> Record:
    mask = None
    if new.mask is not None or record.mask is not None:
        parts = ((record.x, record.mask), (new.x, new.mask))
        mask = torch.cat([p.new_ones(p.shape[:2], dtype=torch.bool) if m is None else m for p, m in parts], 1)
    shared = {name: torch.cat([record.shared[name], value], 1) for name, value in new.shared.items()}
    return Record(record.state, torch.cat([record.x, new.x], 1), mask, shared)


def _layer_holds_tokens(layer: Any) -> bool:
    if isinstance(layer, MixerCacheLayer):
        return layer.is_initialized
    linear = getattr(layer, "has_previous_state", False)
    return bool(
        getattr(layer, "is_initialized", False) or (any(linear.values()) if isinstance(linear, dict) else linear)
    )


def _same_shape(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape
