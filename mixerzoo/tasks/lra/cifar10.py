"""Reads CIFAR-10 from any of the layouts that it comes in, as arrays.

cifar-10-batches-py/{data_batch_1, ..., data_batch_5, test_batch}             pickled, from cifar-10-python.tar.gz
cifar-10-batches-bin/{data_batch_1.bin, ..., data_batch_5.bin, test_batch.bin}        from cifar-10-binary.tar.gz
{train,test}/CLASS/*.png                                  images, 32 x 32; the classes in the order of their names
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

CLASSES, SIDE = 10, 32
PIXELS = 3 * SIDE * SIDE
PARTS = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm"}
PICKLED = {  # what an array, a number of its dtype and bytes are pickled as, by any version of Python and NumPy
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "_codecs.encode",
}


class Files(NamedTuple):
    """Says where a copy of CIFAR-10 is: `kind` python | binary | images, and the files of either part."""

    kind: str
    train: list[Path]
    test: list[Path]

    @property
    def all(self) -> list[Path]:
        return self.train + self.test


def cifar10_files(root: Path) -> Files:
    """Returns the files below `root`, or in it. Raises ValueError with what is missing."""
    for kind, name, suffix in (("python", PYTHON, ""), ("binary", BINARY, ".bin")):
        folders = [root / "cifar10" / name, root / name, root]
        for folder in folders:
            parts = {part: [folder / f"{batch}{suffix}" for batch in batches] for part, batches in PARTS.items()}
            files = Files(kind, **parts)
            missing = [file for file in files.all if not file.is_file()]
            if missing == files.all:
                continue
            if missing:
                raise ValueError(f"{missing[0]} is missing; remedy: unpack CIFAR-10's archive again")
            return files
    for folder in (root / "cifar10", root):
        if (folder / "train").is_dir():
            return Files("images", *_images(folder))
    raise ValueError(
        f"{root} has neither {PYTHON}, {BINARY} nor train and test; remedy: unpack CIFAR-10 there, or give its folder"
    )


def read_cifar10(files: Files) -> dict[str, np.ndarray]:
    """Returns {train,test}_images uint8 [N,32,32,3] and {train,test}_labels uint8 [N].

    Raises ValueError with the file.
    """
    arrays = {}
    classes = sorted({file.parent.name for file in files.all})
    for part, batches in (("train", files.train), ("test", files.test)):
        if files.kind == "images":
            images = np.stack([_read_image(file) for file in batches])
            labels = np.array([classes.index(file.parent.name) for file in batches], np.uint8)
        else:
            read = _read_pickle if files.kind == "python" else _read_binary
            rows, several = zip(*map(read, batches), strict=True)
            images = np.concatenate(rows).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
            labels = np.concatenate(several)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = np.ascontiguousarray(images), labels
    return arrays


class _ArraysOnly(pickle.Unpickler):
    """Refuses what is neither array nor text, because pickles may run code."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in PICKLED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _read_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        return _checked(file, np.asarray(batch[b"data"]), batch[b"labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"{file} is not a whole batch of CIFAR-10: {error}") from error


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(file.read_bytes(), np.uint8)
    if not len(content) or len(content) % (1 + PIXELS):
        raise ValueError(
            f"{file} is not a whole batch of CIFAR-10: {len(content)} bytes, which is no multiple of {1 + PIXELS}"
        )
    rows = content.reshape(-1, 1 + PIXELS)
    return _checked(file, rows[:, 1:], rows[:, 0])


def _checked(file: Path, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS or len(pixels) != len(labels):
        raise ValueError(
            f"{file} must hold uint8 rows of {PIXELS} and a label each, got {pixels.dtype} {pixels.shape} and "
            f"{len(labels)} labels"
        )
    if not all(0 <= int(label) < CLASSES for label in labels):
        raise ValueError(f"{file} must have labels from 0 to {CLASSES - 1}, got {min(labels)} to {max(labels)}")
    return pixels, np.asarray(labels, np.uint8)


def _images(root: Path) -> list[list[Path]]:
    """Returns the images of `root/train` and of `root/test`."""
    parts, names = [], []
    for folder in (root / "train", root / "test"):
        parts.append(sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES))
        names.append(sorted({file.parent.name for file in parts[-1]}))
        if len(names[-1]) != CLASSES:
            raise ValueError(
                f"{folder} must have images in {CLASSES} folders, one a class, got {len(names[-1])}: {names[-1]}"
            )
        if names[-1] != names[0]:
            raise ValueError(f"{folder} must have the classes of {root / 'train'}, {names[0]}, got {names[-1]}")
    return parts


def _read_image(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            image = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a whole image: {error}") from error
    if image.shape[:2] != (SIDE, SIDE):
        raise ValueError(f"{file} must have {SIDE} x {SIDE} pixels, got {image.shape[1]} x {image.shape[0]}")
    return image
