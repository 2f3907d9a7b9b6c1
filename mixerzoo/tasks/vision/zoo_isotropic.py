"""The isotropic image model has patches, one width and any mixer; it meets the contract of timm's models."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Final, cast

import torch
from timm.layers import (
    PatchDropoutWithIndices,
    PatchEmbed,
    calculate_drop_path_rates,
    get_device_dtype,
    resample_abs_pos_embed,
    resample_patch_embed,
    trunc_normal_,
)
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models._input import get_pretrained_grid_size, update_model_input_size
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from mixerzoo.blocks.depth import share_over_depth
from mixerzoo.blocks.scan_order import check_scan_order
from mixerzoo.blocks.start import reset_parameters
from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.mixers.parts.norms import make_norm

from .zoo_blocks import ImageBlock, SharingLayers, undecayed, with_blocks_of_its_own

POOLS = ("avg", "avgmax", "max", "token", "")


class IsotropicMixer(SharingLayers):
    """Applies patches, `depth` blocks of one width, a norm, a mean and a classifier: [B,3,H,W] -> [B,num_classes].

    Args:
        img_size, patch_size, in_chans, num_classes: of images, patches and classifier (0 classes: pooled features).
        global_pool: avg | avgmax | max | token (the class token) | "" (none).
        embed_dim, depth: width D and number of blocks.
        mixer, mixer_kwargs: name and keywords of the mixer; bidirectional unless its spec or the keywords say no.
        scan_order: a name of blocks/scan_order.py.
        channel_mixer: keywords of `GLU`; without hidden or multiplier, its width follows from block_weights.
        block_weights: weights of mixer and GLU together, over D^2: 12 as in ViT.
        norm: of the blocks: layer | rms | srms. final_norm: the last one. fc_norm: it comes after the pooling.
        lower_bounds: skip_last | skip_first, the convention of HGRN's bounds, for mixers that have them; None: none.
        pos_embed: learn | none.
        class_token: adds a token in the middle of the sequence, so that both directions reach it. It comes first in the
            output of forward_features.
        dynamic_img_size: take every image size, resampling the position embedding. dynamic_img_pad: pad images whose
            size the patches don't divide.
        drop_rate: before the classifier. pos_drop_rate: of the embedded tokens. patch_drop_rate: of tokens left out in
            training, the others keep their order. proj_drop_rate, drop_path_rate: of a block's branches.
        init_values: the start of a learned scale on every branch; None: no scale.

    Raises ValueError for settings that contradict each other, TypeError for unknown ones.
    """

    dynamic_img_size: Final[bool]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 12,
        mixer: str = "attention",
        mixer_kwargs: Mapping[str, Any] | None = None,
        scan_order: str = "row",
        channel_mixer: Mapping[str, Any] | None = None,
        block_weights: float = 12.0,
        norm: str = "layer",
        final_norm: str = "layer",
        fc_norm: bool = False,
        lower_bounds: str | None = "skip_last",
        pos_embed: str = "learn",
        class_token: bool = False,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init_values: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_scan_order(scan_order, whole_image=class_token or patch_drop_rate > 0)
        check_choice("pos_embed", pos_embed, ("learn", "none"))
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = int(class_token)
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False
        self._check_pool(global_pool)
        with nullcontext() if device is None else torch.device(device):
            self.patch_embed = PatchEmbed(
                img_size,
                cast(int, patch_size),  # a pair will do
                in_chans,
                embed_dim,
                output_fmt="NHWC",
                strict_img_size=not dynamic_img_size,
                dynamic_img_pad=dynamic_img_pad,
            )
            tokens = math.prod(self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim)) if pos_embed == "learn" else None
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
            self.pos_drop = nn.Dropout(pos_drop_rate)
            self.patch_drop = PatchDropoutWithIndices(patch_drop_rate, num_prefix_tokens=0, ordered=True)
            blocks = [
                ImageBlock(
                    mixer,
                    embed_dim,
                    mixer_kwargs,
                    channel_mixer=channel_mixer,
                    block_weights=block_weights,
                    norm=norm,
                    scan_order=scan_order,
                    class_token=class_token,
                    drop_path=drop_path,
                    init_values=init_values,
                    dropout=proj_drop_rate,
                )
                for drop_path in cast(list[float], calculate_drop_path_rates(drop_path_rate, depth))
            ]
            self.blocks = nn.ModuleList(blocks)
            mixers, options = (block.mixer for block in blocks), {"lower_bounds": lower_bounds}
            share_over_depth(self, mixers, dim=embed_dim, depth=depth, options=options)
            self.norm = nn.Identity() if fc_norm else make_norm(final_norm, embed_dim)
            self.fc_norm = make_norm(final_norm, embed_dim) if fc_norm else nn.Identity()
            self.head_drop = nn.Dropout(drop_rate)
            self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
            self._init_tokens()
        patch = max(self.patch_embed.patch_size)
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch} for i in range(depth)]
        if dtype is not None:
            self.to(dtype)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Resets every parameter to its start, as after construction; this also works after `to_empty`."""
        reset_parameters(self)
        self._init_tokens()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Returns positions, class token, HGRN's bounds and theta, and what a mixer marks with `_no_weight_decay`."""
        return {"pos_embed", "cls_token"} | undecayed(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^cls_token|pos_embed|patch_embed|lower_bounds",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^fc_norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new classifier, on the old device, in the old dtype and mode.

        The pooling stays unless one is given.
        """
        if global_pool is not None:
            self._check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = get_device_dtype(self)
        self.head = nn.Linear(self.embed_dim, num_classes, **like) if num_classes else nn.Identity()
        self.head.train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Sets the size of images or patches from now on: kernel and position embedding are resampled."""
        old_grid = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        grid = self.patch_embed.grid_size
        if self.pos_embed is not None and grid != old_grid:
            resampled = resample_abs_pos_embed(self.pos_embed, grid, old_size=old_grid, num_prefix_tokens=0)
            self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks after the last requested one. The lower bounds of the remaining blocks do not change."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return taken

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Returns (final features, the outputs of the blocks `indices`), or the latter alone.

        The outputs are [B,D,H,W] or, with output_fmt="NLC", [B,N,D] without class token; with return_prefix_tokens,
        pairs of them and the class token [B,1,D]. indices: of blocks; an int n: the last n; None: all.
        """
        assert output_fmt in ("NCHW", "NLC"), f"output_fmt must be NCHW or NLC, got {output_fmt}"
        taken, last = feature_take_indices(len(self.blocks), indices)
        x, outputs, grid = self._run_blocks(x, taken, last if stop_early else len(self.blocks) - 1)
        if norm:
            outputs = [self.norm(y) for y in outputs]
        prefixes = [y[:, : self.num_prefix_tokens] for y in outputs]
        outputs = [y[:, self.num_prefix_tokens :] for y in outputs]
        if output_fmt == "NCHW":
            outputs = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in outputs]
        taps = list(zip(outputs, prefixes, strict=True)) if return_prefix_tokens and self.num_prefix_tokens else outputs
        return taps if intermediates_only else (self.norm(x), taps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps [B,C,H,W] -> [B,N,D], after the last norm, the class token first."""
        taken: list[int] = []
        return self.norm(self._run_blocks(x, taken, len(self.blocks) - 1)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps [B,N,D] -> [B,num_classes], or [B,D] with pre_logits."""
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def _run_blocks(self, x: Tensor, taken: list[int], last: int) -> tuple[Tensor, list[Tensor], list[int]]:
        """Returns the output of block `last`, the outputs of the blocks `taken`, and the grid [H, W] of tokens."""
        x = self.patch_embed(x)
        height, width = x.shape[1], x.shape[2]
        x = x.flatten(1, 2)
        if self.pos_embed is not None:
            positions = self.pos_embed
            if self.dynamic_img_size:
                grid = self.patch_embed.grid_size
                positions = resample_abs_pos_embed(positions, [height, width], old_size=grid, num_prefix_tokens=0)
            x = x + positions
        x, kept = self.patch_drop(self.pos_drop(x))
        if self.cls_token is not None:
            middle = x.shape[1] // 2
            x = torch.cat([x[:, :middle], self.cls_token.expand(x.shape[0], -1, -1), x[:, middle:]], 1)
        carried = self.begin_sharing()
        outputs: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                shared, carried = self.share(i, x, carried)
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, height, width, shared, kept)
                else:
                    x = block(x, height, width, shared, kept)
                if i in taken:
                    outputs.append(self._class_token_first(x))
        return self._class_token_first(x), outputs, [height, width]

    def _class_token_first(self, x: Tensor) -> Tensor:
        if self.cls_token is None:
            return x
        middle = (x.shape[1] - 1) // 2
        return torch.cat([x[:, middle : middle + 1], x[:, :middle], x[:, middle + 1 :]], 1)

    def _check_pool(self, pool: str) -> None:
        # AssertionError is what timm expects here.
        assert pool in POOLS, f"unknown global_pool {pool!r}; known: {', '.join(map(repr, POOLS))}"
        assert pool != "token" or self.num_prefix_tokens, "global_pool='token' needs class_token=True"

    def _init_tokens(self) -> None:
        for tokens in (self.pos_embed, self.cls_token):
            if tokens is not None:
                trunc_normal_(tokens, std=0.02)

    def __prepare_scriptable__(self) -> "IsotropicMixer":
        return with_blocks_of_its_own(self)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: IsotropicMixer) -> dict[str, Tensor]:
    """Fits a checkpoint of another image or patch size: patch kernel and position embedding are resampled."""
    state_dict = state_dict.get("model", state_dict)
    state_dict = dict(state_dict.get("state_dict", state_dict))
    kernel, positions = state_dict.get("patch_embed.proj.weight"), state_dict.get("pos_embed")
    if positions is not None and model.pos_embed is not None and positions.shape != model.pos_embed.shape:
        state_dict["pos_embed"] = resample_abs_pos_embed(
            positions,
            model.patch_embed.grid_size,
            old_size=get_pretrained_grid_size(model, kernel, positions.shape[1]),
            num_prefix_tokens=0,
        )
    size = model.patch_embed.proj.weight.shape[-2:]
    if kernel is not None and kernel.shape[-2:] != size:
        state_dict["patch_embed.proj.weight"] = resample_patch_embed(kernel, list(size))
    return state_dict
