"""The effective receptive field shows which pixels decide an image model's features in the middle of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """`R = mean over images, sum over channels of |d (sum_c feature_c in the middle) / d pixel|`, 1 at its largest.

    R is the input gradient of arXiv:1701.04128, section 2, with absolute values. The features are the last ones of a
    timm model, before its norm: a sum over normed channels would say nothing. images: [B,C,H,W] -> [H,W], fp32, on the
    CPU. The model's mode and its gradients stay unchanged.
    """
    was_training = model.training
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        (features,) = model.eval().forward_intermediates(images, indices=1, intermediates_only=True)  # type: ignore[operator]
        middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle.sum(), images)
    model.train(was_training)
    field = gradient.abs().sum(1).mean(0).float().cpu()
    return field / field.max().clamp(min=torch.finfo(field.dtype).tiny)
