"""What the image models of the zoo are made of: a block that scans an image, and how TorchScript calls it."""

# Without `from __future__ import annotations`: TorchScript reads the annotations of what it calls back.
import copy
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from timm.layers import DropPath, LayerScale
from timm.models import register_notrace_module
from torch import Tensor, nn

from mixerzoo.blocks.channel_mixers import GLU
from mixerzoo.blocks.residual import ResidualBlock
from mixerzoo.blocks.scan_order import scan_passes
from mixerzoo.blocks.stack import CHANNEL_MIXER_KEYS
from mixerzoo.mixers.parts.contract import Mixer
from mixerzoo.mixers.parts.lower_bounds import LowerBounds
from mixerzoo.registry.catalog import build_mixer, mixer_info
from mixerzoo.registry.registry import unknown


@register_notrace_module
class ImageBlock(ResidualBlock):
    """A residual block over an image: [B,N,D] -> [B,N,D], `N = height width`, less what patch dropout took.

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
        self, x: Tensor, height: int, width: int, bound: Tensor | None, kept: Tensor | None
    ) -> Tensor:
        """bound: [D], this layer's lower bound. kept: [B,n] int64, the places of the tokens that x still has."""
        y = self.mixer_norm(x)
        for orders in scan_passes(self.scan_order, height, width, kept=kept, class_token=self.class_token):
            y = self.mixer(y, shared=bound, orders=orders)
        return self.finish(x, y)

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptedBlock(self)


class ScriptedBlock(nn.Module):
    """A block inside of a scripted model, which calls it back in Python; its parameters are the block's own.

    Mixers choose kernels by device, dtype and length, which TorchScript can't express. Such a model runs and trains as
    the original does; saving it raises an error (remedy: torch.export), and it stays in memory.
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

    def forward(self, x: Tensor, height: int, width: int, bound: Tensor | None, kept: Tensor | None) -> Tensor:
        return _call_block(self.number, self.training, x, height, width, bound, kept)


_BLOCKS: dict[int, ImageBlock] = {}
_NUMBERS = itertools.count()


@torch.jit.ignore
def _call_block(
    number: int, training: bool, x: Tensor, height: int, width: int, bound: Tensor | None, kept: Tensor | None
) -> Tensor:
    return _BLOCKS[number].train(training)(x, height, width, bound, kept)


register_notrace_module(LowerBounds)
Host = TypeVar("Host", bound=nn.Module)


def with_blocks_of_its_own(host: Host) -> Host:
    """Its own modules around the same tensors: torch.jit.script puts what it prepares into the model that it got."""
    return copy.deepcopy(host, {id(tensor): tensor for tensor in (*host.parameters(), *host.buffers())})


def build_image_mixer(mixer: str, dim: int, mixer_kwargs: Mapping[str, Any] | None) -> Mixer:
    """The mixer, looking both ways where it can."""
    both_ways = "bidirectional" in mixer_info(mixer).capabilities
    return build_mixer(mixer, **{"dim": dim, **({"bidirectional": True} if both_ways else {}), **(mixer_kwargs or {})})


def build_channel_mixer(mixer: Mixer, weights: float, channel_mixer: Mapping[str, Any] | None) -> GLU:
    """A GLU of such a width that mixer and GLU have `weights` dim^2 weights together (biases and norms not counted).

    A `hidden` or `multiplier` among the keywords of `channel_mixer` decides in its place. The width is a multiple of 8.
    Raises ValueError for a mixer so large that it would be less than dim/2: the block would be no equal of the others.
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


def reset_parameters(model: nn.Module) -> None:
    """Every module of the model to its start."""
    for module in model.modules():
        if reset := getattr(module, "reset_parameters", None):
            reset()


def undecayed(model: nn.Module) -> set[str]:
    """Names of the lower bounds, and of what a mixer marks with `_no_weight_decay`."""
    bounds = {f"{name}.logits" for name, module in model.named_modules() if isinstance(module, LowerBounds)}
    return bounds | {name for name, parameter in model.named_parameters() if hasattr(parameter, "_no_weight_decay")}
