"""A vision run is model, data, training and seed. Recipe files hold the first three.

A recipe is a TOML file with the tables of `VisionRun`: [model], [data], [train], [published]. Later values override
earlier ones, in this order: the defaults here, which are DeiT's; the recipe; the command line's options; its `--set`.
This module needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from mixerzoo.tasks import recipes
from mixerzoo.tasks.config import check_at_least, from_dict, parse_setting
from mixerzoo.tasks.recipes import lay

list_recipes = partial(recipes.list_recipes, "vision")
read_recipe = partial(recipes.read_recipe, "vision")


@dataclass(frozen=True)
class DataConfig:
    """Configures the images' source: see `data.load_data`.

    name: digits | cifar10 | fashion_mnist | imagefolder:DIR | hfds:NAME.
    dir: the folder of the files; for imagefolder the folder itself, if it isn't in the name.
    valid_fraction: the share of the training images that chooses the epoch, if the data have no validation part.
    image_key, label_key: the columns of a Hugging Face data set.
    """

    name: str = "digits"
    dir: str | None = None
    download: bool = False
    valid_fraction: float = 0.1
    image_key: str = "image"
    label_key: str = "label"

    def __post_init__(self) -> None:
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"data.valid_fraction must lie between 0 and 1, got {self.valid_fraction}")

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Training:
    """Configures the training, in the names of timm's train.py. The defaults are DeiT's (arXiv:2012.12877, table 9).

    A zero, or "" for `aa`, switches a thing off, the moving average of the weights (`model_ema_decay`) included.
    `batch_size` counts the images of all processes together, unlike timm's. So a recipe means the same on any number of
    them; `grad_accum_steps` cuts the batch into parts that fit the memory. `lr` is the learning rate itself. Without
    it, `lr_base` is the rate of a batch of `lr_base_size` and grows in proportion. `eval_metric`, on the validation
    images, chooses the epoch that is tested.
    """

    epochs: int = 300
    batch_size: int = 1024
    grad_accum_steps: int = 1
    opt: str = "adamw"
    opt_eps: float = 1e-8
    opt_betas: tuple[float, float] | None = None
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float | None = None
    lr: float | None = None
    lr_base: float = 5e-4
    lr_base_size: int = 512
    sched: str = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 10
    clip_grad: float = 0.0
    drop_path: float = 0.1
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.3
    aa: str = "rand-m9-mstd0.5-inc1"
    aug_repeats: int = 3
    reprob: float = 0.25
    remode: Literal["const", "rand", "pixel"] = "pixel"
    recount: int = 1
    train_interpolation: str = "bicubic"
    crop_pct: float | None = None
    model_ema_decay: float = 0.99996
    model_ema_warmup: bool = False
    eval_metric: Literal["top1", "top5", "loss"] = "top1"
    grad_checkpointing: bool = False
    precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 4

    def __post_init__(self) -> None:
        check_at_least(1, self, "train", "epochs", "batch_size", "grad_accum_steps")
        if self.sched in ("none", "plateau"):
            raise ValueError(f"train.sched must be a schedule over updates, got {self.sched!r}; remedy: constant")

    @property
    def peak_lr(self) -> float:
        return self.lr_base * self.batch_size / self.lr_base_size if self.lr is None else self.lr

    @property
    def mixes(self) -> bool:
        """Returns whether images are mixed, and labels with them."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class VisionRun:
    """Describes one training of one timm model. `model` holds its name and keyword arguments of `timm.create_model`.

    published: results that the recipe's source reports, for comparison; nothing reads it.
    """

    model: dict[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    train: Training = field(default_factory=Training)
    published: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model.get("name"), str):
            raise ValueError("a vision run needs a model; remedy: --model, for example zoo_hgrn2_tiny_patch16_224")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_dict` reads them back."""
        return json.loads(json.dumps(asdict(self)))

    @cached_property
    def run_id(self) -> str:
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
        return f"{self.model['name']}-{self.data.kind}-s{self.seed}-{digest[:10]}"


def resolve(
    *,
    model: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
) -> VisionRun:
    """Builds a run from the command line's options.

    Without a recipe, the data's own is used if it exists (digits, ...).
    """
    values = read_recipe(recipe) if recipe is not None else {}
    options = {"model.name": model, "data.name": data, "data.dir": data_dir, "data.download": download or None}
    given = [(path, value) for path, value in {**options, "seed": seed}.items() if value is not None]
    given += [parse_setting(text) for text in settings]
    if recipe is None:
        kind = from_dict(DataConfig, lay({}, given).get("data", {}), "data").kind
        values = read_recipe(kind) if kind in list_recipes() else {}
    return from_dict(VisionRun, {"model": {}, **lay(values, given)})
