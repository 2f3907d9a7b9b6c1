"""Image classification is a task of the grid: scikit-learn's handwritten digits through the zoo's isotropic model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mixerzoo.blocks.residual import ResidualBlock
from mixerzoo.tasks.base import Batch, Measurements, Metric, Task
from mixerzoo.tasks.config import BackboneConfig

from .from_backbone import image_model
from .image_data import digit_splits
from .receptive_field import receptive_field
from .throughput import forward_peak_bytes, images_per_second
from .zoo_isotropic import IsotropicMixer
from .zoo_models import backbone_name

SIZE, CLASSES, MEAN, STD = 16, 10, 0.3, 0.37
MEASURED_SIZES, MEASURED_BATCH = (224, 448), 4
POOLED = 4  # pixels of an image of 224 that are one of its map


@dataclass(frozen=True)
class Digits(Task):
    """Classifies ten digits, in 8x8 greys enlarged to 16x16. Training images are shifted by up to `shift` pixels.

    The fixed training part has 1437 images: 1293 train and 144 validate. The test part has 360.
    `scan_order` is a name of `blocks/scan_order.py`.
    """

    patch_size: int = 4
    scan_order: str = "row"
    pos_embed: str = "learn"
    shift: int = 2

    name: ClassVar[str] = "vision/digits"
    metric: ClassVar[Metric] = Metric("accuracy", "fraction of images", higher_is_better=True)
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 600,
        "train.batch_size": 64,
        "train.lr": 3e-3,
        "train.evaluate_every": 100,
        "backbone.norm": "layer",
        "backbone.lower_bounds": "skip_last",
    }

    @cached_property
    def _parts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {split: (enlarged(images), labels) for split, (images, labels) in digit_splits().items()}

    @cached_property
    def fingerprint(self) -> str:
        arrays = (array for part in self._parts.values() for array in part)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return image_model(
            self.name,
            backbone,
            img_size=SIZE,
            patch_size=self.patch_size,
            num_classes=CLASSES,
            scan_order=self.scan_order,
            pos_embed=self.pos_embed,
        )

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        images, labels = self._parts[split]
        if split == "train":
            rng = np.random.default_rng(seed)
            while True:
                rows = rng.integers(len(images), size=batch_size)
                yield _as_batch(_shifted(images[rows], self.shift, rng), labels[rows])
        for first in range(0, len(images), batch_size):
            yield _as_batch(images[first : first + batch_size], labels[first : first + batch_size])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["inputs"]), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        correct = model(batch["inputs"]).argmax(-1) == batch["labels"]
        return correct.sum(), torch.tensor(len(correct), device=correct.device)

    def count_tokens(self, batch: Batch) -> int:
        return batch["inputs"].numel() // self.patch_size**2

    def state_size(self, model: nn.Module, length: int) -> int:
        """Returns the state size of the scan in one direction."""
        blocks = cast(Iterable[ResidualBlock], cast(IsotropicMixer, model).blocks)
        return sum(block.mixer.state_size(length) for block in blocks)

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Measures the trained model's receptive field, and the cost of the mixer's model in ViT-tiny's shape."""
        device = next(model.parameters()).device
        digits = _as_batch(*self._parts["test"])["inputs"].to(device)
        maps = {"trained on digits": receptive_field(model, digits).tolist()}
        name = backbone_name(backbone.label, "tiny_patch16_224")
        values = {}
        for size in MEASURED_SIZES:
            fresh = timm.create_model(name, img_size=size).to(device).eval()
            images = torch.randn(MEASURED_BATCH, 3, size, size, device=device)
            values[f"images/s at {size}"] = images_per_second(fresh, images)
            values[f"peak MiB at {size}"] = forward_peak_bytes(fresh, images) / 2**20
            if size == MEASURED_SIZES[0]:
                field = F.avg_pool2d(receptive_field(fresh, images)[None], POOLED)[0]
                maps[f"untrained, {size} pixels"] = (field / field.max()).tolist()
        note = (
            f"images/s and peak memory: forward of zoo_*_tiny_patch16_224 with {MEASURED_BATCH} images, fp32, in the "
            "run's process; memory as torch's allocator gives it out, beside weights and input. Maps: which pixels the "
            "features in the middle depend on (input gradient)."
        )
        return Measurements(values, note, maps)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Enlarges uint8 [N,8,8] -> [N,16,16], so that a shift by one pixel is half an original pixel."""
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images]
    )


def _shifted(images: np.ndarray, reach: int, rng: np.random.Generator) -> np.ndarray:
    """Shifts each image of [B,H,W] by its own -reach..reach rows and columns; zeros (paper) fill the border."""
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], axis=(1, 2))
    rows, columns = rng.integers(2 * reach + 1, size=(2, len(images)))
    return windows[np.arange(len(images)), rows, columns]


def _as_batch(images: np.ndarray, labels: np.ndarray) -> Batch:
    inputs = (images[:, None].astype(np.float32) / 255 - MEAN) / STD
    return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(labels.astype(np.int64))}
