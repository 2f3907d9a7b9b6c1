"""The zoo's image models consist of these parts: a block that scans an image, and TorchScript's way to call it."""

# Without `from __future__ import annotations`: TorchScript reads the annotations of what it calls back.
import copy
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from timm.layers import DropPath, LayerScale
from timm.models import register_notrace_module
from torch import Tensor, nn

from mixerzoo.blocks.channel_mixers import GLU
from mixerzoo.blocks.depth import DepthWalk
from mixerzoo.blocks.residual import ResidualBlock
from mixerzoo.blocks.scan_order import scan_passes
from mixerzoo.blocks.stack import CHANNEL_MIXER_KEYS
from mixerzoo.mixers.parts import Mixer
from mixerzoo.mixers.parts.lower_bounds import LowerBounds
from mixerzoo.registry.catalog import build_mixer, looking_both_ways
from mixerzoo.registry.registry import unknown


@register_notrace_module
class ImageBlock(ResidualBlock):
    """Applies a residual block to an image: [B,N,D] -> [B,N,D], `N = height width`, less the tokens of patch dropout.

    Stochastic depth, a layer's scale and dropout stand on both branches. The arguments are `IsotropicMixer`'s.
    """

    def __init__(
        self,
        mixer: str,
        dim: int,
        mixer_kwargs: Mapping[str, Any] | None,
        *,
        channel_mixer: Mapping[str, Any] | None,
        block_weights: float,
        norm: str,
        scan_order: str,
        class_token: bool,
        drop_path: float,
        init_values: float | None,
        dropout: float,
    ) -> None:
        def branch() -> nn.Module:
            scale = nn.Identity() if init_values is None else LayerScale(dim, init_values=init_values)
            return nn.Sequential(nn.Dropout(dropout), scale, DropPath(drop_path))

        token_mixer = build_image_mixer(mixer, dim, mixer_kwargs)
        glu = build_channel_mixer(token_mixer, block_weights, channel_mixer)
        super().__init__(token_mixer, glu, norm=norm, mixer_branch=branch(), channel_branch=branch())
        self.scan_order, self.class_token = scan_order, class_token

    def forward(  # type: ignore[override]
        self, x: Tensor, height: int, width: int, shared: dict[str, Tensor], kept: Tensor | None
    ) -> Tensor:
        """Applies the block.

        shared: this layer's values of what layers share. kept: [B,n] int64, the places of the tokens left in x.
        """
        y = self.mixer_norm(x)
        for orders in scan_passes(self.scan_order, height, width, kept=kept, class_token=self.class_token):
            y = self.mixer(y, shared=shared, orders=orders)
        return self.finish(x, y)

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptedBlock(self)


class ScriptedBlock(nn.Module):
    """Stands for a block in a scripted model, which calls it back in Python; its parameters are the block's own.

    Mixers choose kernels by device, dtype and length, which TorchScript can't express. Such a model runs and trains
    like the original, but lives in memory only: saving it raises an error (remedy: torch.export).
    """

    def __init__(self, block: ImageBlock) -> None:
        super().__init__()
        self.number = next(_NUMBERS)
        _BLOCKS[self.number] = block
        for name, parameter in block.named_parameters():
            self.register_parameter(name.replace(".", "__"), parameter)
        for name, buffer in block.named_buffers():
            self.register_buffer(name.replace(".", "__"), buffer)
        self.train(block.training)

    def forward(self, x: Tensor, height: int, width: int, shared: dict[str, Tensor], kept: Tensor | None) -> Tensor:
        return _call_block(self.number, self.training, x, height, width, shared, kept)


_BLOCKS: dict[int, ImageBlock] = {}
_NUMBERS = itertools.count()


@torch.jit.ignore
def _call_block(
    number: int, training: bool, x: Tensor, height: int, width: int, shared: dict[str, Tensor], kept: Tensor | None
) -> Tensor:
    return _BLOCKS[number].train(training)(x, height, width, shared, kept)


class SharingLayers(nn.Module):
    """A model, or a stage of one, whose `blocks` share things over depth, also where TorchScript calls it back.

    first_layer: the number of its first block among all the model's layers.
    """

    # Of the original among _LAYERS, in a model that is to be scripted. TorchScript can't have `blocks` annotated too.
    number: int = -1
    first_layer: int = 0

    @torch.jit.ignore
    def begin_sharing(self) -> dict[str, Tensor]:
        """Computes what a pass carries through the layers."""
        return DepthWalk(_original(self)).carried

    @torch.jit.ignore
    def share(self, layer: int, x: Tensor, carried: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns what block `layer` gets for its input x, and what is carried on."""
        host = _original(self)
        walk = DepthWalk(host, host.first_layer + layer, carried)
        return walk(cast(nn.ModuleList, host.blocks)[layer], x), walk.carried


_LAYERS: dict[int, SharingLayers] = {}


def _original(host: SharingLayers) -> SharingLayers:
    return host if isinstance(host, SharingLayers) else _LAYERS[host.number]


register_notrace_module(LowerBounds)
Host = TypeVar("Host", bound=nn.Module)


def with_blocks_of_its_own(host: Host) -> Host:
    """Copies the modules around the same tensors, because torch.jit.script changes the model that it gets."""
    for module in host.modules():
        if isinstance(module, SharingLayers):
            module.number = next(_NUMBERS)
            _LAYERS[module.number] = module
    return copy.deepcopy(host, {id(tensor): tensor for tensor in (*host.parameters(), *host.buffers())})


def build_image_mixer(mixer: str, dim: int, mixer_kwargs: Mapping[str, Any] | None) -> Mixer:
    """Builds the mixer, bidirectional if it can be."""
    return build_mixer(mixer, **{"dim": dim, **looking_both_ways(mixer), **(mixer_kwargs or {})})


def build_channel_mixer(mixer: Mixer, weights: float, channel_mixer: Mapping[str, Any] | None) -> GLU:
    """Builds a GLU so wide that it and the mixer have `weights` dim^2 weights (biases and norms not counted).

    A `hidden` or `multiplier` among the keywords of `channel_mixer` overrides this width. The width is a multiple of 8.
    Raises ValueError for a mixer so large that the width would fall below dim/2: its block would not equal the others'.
    """
    keywords = dict(channel_mixer or {})
    for key in keywords:
        if key not in CHANNEL_MIXER_KEYS:
            raise ValueError(unknown("keyword of channel_mixer", key, CHANNEL_MIXER_KEYS))
    if not {"hidden", "multiplier"} & set(keywords):
        taken = sum(parameter.numel() for parameter in mixer.parameters() if parameter.ndim > 1)
        keywords["hidden"] = hidden = 8 * round((weights * mixer.dim**2 - taken) / (24 * mixer.dim))
        if hidden < mixer.dim // 2:
            least = mixer.dim // 2
            raise ValueError(
                f"{mixer.config['name']} of dim={mixer.dim} has {taken:,} of its block's {weights * mixer.dim**2:,.0f} "
                f"weights, so the GLU would have {hidden} channels, at least dim/2 = {least} are allowed; remedy: "
                f'channel_mixer={{"hidden": {least}}} for a larger block, or a smaller mixer'
            )
    return GLU(mixer.dim, **keywords)


def undecayed(model: nn.Module) -> set[str]:
    """Returns the names of the lower bounds, and of the parameters that a mixer marks with `_no_weight_decay`."""
    bounds = {f"{name}.logits" for name, module in model.named_modules() if isinstance(module, LowerBounds)}
    return bounds | {name for name, parameter in model.named_parameters() if hasattr(parameter, "_no_weight_decay")}
