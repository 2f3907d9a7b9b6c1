"""FLOPs of a forward pass are counted from shapes, for any model of the zoo's mixers, linear maps and convolutions.

A multiply-add is two. A mixer counts by its own formula, `Mixer.flops`, so a backend's extra work doesn't matter.
Norms, activations and element-wise products outside the mixers are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.mixers.parts.contract import Mixer


@contextmanager
def counting_flops(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the FLOPs of `model`'s forward passes within the block, without gradients.

    The yielded function returns the sum.

    The model may be on the meta device.
    """
    counts: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        counts.append(_flops(module, args[0], output, len(kwargs.get("orders") or ()) or 1))

    hooks = [module.register_forward_hook(count, with_kwargs=True) for module in _counted(model)]
    try:
        with torch.no_grad():
            yield lambda: sum(counts)
    finally:
        for hook in hooks:
            hook.remove()


def _counted(module: nn.Module) -> Iterator[nn.Module]:
    """Yields mixers as wholes, and every linear map and convolution outside them."""
    if isinstance(module, (Mixer, nn.Linear, nn.Conv1d, nn.Conv2d)):
        yield module
        return
    for child in module.children():
        yield from _counted(child)


def _flops(module: nn.Module, x: Tensor, output: Tensor, scans: int) -> int:
    if isinstance(module, Mixer):
        rows, length = x.shape[:2]
        return rows * (module.flops(length) + (scans - 1) * module.mixing_flops(length))
    weight = module.weight
    assert isinstance(weight, Tensor)
    return 2 * weight.numel() * (output.numel() // weight.shape[0])
