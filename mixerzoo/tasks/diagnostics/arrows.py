"""Arrow pointing (pLSTM, arXiv:2506.11997) asks: does the arrow point at the disc? Tests have larger images.

An image has a black arrow and a black disc on white. In larger images both keep their size but are further apart, so
the model must carry what it learned over a longer way. This tests scans over two dimensions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mixerzoo.tasks.base import Batch, Measurements, Metric, Task
from mixerzoo.tasks.config import BackboneConfig, check_at_least
from mixerzoo.tasks.rows import rows_forever, rows_once

EVALUATION_BATCH = 64
TRAIN_SEED, SPLIT_SEEDS = 43, {"trained": 2**31, "valid": 2**31 + 1, "test": 2**31 + 2}
LENGTH, WIDTH, RADIUS, BORDER, BARB_ANGLE, MARGIN = (10, 30), (2, 3), (15, 30), 30, 0.5, 1.2


class Scene(NamedTuple):
    """Describes an image in pixels (x, y): the arrow's tail and tip, its width, the disc, and whether it is hit."""

    tail: tuple[float, float]
    tip: tuple[float, float]
    width: int
    centre: tuple[float, float]
    radius: float
    hit: int


@dataclass(frozen=True)
class ArrowPointing(Task):
    """Classifies grey images into two classes: `size` x `size` in training, `valid_size` in "valid" and "test".

    The split "trained" has held-out images of the training size. Image i of a split depends on i alone. `scale` = 1,
    `size` = 192, `valid_size` = 384 and `patch_size` = 16 are the published task; the defaults are half as large.
    """

    size: int = 96
    valid_size: int = 192
    patch_size: int = 8
    scale: float = 0.5
    scan_order: str = "row"
    pos_embed: str = "none"
    train_images: int = 100_000
    valid_images: int = 512

    name: ClassVar[str] = "diagnostics/arrow-pointing"
    metric: ClassVar[Metric] = Metric("accuracy", "larger than in training", higher_is_better=True)
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 2000,
        "train.batch_size": 32,
        "train.lr": 1e-3,
        "train.evaluate_every": 500,
        "backbone.norm": "layer",
        "backbone.lower_bounds": "skip_last",
    }

    def __post_init__(self) -> None:
        check_at_least(1, self, "task", "patch_size", "train_images", "valid_images")
        for name in ("size", "valid_size"):
            value = getattr(self, name)
            if value % self.patch_size or value < 5 * BORDER * self.scale:
                raise ValueError(
                    f"task.{name} must be a multiple of patch_size = {self.patch_size} and at least "
                    f"{5 * BORDER * self.scale:g} at scale = {self.scale:g}, got {value}"
                )

    @cached_property
    def fingerprint(self) -> str:
        images = [draw(self.scene("valid", index), self.valid_size).tobytes() for index in range(16)]
        return hashlib.sha256(b"".join(images)).hexdigest()[:16]

    def scene(self, split: str, index: int) -> Scene:
        """Returns image `index` of a split, as numbers."""
        rng = np.random.default_rng((TRAIN_SEED if split == "train" else SPLIT_SEEDS[split], index))
        return draw_scene(rng, self.size if split in ("train", "trained") else self.valid_size, self.scale)

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        from mixerzoo.tasks.vision.from_backbone import image_model

        return image_model(
            self.name,
            backbone,
            img_size=self.size,
            patch_size=self.patch_size,
            num_classes=2,
            scan_order=self.scan_order,
            pos_embed=self.pos_embed,
            dynamic_img_size=True,
        )

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        if split == "train":
            order = rows_forever(self.train_images, seed, batch_size)
        else:
            order = rows_once(self.valid_images, batch_size)
        size = self.size if split in ("train", "trained") else self.valid_size
        for rows in order:
            scenes = [self.scene(split, index) for index in rows.tolist()]
            images = np.stack([draw(scene, size) for scene in scenes]).astype(np.float32)
            labels = torch.tensor([scene.hit for scene in scenes])
            yield {"inputs": torch.from_numpy(1 - images / 255)[:, None], "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["inputs"]).float(), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        correct = model(batch["inputs"]).argmax(-1) == batch["labels"]
        return correct.sum(), torch.tensor(len(correct), device=correct.device)

    def count_tokens(self, batch: Batch) -> int:
        return batch["inputs"].numel() // self.patch_size**2

    @torch.no_grad()
    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Measures the accuracy on images of the training size."""
        device, correct, count = next(model.parameters()).device, 0, 0
        model.eval()
        for batch in self.batches("trained", seed=0, batch_size=EVALUATION_BATCH):
            right, images = self.score(model, {name: part.to(device) for name, part in batch.items()})
            correct, count = correct + int(right), count + int(images)
        return Measurements(
            {f"at {self.size} pixels": correct / count},
            f"Trained on images of {self.size} x {self.size} pixels, tested on {self.valid_size} x {self.valid_size}.",
        )

    def state_size(self, model: nn.Module, length: int) -> int:
        """Returns the state size of the scan in one direction."""
        return sum(block.mixer.state_size(length) for block in cast(Iterable[Any], model.blocks))


def draw_scene(rng: np.random.Generator, size: int, scale: float) -> Scene:
    """Draws a disc anywhere, and an arrow at least two radii from its centre; half of the arrows hit.

    Hits pass the centre within radius / 1.2; misses pass it by more than 1.2 radii, or point the other way. So no
    answer depends on a single pixel.
    """
    border, radius = BORDER * scale, scale * rng.uniform(*RADIUS)
    centre = rng.uniform(border, size - border, size=2)
    middle = rng.uniform(border, size - border, size=2)
    while (distance := math.dist(middle, centre)) < 2 * radius:
        middle = rng.uniform(border, size - border, size=2)
    hit = int(rng.integers(2))
    if hit:
        widest = math.asin(radius / MARGIN / distance)
        off = rng.uniform(-widest, widest)
    else:
        closest = math.asin(radius * MARGIN / distance)
        off = rng.uniform(closest, 2 * math.pi - closest)
    angle = math.atan2(*(centre - middle)[::-1]) + off
    half = 0.5 * scale * rng.uniform(*LENGTH) * np.array([math.cos(angle), math.sin(angle)])
    tail, tip = ((float(x), float(y)) for x, y in (middle - half, middle + half))
    width = max(1, round(scale * rng.integers(WIDTH[0], WIDTH[1] + 1)))
    return Scene(tail, tip, width, (float(centre[0]), float(centre[1])), float(radius), hit)


def draw(scene: Scene, size: int) -> np.ndarray:
    """Draws the scene in uint8 [size,size], black on white."""
    picture = Image.new("L", (size, size), 255)
    pen = ImageDraw.Draw(picture)
    (x, y), r = scene.centre, scene.radius
    pen.ellipse((x - r, y - r, x + r, y + r), fill=0)
    pen.line((scene.tail, scene.tip), fill=0, width=scene.width)
    back = math.atan2(scene.tail[1] - scene.tip[1], scene.tail[0] - scene.tip[0])
    barb = math.dist(scene.tail, scene.tip) / 2
    for angle in (back - BARB_ANGLE, back + BARB_ANGLE):
        end = (scene.tip[0] + barb * math.cos(angle), scene.tip[1] + barb * math.sin(angle))
        pen.line((scene.tip, end), fill=0, width=scene.width)
    return np.asarray(picture)
