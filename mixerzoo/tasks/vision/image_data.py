"""Images reach a model through splits, timm's augmentation, and samplers that shard over processes.

Every source gives the splits it has. A missing validation part is cut from the training images. If there is no test
part, as in ImageNet, the validation images are the test, and `ImageData.tested_on` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.data.distributed_sampler import RepeatAugSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from mixerzoo.registry.registry import unknown

from .recipe import DataConfig, Training

SPLIT_SEED = 0  # of every split that is drawn here: one split for all runs
FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "eval"), "test": ("test",)}


class Images(Dataset):
    """Gives (image, label) pairs of `source` at `indices`, in PIL mode `mode`.

    A loader's transform makes them tensors.
    """

    def __init__(self, source: Any, mode: str, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.source = source
        self.mode = mode
        self.indices = range(len(source)) if indices is None else indices
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.source[int(self.indices[index])]
        image = image if image.mode == self.mode else image.convert(self.mode)
        return (image if self.transform is None else self.transform(image)), int(label)


@dataclass(frozen=True)
class ImageData:
    """Holds three splits and the facts that a model needs. `tested_on` names the split that `test` is."""

    train: Images
    valid: Images
    test: Images
    tested_on: str
    num_classes: int
    in_chans: int


def load_data(config: DataConfig, in_chans: int | None = None) -> ImageData:
    """Loads the images that `config.name` stands for; `in_chans` (1 or 3) converts them to grey or colour.

    digits: scikit-learn's 1797 images of handwritten digits, 8x8, 16 greys (no download); a fixed fifth is the test.
    cifar10, fashion_mnist: torchvision's, in `config.dir` (default data), fetched only with `download`.
    imagefolder:DIR: one folder a class in DIR/train and DIR/val, DIR/test if there is one.
    hfds:NAME: a data set of the Hugging Face hub, or a local folder of one, by the package `datasets`.

    Raises ValueError for unknown names and for data that aren't there.
    """
    kind, _, rest = config.name.partition(":")
    if kind not in SOURCES:
        raise ValueError(unknown("data", config.name, SOURCES))
    splits, num_classes, channels = SOURCES[kind](config, rest)
    channels = in_chans or channels
    if channels not in (1, 3):
        raise ValueError(f"model.in_chans must be 1 (grey) or 3 (colour) to train on images, got {channels}")
    part = partial(Images, mode="L" if channels == 1 else "RGB")
    train, test = part(splits["train"]), part(splits.get("test", splits.get("validation")))
    if "validation" in splits:
        valid = part(splits["validation"])
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
        kept = round(len(train) * config.valid_fraction)
        train, valid = part(splits["train"], indices=order[kept:]), part(splits["train"], indices=order[:kept])
    for name, images in (("train", train), ("validation", valid), ("test", test)):
        if not len(images):
            raise ValueError(f"the {name} part of {config.name} has no images")
    return ImageData(train, valid, test, "test" if "test" in splits else "validation", num_classes, channels)


def transforms(model: nn.Module, in_chans: int, img_size: Any, train: Training) -> tuple[Any, Any]:
    """Returns timm's transforms for training and for evaluation, at the size, mean and crop of the model's cfg."""
    config = resolve_data_config({"crop_pct": train.crop_pct}, model=model)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size or config["input_size"][-2:]
    grey = {"mean": (0.5,), "std": (0.5,)} if in_chans == 1 else {}
    shared = {"input_size": (in_chans, height, width), "mean": config["mean"], "std": config["std"], **grey}
    augmented = create_transform(
        **shared,
        is_training=True,
        scale=train.scale,
        ratio=train.ratio,
        hflip=train.hflip,
        color_jitter=train.color_jitter,
        auto_augment=train.aa or None,
        interpolation=train.train_interpolation,
        re_prob=train.reprob,
        re_mode=train.remode,
        re_count=train.recount,
    )
    plain = create_transform(**shared, interpolation=config["interpolation"], crop_pct=config["crop_pct"])
    return augmented, plain


def train_loader(images: Images, train: Training, *, seed: int, rank: int, processes: int) -> DataLoader:
    """Loads shuffled batches of this process's share; `sampler.set_epoch` decides the order.

    Incomplete batches are dropped.

    Raises ValueError if the batch can't be cut evenly, or is larger than the data.
    """
    parts = processes * train.grad_accum_steps
    if train.batch_size % parts or (train.mixes and train.batch_size // parts % 2):
        even = ", each part an even number for mixup" if train.mixes else ""
        raise ValueError(
            f"train.batch_size must be a multiple of processes * grad_accum_steps = {parts}{even}, "
            f"got {train.batch_size}"
        )
    if train.batch_size > len(images):
        raise ValueError(
            f"train.batch_size={train.batch_size} is larger than the {len(images)} training images; "
            "remedy: --set train.batch_size=..."
        )
    sampler: Any
    if train.aug_repeats > 1:
        sampler = RepeatAugSampler(images, processes, rank, num_repeats=train.aug_repeats, selected_round=0)
    else:
        sampler = DistributedSampler(images, processes, rank, seed=seed, drop_last=True)
    return _loader(images, train, train.batch_size // parts, sampler=sampler, drop_last=True)


def test_loader(images: Images, train: Training, *, rank: int, processes: int) -> DataLoader:
    """Loads every image once, over all processes together."""
    share = images if processes == 1 else Subset(images, range(rank, len(images), processes))
    return _loader(share, train, max(1, min(256, train.batch_size // processes)))


def _loader(images: Dataset, train: Training, batch_size: int, **options: Any) -> DataLoader:
    pinned = torch.cuda.is_available()
    return DataLoader(images, batch_size, num_workers=train.workers, pin_memory=pinned, **options)


def digit_arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns scikit-learn's digits, images uint8 [N,8,8] and labels [N]: a fixed fifth of every class is the test."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn; remedy: pip install scikit-learn") from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, random_state=SPLIT_SEED, stratify=digits.target
    )
    return {name: (images[part], digits.target[part]) for name, part in (("train", train), ("test", test))}


def digit_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the digits for the grid. A tenth of the training images validates; the splits have 1293, 144 and 360."""
    arrays = digit_arrays()
    images, labels = arrays["train"]
    valid, train = np.split(np.random.default_rng(SPLIT_SEED).permutation(len(images)), [len(images) // 10 + 1])
    return {"train": (images[train], labels[train]), "valid": (images[valid], labels[valid]), "test": arrays["test"]}


def _digits(config: DataConfig, rest: str) -> tuple[Mapping[str, Any], int, int]:
    pictures = {
        name: [(Image.fromarray(image), int(label)) for image, label in zip(images, labels, strict=True)]
        for name, (images, labels) in digit_arrays().items()
    }
    return pictures, 10, 1


def _torchvision(config: DataConfig, rest: str) -> tuple[Mapping[str, Any], int, int]:
    root = config.dir or "data"
    try:
        splits = {
            name: create_dataset(f"torch/{config.kind}", root=root, split=split, download=config.download)
            for name, split in (("train", "train"), ("test", "validation"))
        }
    except RuntimeError as error:  # torchvision's word for files that are missing or broken
        raise ValueError(
            f"{config.kind} is not in {root!r}; remedy: --data-dir with the folder that has it, or --download"
        ) from error
    classes, image = splits["train"].classes, splits["train"][0][0]
    return splits, len(classes), len(image.getbands())


def _imagefolder(config: DataConfig, rest: str) -> tuple[Mapping[str, Any], int, int]:
    root = Path(rest or config.dir or "").expanduser()
    if not (rest or config.dir):
        raise ValueError("imagefolder needs a folder; remedy: --data imagefolder:DIR, with DIR/train and DIR/val")
    found = {
        split: next((root / name for name in names if (root / name).is_dir()), None) for split, names in FOLDERS.items()
    }
    if found["train"] is None or not (found["validation"] or found["test"]):
        raise ValueError(
            f"there is no {'train' if found['train'] is None else 'val or test'} folder in {str(root)!r}; "
            "remedy: DIR/train and DIR/val, with one folder a class in each"
        )
    splits: dict[str, Any] = {}
    classes: Any = None
    for split, folder in found.items():
        if folder is None:
            continue
        try:
            splits[split] = create_dataset("", root=str(folder), search_split=False, class_map=classes)
        except RuntimeError as error:  # timm's word for a folder without images
            raise ValueError(f"there are no images in {str(folder)!r}; remedy: one folder a class") from error
        classes = classes or splits[split].reader.class_to_idx  # a class may lack images in the smaller splits
    return splits, len(classes), 3


def _hfds(config: DataConfig, rest: str) -> tuple[Mapping[str, Any], int, int]:
    try:
        from datasets import get_dataset_split_names
    except ImportError as error:
        raise ValueError("hfds: needs the package datasets; remedy: pip install datasets") from error
    try:
        names = get_dataset_split_names(rest)
        splits = {
            split: create_dataset(
                f"hfds/{rest}",
                root=config.dir,
                split=next(name for name in folders if name in names),
                input_key=config.image_key,
                target_key=config.label_key,
            )
            for split, folders in FOLDERS.items()
            if set(folders) & set(names)
        }
        for split in splits.values():
            _ = split.reader[0]  # a wrong column shows only here
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"cannot read the data set {rest!r} of the Hugging Face hub: {text}; remedy: check its name and your "
            "connection, and its columns (--set data.image_key=..., --set data.label_key=...)"
        ) from error
    if "train" not in splits or len(splits) < 2:
        raise ValueError(f"{rest!r} must have a split train and one to test on, got {', '.join(names)}")
    classes = splits["train"].reader.class_to_idx
    if not classes:
        raise ValueError(f"the column {config.label_key!r} of {rest!r} has no class names, so their number is unknown")
    return splits, len(classes), 3


Source = Callable[[DataConfig, str], tuple[Mapping[str, Any], int, int]]
SOURCES: dict[str, Source] = {
    "digits": _digits,
    "cifar10": _torchvision,
    "fashion_mnist": _torchvision,
    "imagefolder": _imagefolder,
    "hfds": _hfds,
}
