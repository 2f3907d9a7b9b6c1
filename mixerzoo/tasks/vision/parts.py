"""A recipe chooses timm's parts of a training: model, optimizer, mixup, loss."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from .recipe import Training, VisionRun


def build_model(run: VisionRun, num_classes: int, in_chans: int) -> nn.Module:
    """Builds the run's model by `timm.create_model`. Raises ValueError for an unknown name or keyword argument."""
    keywords = {"num_classes": num_classes, "in_chans": in_chans, "drop_path_rate": run.train.drop_path, **run.model}
    name = keywords.pop("name")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"timm knows no model {name!r}; {hint}mixerzoo's: timm.list_models('zoo_*')")
    try:
        return timm.create_model(name, **keywords)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"{name} cannot be built with {keywords}: {error}; remedy: --set model.KEYWORD=null leaves one out"
        ) from error


def make_optimizer(model: nn.Module, train: Training) -> torch.optim.Optimizer:
    """Makes timm's optimizer. Vectors and the names in the model's `no_weight_decay` have no weight decay."""
    adams: dict[str, Any] = {"eps": train.opt_eps} | ({"betas": train.opt_betas} if train.opt_betas else {})
    return create_optimizer_v2(
        model,
        opt=train.opt,
        lr=train.peak_lr,
        weight_decay=train.weight_decay,
        momentum=train.momentum,
        layer_decay=train.layer_decay,
        **(adams if "adam" in train.opt else {}),
    )


def make_mixup(train: Training, num_classes: int) -> Mixup | None:
    """Makes timm's Mixup; None if nothing is mixed."""
    if not train.mixes:
        return None
    return Mixup(
        mixup_alpha=train.mixup,
        cutmix_alpha=train.cutmix,
        prob=train.mixup_prob,
        switch_prob=train.mixup_switch_prob,
        mode=train.mixup_mode,
        label_smoothing=train.smoothing,
        num_classes=num_classes,
    )


def make_criterion(train: Training) -> nn.Module:
    """Makes the loss. Mixup makes labels soft, and smooths them itself."""
    if train.mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(train.smoothing) if train.smoothing else nn.CrossEntropyLoss()
