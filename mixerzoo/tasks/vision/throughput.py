"""An image model's forward pass costs time and memory: images a second, and peak bytes beside weights and input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerzoo.tasks.timing import median_seconds, peak_bytes


@torch.inference_mode()
def images_per_second(model: nn.Module, images: Tensor, repeats: int = 3) -> float:
    """Returns the rate of the median of `repeats` forward passes, after one that doesn't count."""
    return len(images) / median_seconds(lambda: model(images), images.device, repeats)


@torch.inference_mode()
def forward_peak_bytes(model: nn.Module, images: Tensor) -> int:
    """Returns the peak of torch's allocated memory during a forward pass, without weights and input."""
    return peak_bytes(lambda: model(images), images.device)
