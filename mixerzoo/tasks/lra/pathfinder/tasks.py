"""Pathfinder and Path-X ask if two discs are the ends of one dashed snake, read pixel by pixel; two classes.

Long Range Arena's Pathfinder is `pathfinder32/curv_contour_length_14`, its Path-X the same with 128: 200,000 images in
`imgs` and their labels in `metadata`. They are split 80 / 10 / 10 in the order of batches and numbers, as it does.
Pixels are one channel of values from 0 to 1, row after row; every sequence is as long. The metric is accuracy. Two
protocols differ in how a model goes through an image: see `pixels.py`.
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
from PIL import Image, UnidentifiedImageError
from torch import nn

from mixerzoo.tasks.base import Batch, Measurements
from mixerzoo.tasks.config import BackboneConfig
from mixerzoo.tasks.data_cache import cached, stamps
from mixerzoo.tasks.lra.archive import archive_roots
from mixerzoo.tasks.lra.pixels import PixelClassification
from mixerzoo.tasks.rows import rows_forever, rows_once

from .generator import PathfinderSpec, generate, pathfinder_spec
from .image_files import pathfinder_folder

DATA_SEED, CHUNK, FEWEST = 0, 500, 10


@dataclass(frozen=True)
class Pathfinder(PixelClassification):
    """Asks whether there is one snake or two.

    `lra_dir` has the images, written by `mixerzoo data pathfinder` or Long Range Arena's own.

    Without `lra_dir`, `samples` images are generated, once, and cached. The defaults are small, for CPUs, and not Long
    Range Arena's, which are the resolution 32 (for Path-X 128) and contours of 14 dashes.
    """

    lra_dir: str | None = None
    resolution: int = 16
    contour_length: int = 5
    samples: int = 10_000

    name: ClassVar[str] = "lra/pathfinder"
    classes: ClassVar[int] = 2
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 2000,
        "train.batch_size": 32,
        "train.lr": 3e-3,
        "train.evaluate_every": 200,
        "train.weight_decay": 0.0,
        "backbone.norm": "batch",  # as published; with a norm a token, black pixels are as loud as the curves
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        pathfinder_spec(self.resolution, self.contour_length)
        if self.samples < FEWEST:
            raise ValueError(f"task.samples must be at least {FEWEST}, for a split of 80 / 10 / 10, got {self.samples}")

    @property
    def size(self) -> tuple[int, int]:
        return self.resolution, self.resolution

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in self._data.values())).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        total = len(self._data["labels"])
        cuts = {"train": (0, 8), "valid": (8, 9), "test": (9, 10)}
        first, last = (total * tenths // 10 for tenths in cuts[split])
        count = last - first
        order = rows_forever(count, seed, batch_size) if split == "train" else rows_once(count, batch_size)
        for rows in order:
            images = self._data["images"][first + rows].astype(np.float32) / 255
            labels = self._data["labels"][first + rows].astype(np.int64)
            yield {"inputs": torch.from_numpy(images).flatten(1)[..., None], "labels": torch.from_numpy(labels)}

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns what a predictor that knows nothing scores on the test split."""
        labels = self._data["labels"]
        share = float(np.mean(labels[len(labels) * 9 // 10 :]))
        source = "files" if self.lra_dir else "generated here"
        return Measurements(
            {"majority class": max(share, 1 - share)},
            f"Protocol {self.protocol}. {self.resolution} x {self.resolution} pixels, contours of "
            f"{self.contour_length} dashes ({source}); "
            f"Long Range Arena's have {'128 x 128' if self.resolution == 128 else '32 x 32'} and 14.",
        )

    @cached_property
    def _data(self) -> dict[str, np.ndarray]:
        if self.lra_dir is None:
            spec = pathfinder_spec(self.resolution, self.contour_length)
            key = (spec, self.samples, DATA_SEED)
            return cached(f"pathfinder{self.resolution}", key, partial(_generated, spec, self.samples))
        roots = archive_roots(self.lra_dir)
        folders = [pathfinder_folder(root, self.resolution, self.contour_length) for root in roots]
        folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        metadata = metadata_files(folder)
        return cached(
            f"pathfinder{self.resolution}", stamps(metadata), partial(read_pathfinder, folder, self.resolution)
        )


@dataclass(frozen=True)
class PathX(Pathfinder):
    """Asks the same on 128 x 128 pixels, 16,384 tokens.

    Images are generated where `lra_dir` isn't given, by default few.
    """

    resolution: int = 128
    contour_length: int = 14
    samples: int = 1000

    name: ClassVar[str] = "lra/path-x"
    recipe: ClassVar[Mapping[str, Any]] = {**Pathfinder.recipe, "train.lr": 1e-3}


def metadata_files(folder: Path) -> list[Path]:
    """Returns `metadata/0.npy`, `metadata/1.npy`, ... by their numbers. Raises ValueError if there are none."""
    files = sorted((folder / "metadata").glob("*.npy"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise ValueError(
            f"{folder / 'metadata'} has no .npy files; remedy: mixerzoo data pathfinder --out DIR, and DIR as "
            "task.lra_dir, with the task.resolution and task.contour_length of its images"
        )
    return files


def read_pathfinder(folder: Path, resolution: int) -> dict[str, np.ndarray]:
    """Reads images uint8 [N,H,W] and labels [N] of a folder with `imgs` and `metadata`.

    Image files of no bytes, of which the archive has one, are left out. Raises ValueError with the file, and line, for
    what is missing or malformed.
    """
    images, labels = [], []
    for file in metadata_files(folder):
        for number, words in enumerate(_metadata(file), start=1):
            if len(words) < 4 or words[3] not in ("0", "1"):
                raise ValueError(f"{file} line {number} must be: folder file number label ..., got {words[:5]}")
            picture = folder / words[0] / words[1]
            if not picture.is_file():
                raise ValueError(f"{picture} is missing, which {file} line {number} names")
            if picture.stat().st_size == 0:
                continue
            images.append(_read_image(picture, resolution))
            labels.append(int(words[3]))
    if len(labels) < FEWEST:
        raise ValueError(
            f"{folder / 'metadata'} must name at least {FEWEST} images, for a split of 80 / 10 / 10, got {len(labels)}"
        )
    return {"images": np.stack(images), "labels": np.array(labels, np.uint8)}


def _metadata(file: Path) -> list[list[str]]:
    """Returns the words of every line.

    The archive has text, the published generator saves an array.
    """
    content = file.read_bytes()
    if not content.startswith(b"\x93NUMPY"):
        return [line.split() for line in content.decode("utf-8", "replace").splitlines()]
    try:
        return [[str(word) for word in row] for row in np.load(file)]
    except (ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{file} is not a whole array of texts: {error}") from error


def _read_image(file: Path, resolution: int) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            image = np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a whole image: {error}") from error
    if image.shape != (resolution, resolution):
        raise ValueError(
            f"{file} must have {resolution} x {resolution} pixels, got {image.shape[1]} x {image.shape[0]}"
        )
    return image


def _generated(spec: PathfinderSpec, samples: int) -> dict[str, np.ndarray]:
    parts = [
        generate(spec, np.random.default_rng((DATA_SEED, first)), min(CHUNK, samples - first))
        for first in range(0, samples, CHUNK)
    ]
    images, labels = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    return {"images": images, "labels": labels.astype(np.uint8)}
