"""The hierarchical image model serves detection and segmentation: four stages of any mixer, in timm's contract."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any, cast

import torch
from timm.layers import ClassifierHead, LayerNorm2d, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mixerzoo.blocks.depth import share_over_depth
from mixerzoo.blocks.scan_order import check_scan_order
from mixerzoo.blocks.start import reset_parameters

from .zoo_blocks import (
    ImageBlock,
    SharingLayers,
    undecayed,
    with_blocks_of_its_own,
)


class Stage(SharingLayers):
    """Runs blocks at one resolution; all but the first stage halve it before: [B,C,H,W] -> [B,D,H',W'].

    A stage knows its own layers among the model's: the lower bounds of its gates are rows `first_layer` on of [depth of
    the model, D].
    """

    def __init__(
        self,
        in_dim: int,
        blocks: Sequence[ImageBlock],
        *,
        downsample: bool,
        lower_bounds: str | None,
        first_layer: int,
        model_depth: int,
    ) -> None:
        super().__init__()
        dim = blocks[0].mixer.dim
        halve = nn.Sequential(LayerNorm2d(in_dim), nn.Conv2d(in_dim, dim, 3, stride=2, padding=1))
        self.downsample = halve if downsample else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.first_layer = first_layer
        share_over_depth(
            self,
            (block.mixer for block in blocks),
            dim=dim,
            depth=model_depth,
            first=first_layer,
            options={"lower_bounds": lower_bounds},
        )
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        height, width = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        carried = self.begin_sharing()
        for i, block in enumerate(self.blocks):
            shared, carried = self.share(i, x, carried)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, height, width, shared, None)
            else:
                x = block(x, height, width, shared, None)
        return x.transpose(1, 2).unflatten(2, [height, width])


class PyramidMixer(nn.Module):
    """Applies a convolutional stem, stages at strides 4, 8, 16, 32, a norm, a mean and a linear classifier.

    It takes every image size. It has no position embedding: stem and downsampling see where their padding is.

    Args:
        in_chans, num_classes: of images and classifier (0 classes: pooled features).
        global_pool: avg | avgmax | max | catavgmax | "" (none).
        embed_dims, depths: widths and numbers of blocks of the stages.
        mixer, mixer_kwargs: name and keywords of the mixer, for every stage or, a list, stage by stage; bidirectional
            unless its spec or the keywords say no.
        scan_order, channel_mixer, block_weights, norm, lower_bounds, proj_drop_rate, drop_path_rate, init_values: as of
            `IsotropicMixer`; the bounds grow over all the stages.
        drop_rate: before the classifier.

    Raises ValueError for settings that contradict each other, TypeError for unknown ones.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        mixer: str = "attention",
        mixer_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        scan_order: str = "row",
        channel_mixer: Mapping[str, Any] | None = None,
        block_weights: float = 12.0,
        norm: str = "layer",
        lower_bounds: str | None = "skip_last",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init_values: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_scan_order(scan_order)
        if len(embed_dims) != len(depths) or not depths or min(depths) < 1:
            raise ValueError(f"a pyramid needs a width and a depth >= 1 a stage, got {embed_dims} and {depths}")
        by_stage = [mixer_kwargs] * len(depths) if isinstance(mixer_kwargs, (Mapping, type(None))) else mixer_kwargs
        if len(by_stage) != len(depths):
            raise ValueError(f"mixer_kwargs must be one mapping, or one a stage ({len(depths)}), got {len(by_stage)}")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.feature_info = [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": 4 * 2**i} for i, dim in enumerate(embed_dims)
        ]
        with nullcontext() if device is None else torch.device(device):
            first, half = embed_dims[0], embed_dims[0] // 2
            self.stem = nn.Sequential(
                nn.Conv2d(in_chans, half, 3, stride=2, padding=1),
                LayerNorm2d(half),
                nn.GELU(),
                nn.Conv2d(half, first, 3, stride=2, padding=1),
                LayerNorm2d(first),
            )
            starts = [0, *accumulate(depths)]
            rates = cast(list[float], calculate_drop_path_rates(drop_path_rate, starts[-1]))
            stages = []
            for i, dim in enumerate(embed_dims):
                blocks = [
                    ImageBlock(
                        mixer,
                        dim,
                        by_stage[i],
                        channel_mixer=channel_mixer,
                        block_weights=block_weights,
                        norm=norm,
                        scan_order=scan_order,
                        class_token=False,
                        drop_path=drop_path,
                        init_values=init_values,
                        dropout=proj_drop_rate,
                    )
                    for drop_path in rates[starts[i] : starts[i + 1]]
                ]
                stage = Stage(
                    embed_dims[max(i - 1, 0)],
                    blocks,
                    downsample=i > 0,
                    lower_bounds=lower_bounds,
                    first_layer=starts[i],
                    model_depth=starts[-1],
                )
                stages.append(stage)
            self.stages = nn.Sequential(*stages)
            self.num_features = embed_dims[-1]
            self.norm: nn.Module = LayerNorm2d(self.num_features)
            self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features
        if dtype is not None:
            self.to(dtype)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Resets every parameter to its start, as after construction; this also works after `to_empty`."""
        reset_parameters(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Returns HGRN's lower bounds and theta, and whatever a mixer marks with `_no_weight_decay`."""
        return undecayed(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stages = [(r"^stages\.(\d+)", None)]
        blocks = [
            (r"^stages\.(\d+)\.(?:downsample|lower_bounds)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
        ]
        return {"stem": r"^stem", "blocks": [*(stages if coarse else blocks), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new classifier, on the old device, in the old dtype and mode.

        The pooling stays unless one is given.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last requested one, the norm with the last stage. Lower bounds do not change."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if prune_norm or last < len(self.stages) - 1:
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        if prune_head:
            self.num_features = self.feature_info[-1]["num_chs"]
            self.head.reset(0, pool_type="", in_features=self.num_features)
            self.num_classes, self.head_hidden_size = 0, self.head.num_features
        return taken

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Returns (final features, the outputs of the stages `indices`), or the latter alone; each is [B,D,H,W].

        norm acts on the last stage's output, the only one that has a norm. indices: an int n: the last n; None: all.
        """
        assert output_fmt == "NCHW", f"output_fmt must be NCHW, got {output_fmt}"
        taken, last = feature_take_indices(len(self.stages), indices)
        final = len(self.stages) - 1
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            if i <= last or not stop_early:
                x = stage(x)
                normed = self.norm(x) if i == final else x
                if i in taken:
                    outputs.append(normed if norm else x)
                if i == final:
                    x = normed
        return outputs if intermediates_only else (x, outputs)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps [B,C,H,W] -> [B,D,H/32,W/32], after the norm."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps [B,D,H,W] -> [B,num_classes], or [B,D] with pre_logits."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def __prepare_scriptable__(self) -> "PyramidMixer":
        return with_blocks_of_its_own(self)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: PyramidMixer) -> dict[str, Tensor]:
    """Returns a checkpoint's weights, which may stand under "model" or "state_dict". Nothing depends on image size."""
    state_dict = state_dict.get("model", state_dict)
    return dict(state_dict.get("state_dict", state_dict))
