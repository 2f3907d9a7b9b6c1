"""timm knows the zoo's image models by these names, for every mixer: `zoo_<mixer>_<size>_<shape>`.

    zoo_<mixer>_{tiny,small,base}_patch16_224   ViT's shape: widths 192, 384, 768, 12 blocks, learned positions
    zoo_<mixer>_{tiny,small}_patch14_224        the shape of the HGRN authors' ImageNet models: no position embedding
    zoo_<mixer>_pyramid_{tiny,small}            four stages, features at strides 4, 8, 16, 32

Blocks have as many weights as ViT's, 12 D^2. In the authors' shape they have 13 D^2, which is the authors' number for
HGRN and HGRN2. The GLU takes the weights that the mixer leaves, so models of one size differ in the mixer alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from mixerzoo.mixers.parts import MixerSpec
from mixerzoo.registry.catalog import MIXERS, mixer_info

from .zoo_isotropic import IsotropicMixer
from .zoo_isotropic import checkpoint_filter_fn as filter_isotropic
from .zoo_pyramid import PyramidMixer
from .zoo_pyramid import checkpoint_filter_fn as filter_pyramid

Builder = Callable[[str, bool, dict[str, Any]], nn.Module]

HEAD = 64  # channels a head, as ViT's, where 64 divides the width
Keywords = Callable[[MixerSpec], Mapping[str, Any]]

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
    for size, width in WIDTHS.items():
        shape: dict[str, Any] = {"embed_dim": width}
        _register(
            backbone_name(mixer, f"{size}_patch16_224"),
            _isotropic(mixer, shape, lambda spec: spec.without_positions),  # the model adds them
            _token_cfg(),
        )
    for size in ("tiny", "small"):
        shape = {"embed_dim": WIDTHS[size], **PAPER}
        _register(
            backbone_name(mixer, f"{size}_patch14_224"),
            _isotropic(mixer, shape, lambda spec: spec.paper_images),
            _token_cfg(),
        )
        _register(backbone_name(mixer, f"pyramid_{size}"), _pyramid(mixer, PYRAMIDS[size]), _pyramid_cfg())


def _register(name: str, builder: Builder, cfg: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return builder(name, pretrained, kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    default_cfgs.update(generate_default_cfgs({name: cfg}))
    register_model(entry_point)


def _isotropic(mixer: str, shape: dict[str, Any], keywords: Keywords) -> Builder:
    def build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
        spec = mixer_info(mixer)
        kwargs = shape | _scan_order(spec) | kwargs
        out_indices = kwargs.pop("out_indices", 3)
        given = kwargs.pop("mixer_kwargs", None) or {}
        return build_model_with_cfg(
            IsotropicMixer,
            name,
            pretrained,
            pretrained_filter_fn=filter_isotropic,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            mixer=mixer,
            mixer_kwargs={**MIXERS.get(mixer).fitted(kwargs["embed_dim"], HEAD), **keywords(spec), **given},
            **kwargs,
        )

    return build


def _pyramid(mixer: str, shape: dict[str, Any]) -> Builder:
    def build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
        kwargs = shape | _scan_order(mixer_info(mixer)) | kwargs
        out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
        given = kwargs.pop("mixer_kwargs", None) or {}
        return build_model_with_cfg(
            PyramidMixer,
            name,
            pretrained,
            pretrained_filter_fn=filter_pyramid,
            feature_cfg={"out_indices": out_indices, "flatten_sequential": True},
            mixer=mixer,
            mixer_kwargs=[{**MIXERS.get(mixer).fitted(dim, HEAD), **given} for dim in kwargs["embed_dims"]],
            **kwargs,
        )

    return build


def _scan_order(spec: MixerSpec) -> dict[str, Any]:
    return {"scan_order": "plane"} if "plane" in spec.capabilities else {}


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
