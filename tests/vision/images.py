"""Writes small data sets on disk for the tests: an image folder, and FashionMNIST's raw files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN_IMAGES, VALID_IMAGES = 6, 3  # a class


def image_folder(root: Path, classes: int = 2, splits: tuple[str, ...] = ("train", "val"), size: int = 16) -> Path:
    """Writes `root`/SPLIT/class_K/*.png: noise, the brighter the higher its class."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for index in range(TRAIN_IMAGES if split == "train" else VALID_IMAGES):
                level = 255 * (label + 1) // (classes + 1)
                pixels = np.clip(rng.normal(level, 20, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def fashion_mnist(root: Path) -> Path:
    """Writes FashionMNIST's four files, unpacked, with 20 training and 10 test images: the class is the grey."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 20), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to(labels[:, None, None] * 25, (count, 28, 28)).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
            (raw / f"{name}-{kind}-ubyte").write_bytes(header.tobytes() + array.tobytes())
    return root
