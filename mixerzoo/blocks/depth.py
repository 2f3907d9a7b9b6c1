"""Layers share things over depth: HGRN's lower bounds, a value of the first layer, a layer's place.

A mixer declares the kinds that it shares in `depth_shared`. A model owns one module for each kind that its mixers
declare (`share_over_depth`), and every pass over its layers asks for each layer's values (`DepthWalk`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from mixerzoo.mixers.parts import DepthShared, Mixer

from .residual import ResidualBlock

KINDS = "depth_kinds"  # a model's attribute: the names under which it has the modules of its kinds


def share_over_depth(
    model: nn.Module,
    mixers: Iterable[Mixer],
    *,
    dim: int,
    depth: int,
    first: int = 0,
    options: Mapping[str, Any],
) -> None:
    """Gives a model the modules of all kinds that its mixers share, and every mixer its place among `depth` layers.

    A module is named as its kind says; a model without it has None under that name.

    Args:
        dim: width of the layers.
        depth: layers of the whole model; first: of them those that stand ahead of these mixers.
        options: the model's own of a kind, by its attribute: what its constructor takes after depth and dim, None
            for no such kind. {"lower_bounds": "skip_first"}.
    """
    mixers = list(mixers)
    for layer, mixer in enumerate(mixers, start=first):
        mixer.place(layer, depth)
    declared = {kind.attribute: kind for mixer in mixers for kind in mixer.depth_shared}
    for attribute in sorted({*options, *declared}):
        kind, chosen = declared.get(attribute), [options[attribute]] if attribute in options else []
        left_out = kind is None or chosen == [None]
        setattr(model, attribute, None if left_out else declared[attribute](depth, dim, *chosen))
    setattr(model, KINDS, tuple(attribute for attribute in sorted(declared) if getattr(model, attribute) is not None))


class DepthWalk:
    """One pass over the layers of a model that `share_over_depth` prepared.

        walk = DepthWalk(model)
        for block in model.blocks:
            x = block(x, shared=walk(block, x))

    Args:
        model: owns the shared modules.
        first: the first layer's number, for a model whose layers are not all its own.
        carried: what an earlier walk left, to go on with it.
    """

    def __init__(self, model: nn.Module, first: int = 0, carried: dict[str, Tensor] | None = None) -> None:
        self.kinds: list[DepthShared] = [getattr(model, attribute) for attribute in getattr(model, KINDS)]
        self.layer = first
        if carried is None:
            begun = {kind.name: kind.begin() for kind in self.kinds}
            carried = {name: value for name, value in begun.items() if value is not None}
        self.carried = carried

    def __call__(self, block: nn.Module, x: Tensor, **ways: Any) -> dict[str, Tensor]:
        """Returns the next layer's values by their kinds' names.

        x: what comes into its block, [B,T,D] or, for a step, [B,D]. ways: the block's mask, cu_seqlens and state."""
        values = {}
        for kind in self.kinds:
            if type(kind) in cast(ResidualBlock, block).mixer.depth_shared:
                value, carried = kind.at(self.carried.get(kind.name), self.layer, block, x, **ways)
                values[kind.name], self.carried[kind.name] = value, carried
        self.layer += 1
        return values
