"""Normalisations by name: those of single tokens, and batch normalisation, which needs to know what padding is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_choice

NORMS = ("layer", "rms", "srms", "group")
BLOCK_NORMS = (*NORMS, "batch")


def make_norm(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """Makes a norm: layer | rms, or without weights group | srms ("SimpleRMSNorm").

    `group`, LayerNorm without weight and bias, over each head's channels is GroupNorm with a group a head."""
    check_choice("norm", kind, NORMS)
    if kind in ("layer", "group"):
        return nn.LayerNorm(width, eps=eps, elementwise_affine=kind == "layer")
    return nn.RMSNorm(width, eps=eps, elementwise_affine=kind == "rms")


def make_block_norm(kind: str, width: int) -> nn.Module:
    """Makes the norm before a block's branches and after its last block: one of `make_norm`'s, or batch."""
    check_choice("norm", kind, BLOCK_NORMS)
    return BatchNorm(width) if kind == "batch" else make_norm(kind, width)


def normalize(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Computes `norm(x)`, where mask [B,T] says which of the tokens of x [B,T,D] are padding."""
    return norm(x, mask) if isinstance(norm, BatchNorm) else norm(x)


class BatchNorm(nn.Module):
    """`y = weight (x - mean) / sqrt(var + eps) + bias` with mean and variance of every channel over a batch's tokens.

    Padding doesn't count (arXiv:1502.03167 over [B,T]). In training a token therefore sees the others, also those after
    it: a causal mixer's model is not causal. In evaluation running averages of former batches take their place. Every
    process counts its own tokens. Under gradient checkpointing a batch enters the averages twice.

    Args:
        width: channels D.
        eps: added to the variance.
        momentum: of a new batch in the running averages."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("mean", torch.empty(width))
        self.register_buffer("variance", torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for tensor, value in ((self.weight, 1), (self.bias, 0), (self.mean, 0), (self.variance, 1)):
            nn.init.constant_(tensor, value)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[...,D] to the same. mask: bool of x's shape without D, True = token; None: all are."""
        mean, variance = self._of_batch(x, mask) if self.training else (self.mean, self.variance)
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean) * scale + self.bias).to(x.dtype)

    def _of_batch(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2)
        tokens = x.new_ones(len(x), 1) if mask is None else mask.reshape(-1, 1).to(x.dtype)
        count = tokens.sum()
        mean = (x * tokens).sum(0) / count
        variance = ((x - mean).square() * tokens).sum(0) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
            self.variance.lerp_(unbiased.to(self.variance.dtype), self.momentum)
        return mean, variance
