"""timm knows the zoo's image models by these names, for every mixer: `zoo_<mixer>_<size>_<shape>`.

    zoo_<mixer>_{tiny,small,base}_patch16_224   ViT's shape: widths 192, 384, 768, 12 blocks, learned positions
    zoo_<mixer>_{tiny,small}_patch14_224        the shape of the HGRN authors' ImageNet models: no position embedding
    zoo_<mixer>_pyramid_{tiny,small}            four stages, features at strides 4, 8, 16, 32

Blocks have as many weights as ViT's, 12 D^2. In the authors' shape they have 13 D^2, which is the authors' number for
HGRN and HGRN2. The GLU takes the weights that the mixer leaves, so models of one size differ in the mixer alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from mixerzoo.registry.catalog import MIXERS

from .zoo_isotropic import IsotropicMixer
from .zoo_isotropic import checkpoint_filter_fn as filter_isotropic
from .zoo_pyramid import PyramidMixer
from .zoo_pyramid import checkpoint_filter_fn as filter_pyramid

Builder = Callable[[str, bool, dict[str, Any]], nn.Module]

# What a mixer is built with in images, by width; with its defaults where it doesn't stand here. Heads have 64 channels,
# as ViT's, where 64 divides the width. Positions come from the position embedding (patch16) or the mixer (the others).
MIXER_SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "attention": lambda dim: {"num_heads": dim // math.gcd(dim, 64)},
    "gla": lambda dim: {"num_heads": dim // math.gcd(dim, 64)},
    "hgrn2": lambda dim: {"expand": math.gcd(dim, 64)},
    "retnet": lambda dim: {"num_heads": dim // math.gcd(dim, 64)},
}
WITH_POSITIONS: dict[str, dict[str, Any]] = {"attention": {"rotary": False}, "retnet": {"rotary": "none"}}
# The published parameter counts need biases. The activations are those of the authors' bidirectional module.
PAPER_SHAPE: dict[str, dict[str, Any]] = {"hgrn2": {"bias": True, "q_activation": "sigmoid", "v_activation": "silu"}}

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
PAPER = {
    "patch_size": 14,
    "pos_embed": "none",
    "block_weights": 13.0,
    "channel_mixer": {"bias": True},
    "final_norm": "srms",
    "fc_norm": True,
}
PYRAMIDS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 5, 2)},
    "small": {"embed_dims": (64, 128, 320, 512), "depths": (2, 2, 17, 2)},
}
default_cfgs: dict[str, Any] = {}


def backbone_name(mixer: str, variant: str) -> str:
    """Returns `zoo_<mixer>_<variant>`. A dot, slash or colon means something to timm, so it becomes an underscore."""
    return "_".join(("zoo", re.sub(r"[./:\\]", "_", mixer), variant))


def register_backbones(mixer: str) -> None:
    """Registers all models of one mixer."""
    settings = WITH_POSITIONS.get(mixer, {})
    for size, width in WIDTHS.items():
        shape: dict[str, Any] = {"embed_dim": width}
        _register(
            backbone_name(mixer, f"{size}_patch16_224"),
            _isotropic(mixer, shape, settings),
            _token_cfg(),
        )
    settings = PAPER_SHAPE.get(mixer, {})
    for size in ("tiny", "small"):
        shape = {"embed_dim": WIDTHS[size], **PAPER}
        _register(
            backbone_name(mixer, f"{size}_patch14_224"),
            _isotropic(mixer, shape, settings),
            _token_cfg(),
        )
        _register(backbone_name(mixer, f"pyramid_{size}"), _pyramid(mixer, PYRAMIDS[size]), _pyramid_cfg())


def _register(name: str, builder: Builder, cfg: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return builder(name, pretrained, kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    default_cfgs.update(generate_default_cfgs({name: cfg}))
    register_model(entry_point)


def _isotropic(mixer: str, shape: dict[str, Any], settings: dict[str, Any]) -> Builder:
    def build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
        kwargs = shape | kwargs
        out_indices = kwargs.pop("out_indices", 3)
        given = kwargs.pop("mixer_kwargs", None) or {}
        return build_model_with_cfg(
            IsotropicMixer,
            name,
            pretrained,
            pretrained_filter_fn=filter_isotropic,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            mixer=mixer,
            mixer_kwargs=_settings(mixer, kwargs["embed_dim"]) | settings | given,
            **kwargs,
        )

    return build


def _pyramid(mixer: str, shape: dict[str, Any]) -> Builder:
    def build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
        kwargs = shape | kwargs
        out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
        given = kwargs.pop("mixer_kwargs", None) or {}
        return build_model_with_cfg(
            PyramidMixer,
            name,
            pretrained,
            pretrained_filter_fn=filter_pyramid,
            feature_cfg={"out_indices": out_indices, "flatten_sequential": True},
            mixer=mixer,
            mixer_kwargs=[_settings(mixer, dim) | given for dim in kwargs["embed_dims"]],
            **kwargs,
        )

    return build


def _settings(mixer: str, width: int) -> dict[str, Any]:
    return MIXER_SETTINGS[mixer](width) if mixer in MIXER_SETTINGS else {}


def _cfg(**more: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "license": "apache-2.0",
        **more,
    }


def _token_cfg() -> dict[str, Any]:
    return _cfg(fixed_input_size=True, pool_size=None, first_conv="patch_embed.proj", classifier="head")


def _pyramid_cfg() -> dict[str, Any]:
    return _cfg(pool_size=(7, 7), first_conv="stem.0", classifier="head.fc")


MIXERS.watch(register_backbones)
