"""What an image model's forward pass costs: images a second, and memory beside weights and input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerzoo.tasks.timing import median_seconds, peak_bytes


@torch.inference_mode()
def images_per_second(model: nn.Module, images: Tensor, repeats: int = 3) -> float:
    """From the median time of `repeats` forward passes after one that isn't counted."""
    return len(images) / median_seconds(lambda: model(images), images.device, repeats)


@torch.inference_mode()
def forward_peak_bytes(model: nn.Module, images: Tensor) -> int:
    """The most memory that torch's allocator had given out during a forward pass, weights and input not counted."""
    return peak_bytes(lambda: model(images), images.device)
