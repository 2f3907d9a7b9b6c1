"""Forward FLOPs of any model made of the zoo's mixers, linear maps and convolutions, from the shapes it sees.

A multiply-add is two. A mixer counts by its own formula, `Mixer.flops`, so what a backend does on the way to the same
result doesn't matter; norms, activations and element-wise products outside the mixers are left out.
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
    """Within the block, forward passes of `model` are added up without gradients; the function it gives tells the sum.

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
    """Mixers, whose insides are theirs, and every linear map and convolution elsewhere."""
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
