"""Image classifies CIFAR-10 (Krizhevsky, 2009) as sequences of 1,024 pixels, ten classes.

50,000 images train and 10,000 test; a fixed tenth of the former validates. All sequences are as long; the metric is
accuracy. The protocols differ in more than the scan, and their scores are not comparable:

    standard    greys (ITU-R 601 luma), less 122.6 and over 61, read row after row; no augmentation. As in S4
                (arXiv:2111.00396); Long Range Arena embeds the 256 greys as tokens instead
    hgrn        colours, three channels normalised, scans along both axes; in training random crops of the image
                mirrored at its border, 4 pixels wide, and flips: HGRN's and HGRN2's 88.69 and 89.33 %
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from mixerzoo.tasks.base import Batch, Measurements
from mixerzoo.tasks.config import BackboneConfig
from mixerzoo.tasks.data_cache import cached, stamps
from mixerzoo.tasks.rows import rows_forever, rows_once

from .cifar10 import cifar10_files, read_cifar10
from .pixels import PixelClassification

SPLIT_SEED, BORDER = 0, 4
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
MEAN_AND_STD = {  # of a pixel's values from 0 to 1
    "standard": (np.array([122.6 / 255], np.float32), np.array([61 / 255], np.float32)),
    "hgrn": (np.array([0.4914, 0.4822, 0.4465], np.float32), np.array([0.247, 0.243, 0.261], np.float32)),
}


@dataclass(frozen=True)
class Image(PixelClassification):
    """Asks what a small picture shows.

    `lra_dir` has CIFAR-10's python or binary batches, or a folder of images.

    The files are `cifar-10-batches-py/{data_batch_1..5,test_batch}`, `cifar-10-batches-bin/*.bin`, or images of 32 x 32
    pixels, a folder a class, in `train` and `test`: see `cifar10.py`.
    """

    lra_dir: str | None = None

    name: ClassVar[str] = "lra/image"
    classes: ClassVar[int] = 10
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 4000,
        "train.batch_size": 32,
        "train.lr": 3e-3,
        "train.evaluate_every": 1000,
    }

    @property
    def size(self) -> tuple[int, int]:
        return 32, 32

    @property
    def channels(self) -> int:
        return 1 if self.protocol == "standard" else 3

    @cached_property
    def fingerprint(self) -> str:
        digests = (hashlib.sha256(np.asarray(part).data).digest() for part in self._data.values())
        return hashlib.sha256(b"".join((*digests, self.protocol.encode()))).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        train, chosen = split == "train", self._rows(split)
        order = rows_forever(len(chosen), seed, batch_size) if train else rows_once(len(chosen), batch_size)
        part = "test" if split == "test" else "train"
        images, labels = self._data[f"{part}_images"], self._data[f"{part}_labels"]
        rng = np.random.default_rng((seed, 1))  # beside the stream that decides the order
        for rows in order:
            batch = images[chosen[rows]]
            if train and self.protocol == "hgrn":
                batch = augmented(batch, rng)
            inputs = torch.from_numpy(normalized(batch, self.protocol)).flatten(1, 2)
            yield {"inputs": inputs, "labels": torch.from_numpy(labels[chosen[rows]].astype(np.int64))}

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns what a predictor that knows nothing scores on the test split."""
        labels = np.asarray(self._data["test_labels"])
        guess = float(np.bincount(labels, minlength=self.classes).max() / len(labels))
        if self.protocol == "standard":
            note = "Protocol standard: greys, one scan over the rows, no augmentation."
        else:
            note = "Protocol hgrn: colours, scans along both axes, crops and flips. Not comparable with greys."
        return Measurements({"majority class": guess}, note)

    def _rows(self, split: str) -> np.ndarray:
        if split == "test":
            return np.arange(len(self._data["test_labels"]))
        order = np.random.default_rng(SPLIT_SEED).permutation(len(self._data["train_labels"]))
        held_out = max(1, len(order) // 10)
        return np.sort(order[:held_out] if split == "valid" else order[held_out:])

    @cached_property
    def _data(self) -> dict[str, np.ndarray]:
        """Returns train_images and test_images uint8 [N,32,32,3], train_labels and test_labels uint8 [N]."""
        if self.lra_dir is None:
            raise ValueError("lra/image needs CIFAR-10; remedy: task.lra_dir with the folder that has its batches")
        files = cifar10_files(Path(self.lra_dir).expanduser())
        return cached("cifar10", stamps(files.all), partial(read_cifar10, files))


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns [B,H,W,C], each a random window of itself mirrored at its border, and flipped half of the time.

    The flip is from left to right.
    """
    count, height, width, _ = images.shape
    wide = np.pad(images, ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="symmetric")
    tops, lefts = rng.integers(2 * BORDER + 1, size=(2, count))
    columns = lefts[:, None] + np.arange(width)
    columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    rows = tops[:, None] + np.arange(height)
    return wide[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalized(images: np.ndarray, protocol: str) -> np.ndarray:
    """Maps uint8 [B,H,W,3] to float32 [B,H,W,C], greys rounded to 8 bits before."""
    values = images.astype(np.float32)
    if protocol == "standard":
        values = np.round(values @ LUMA)[..., None]
    mean, std = MEAN_AND_STD[protocol]
    return (values / 255 - mean) / std
