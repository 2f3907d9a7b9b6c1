"""Normalisations by name."""

from __future__ import annotations

from torch import nn

from .base import check_choice

NORMS = ("layer", "rms", "srms", "group")


def make_norm(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """layer | rms, or without weights: group | srms ("SimpleRMSNorm").

    `group`, LayerNorm without weight and bias, over each head's channels is GroupNorm with a group a head."""
    check_choice("norm", kind, NORMS)
    if kind in ("layer", "group"):
        return nn.LayerNorm(width, eps=eps, elementwise_affine=kind == "layer")
    return nn.RMSNorm(width, eps=eps, elementwise_affine=kind == "rms")
