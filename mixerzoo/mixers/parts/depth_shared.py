"""Kinds of things that a model's layers share over its depth; blocks/depth.py hands them to the layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn


class DepthShared(nn.Module):
    """One kind of thing that layers share. A model owns one for all its layers that declare it in `depth_shared`.

    A mixer finds its own under the kind's `name` in the mapping `shared` that its `mix` gets. Subclasses implement
    `begin` or `at`, and the constructor takes the model's depth and width and the model's options of that name.

    name: the key in `shared`. attribute: the module's name in the model, and so in its checkpoints. in_time: its values
    are [B,T,...], a row for every token.
    """

    name: ClassVar[str]
    attribute: ClassVar[str]
    in_time: ClassVar[bool] = False

    def begin(self) -> Tensor | None:
        """Computes, once for all layers, what is carried through the layers; None for nothing yet."""
        return None

    def at(self, carried: Tensor | None, layer: int, block: Any, x: Tensor, **ways: Any) -> tuple[Tensor, Tensor]:
        """Returns a layer's value and what is carried on. x: [B,T,D], what comes into the layer's block."""
        raise NotImplementedError


class FirstValue(DepthShared):
    """Carries a value of the first layer that declares it to all later ones, as RWKV-7's v_first (arXiv:2503.14456).

    That layer computes it by `Mixer.first_value` from its own input, and finds it in `shared` like the others. A mixer
    built alone finds none and acts as the first layer.
    """

    name = "first_value"
    attribute = "first_value"
    in_time = True

    def __init__(self, depth: int, dim: int) -> None:
        super().__init__()

    def at(self, carried: Tensor | None, layer: int, block: Any, x: Tensor, **ways: Any) -> tuple[Tensor, Tensor]:
        value = block.first_value(x, **ways) if carried is None else carried
        return value, value
