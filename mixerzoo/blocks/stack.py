"""A stack of residual blocks with any pattern of mixers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixerzoo.mixers.parts.contract import Mixer, Output
from mixerzoo.mixers.parts.layout import ScanOrder
from mixerzoo.mixers.parts.lower_bounds import LowerBounds
from mixerzoo.mixers.parts.norms import make_block_norm, normalize
from mixerzoo.registry.catalog import build_mixer
from mixerzoo.registry.pattern import Pattern, tiled
from mixerzoo.registry.registry import unknown

from .channel_mixers import GLU
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
        self.lower_bounds = lower_bounds_for((block.mixer for block in blocks), depth, dim, lower_bounds)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        passes: tuple[tuple[ScanOrder, ...], ...] = ((),),
    ) -> Tensor:
        """Whole sequences; mask and cu_seqlens as for a mixer. For images passes, as `scan_passes` gives them."""
        ways: dict[str, Any] = {"mask": mask, "cu_seqlens": cu_seqlens, "passes": passes}
        for block, shared in self._layers():
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, **ways, shared=shared, use_reentrant=False)
            else:
                x = block(x, **ways, shared=shared)
        return normalize(self.norm, x, mask)

    def prefill(self, x: Tensor, state: Sequence[Any] | None = None, *, mask: Tensor | None = None) -> Output:
        """A chunk of every sequence in, the states after it out, a tuple with one entry a layer."""
        states = [None] * len(self.blocks) if state is None else state
        new_states = []
        for (block, shared), layer_state in zip(self._layers(), states, strict=True):
            x, new_state = block.prefill(x, layer_state, mask=mask, shared=shared)
            new_states.append(new_state)
        return Output(normalize(self.norm, x, mask), tuple(new_states))

    def step(self, x_t: Tensor, state: Sequence[Any]) -> Output:
        """One token of every sequence: [B,D] -> [B,D]."""
        new_states = []
        for (block, shared), layer_state in zip(self._layers(), state, strict=True):
            x_t, new_state = block.step(x_t, layer_state, shared=shared)
            new_states.append(new_state)
        return Output(self.norm(x_t), tuple(new_states))

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> tuple[Any, ...]:
        return tuple(block.init_state(batch_size, max_length=max_length) for block, _ in self._layers())

    def state_size(self, length: int) -> int:
        """Numbers that a sequence's states hold after `length` tokens, summed over layers (4 bytes each)."""
        return sum(block.mixer.state_size(length) for block, _ in self._layers())

    def flops(self, length: int) -> int:
        """Forward FLOPs for one sequence: mixers and channel mixers, two per multiply-add; norms are not counted."""
        total = 0
        for block, _ in self._layers():
            total += block.mixer.flops(length)
            if block.channel_mixer is not None:
                maps = (module for module in block.channel_mixer.modules() if isinstance(module, nn.Linear))
                total += sum(2 * module.weight.numel() * length for module in maps)
        return total

    def _layers(self) -> list[tuple[ResidualBlock, Tensor | None]]:
        """Every block with its slice of what is shared over depth, which is computed once."""
        blocks = [cast(ResidualBlock, block) for block in self.blocks]
        if self.lower_bounds is None:
            return [(block, None) for block in blocks]
        bounds = self.lower_bounds().unbind(0)
        return [
            (block, bound if block.mixer.depth_shared else None) for block, bound in zip(blocks, bounds, strict=True)
        ]


def lower_bounds_for(mixers: Iterable[Mixer], depth: int, dim: int, convention: str | None) -> LowerBounds | None:
    """What the mixers of a model share over its depth, for the model to own; None if they share nothing."""
    shared = {mixer.depth_shared for mixer in mixers} - {None}
    if shared - {LowerBounds}:
        raise ValueError(f"a stack can share LowerBounds over depth, got a mixer that declares {shared}")
    return LowerBounds(depth, dim, convention) if shared and convention else None


def _build(config: Mapping[str, Any], dim: int, bidirectional: bool) -> Mixer:
    wanted = {"dim": dim, **({"bidirectional": True} if bidirectional else {})}
    for key, value in {"bidirectional": False, **wanted}.items():
        if config.get(key, value) != value:
            raise ValueError(f"the stack has {key}={value}, got a mixer with {key}={config[key]}; remedy: leave it out")
    return build_mixer({**config, **wanted})
