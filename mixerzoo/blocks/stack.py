"""A stack of residual blocks with any pattern of mixers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixerzoo.mixers.parts import Mixer, Output
from mixerzoo.mixers.parts.formulas import products_per_token
from mixerzoo.mixers.parts.layout import ScanOrder
from mixerzoo.mixers.parts.norms import make_block_norm, normalize
from mixerzoo.registry.catalog import build_mixer, looking_both_ways
from mixerzoo.registry.pattern import Pattern, tiled
from mixerzoo.registry.registry import unknown

from .channel_mixers import GLU
from .depth import DepthWalk, share_over_depth
from .residual import ResidualBlock

CHANNEL_MIXER_KEYS = ("multiplier", "hidden", "activation", "bias")


class Stack(nn.Module):
    """`depth` residual blocks and a final norm: [B,T,D] -> [B,T,D].

    Args:
        dim: width D, also every mixer's.
        depth: number of blocks L.
        mixer: a name or configuration, or a list of them, tiled over the depth: `["hgrn2", "hgrn2", "attention"]` has
            one attention layer in three.
        channel_mixer: keywords of `GLU` (multiplier, hidden, activation, bias); None for no channel mixer.
        norm: layer | rms | srms | group, or batch, over a batch's tokens without its padding.
        lower_bounds: skip_first | skip_last | decreasing | random, HGRN's bounds, which the stack owns
            (mixers/parts/lower_bounds.py); None for none.
        bidirectional: for every mixer.
        dropout: on every residual branch.
        gradient_checkpointing: compute each block's activations again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        mixer: Pattern,
        *,
        channel_mixer: Mapping[str, Any] | None = MappingProxyType({}),
        norm: str = "rms",
        lower_bounds: str | None = "skip_first",
        bidirectional: bool = False,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1 or not mixer:
            raise ValueError(f"a stack needs depth >= 1 and at least one mixer, got depth={depth} and {mixer}")
        for key in channel_mixer or {}:
            if key not in CHANNEL_MIXER_KEYS:
                raise ValueError(unknown("keyword of channel_mixer", key, CHANNEL_MIXER_KEYS))
        blocks = []
        for config in tiled(mixer, depth):
            module = _build(config, dim, bidirectional)
            channels = None if channel_mixer is None else GLU(dim, **channel_mixer)
            branches = {branch: nn.Dropout(dropout) for branch in ("mixer_branch", "channel_branch")}
            blocks.append(ResidualBlock(module, channels, norm=norm, **branches))
        self.blocks = nn.ModuleList(blocks)
        self.norm = make_block_norm(norm, dim)
        self.gradient_checkpointing = gradient_checkpointing
        share_over_depth(
            self, (block.mixer for block in blocks), dim=dim, depth=depth, options={"lower_bounds": lower_bounds}
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        passes: tuple[tuple[ScanOrder, ...], ...] = ((),),
    ) -> Tensor:
        """Mixes whole sequences; mask and cu_seqlens as for a mixer. For images passes, as `scan_passes` gives them."""
        sequences: dict[str, Any] = {"mask": mask, "cu_seqlens": cu_seqlens}
        walk = DepthWalk(self)
        for block in self._layers:
            given = {**sequences, "passes": passes, "shared": walk(block, x, **sequences)}
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, **given, use_reentrant=False)
            else:
                x = block(x, **given)
        return normalize(self.norm, x, mask)

    def prefill(self, x: Tensor, state: Sequence[Any] | None = None, *, mask: Tensor | None = None) -> Output:
        """Takes a chunk of every sequence in and hands the states after it out, a tuple with one entry a layer."""
        walk, new_states = DepthWalk(self), []
        for block, layer_state in zip(self._layers, [None] * len(self.blocks) if state is None else state, strict=True):
            shared = walk(block, x, mask=mask, state=layer_state)
            x, new_state = block.prefill(x, layer_state, mask=mask, shared=shared)
            new_states.append(new_state)
        return Output(normalize(self.norm, x, mask), tuple(new_states))

    def step(self, x_t: Tensor, state: Sequence[Any]) -> Output:
        """Takes one token of every sequence: [B,D] -> [B,D]."""
        walk, new_states = DepthWalk(self), []
        for block, layer_state in zip(self._layers, state, strict=True):
            x_t, new_state = block.step(x_t, layer_state, shared=walk(block, x_t, state=layer_state))
            new_states.append(new_state)
        return Output(self.norm(x_t), tuple(new_states))

    @property
    def _layers(self) -> list[ResidualBlock]:
        return [cast(ResidualBlock, block) for block in self.blocks]

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> tuple[Any, ...]:
        return tuple(block.init_state(batch_size, max_length=max_length) for block in self._layers)

    def state_size(self, length: int) -> int:
        """Counts the numbers that a sequence's states hold after `length` tokens, summed over layers (4 bytes each)."""
        return sum(block.mixer.state_size(length) for block in self._layers)

    def flops(self, length: int) -> int:
        """Counts the forward FLOPs for one sequence: mixers and channel mixers, two per multiply-add, norms none."""
        total = 0
        for block in self._layers:
            total += block.mixer.flops(length)
            if block.channel_mixer is not None:
                total += 2 * length * products_per_token(block.channel_mixer)
        return total


def _build(config: Mapping[str, Any], dim: int, bidirectional: bool) -> Mixer:
    name, wanted = config["name"], {"dim": dim}
    for key, value in {**wanted, "bidirectional": bidirectional}.items():
        if config.get(key, value) != value:
            raise ValueError(f"the stack has {key}={value}, got a mixer with {key}={config[key]}; remedy: leave it out")
    if bidirectional and isinstance(name, str):
        wanted |= looking_both_ways(name)
    module = build_mixer({**config, **wanted})
    if module.bidirectional != bidirectional:
        raise ValueError(
            f"the stack has bidirectional={bidirectional}, got mixer {name!r}, which can't be so; remedy: another mixer"
        )
    return module
