"""Where the parameters of a whole model start: each mixer's are its own business, as one whole."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from mixerzoo.mixers.parts import Mixer


def reset_parameters(model: nn.Module, std: float | None = None) -> None:
    """Starts every module of a model as after construction, each mixer as one whole; also after `to_empty`.

    std: see `Mixer.reset_parameters`."""
    for module in _outermost(model):
        if isinstance(module, Mixer):
            module.reset_parameters(std)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Every module, but nothing inside a mixer."""
    yield module
    if not isinstance(module, Mixer):
        for child in module.children():
            yield from _outermost(child)
