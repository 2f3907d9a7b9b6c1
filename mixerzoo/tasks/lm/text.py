"""Trains next-byte prediction on real text, in bits per byte.

The embedded corpus is the language reference that CPython ships for `help()` (`pydoc_data.topics`, about 470 kB of
English); `path` takes any file instead. The last tenth is held out: one half for validation, the other for the test,
cut into windows that never change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixerzoo.tasks.base import Batch, Measurements, Metric, Series, Task
from mixerzoo.tasks.config import BackboneConfig
from mixerzoo.tasks.models.language_model import LanguageModel, token_loss

from .data.corpus import read_corpus

VOCABULARY = 256
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class TextLM(Task):
    """Trains on random windows of `length` bytes, and validates and tests on `valid_windows` fixed ones.

    held_out: the fraction of the text that is not trained on. longest: windows up to that many times as long are
    measured after the training, doubling; 1: none.
    """

    path: str | None = None
    length: int = 128
    valid_windows: int = 256
    held_out: float = 0.1
    longest: int = 1
    tie_embeddings: bool = True
    embedding_std: float = 0.2

    name: ClassVar[str] = "lm"
    metric: ClassVar[Metric] = Metric("bits per byte", "", higher_is_better=False)
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 240,
        "train.batch_size": 16,
        "train.lr": 1e-2,
        "train.evaluate_every": 40,
    }

    def __post_init__(self) -> None:
        if self.longest < 1 or not 0 < self.held_out < 1:
            raise ValueError(
                "task.longest must be at least 1 and task.held_out between 0 and 1, got "
                f"{self.longest} and {self.held_out}"
            )

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        data = read_corpus(self.path)
        cuts = [round(len(data) * (1 - share)) for share in (self.held_out, self.held_out / 2)]
        parts = {"train": data[: cuts[0]], "valid": data[cuts[0] : cuts[1]], "test": data[cuts[1] :]}
        for split, part in parts.items():
            longest = self.length * (self.longest if split == "test" else 1)
            if len(part) <= longest:
                raise ValueError(
                    f"the text is too short: its {split} part has {len(part)} bytes, a window needs {longest + 1}; "
                    "remedy: a longer text, or a smaller task.length or task.longest"
                )
        return parts

    @cached_property
    def fingerprint(self) -> str:
        digests = (hashlib.sha256(part.data).digest() for part in self._parts.values())
        return hashlib.sha256(b"".join(digests)).hexdigest()[:16]

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return LanguageModel.from_backbone(
            VOCABULARY, backbone, tie_embeddings=self.tie_embeddings, embedding_std=self.embedding_std
        )

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        if split == "train":
            data, rng = self._parts[split], np.random.default_rng(seed)
            while True:
                starts = rng.integers(0, len(data) - self.length, size=batch_size)
                yield _windows(data, starts, self.length)
        yield from self._held_out(split, self.length, batch_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model(batch["inputs"]), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        nats = token_loss(model(batch["inputs"]), batch["labels"], reduction="sum")
        return nats / math.log(2), torch.tensor(batch["labels"].numel(), device=nats.device)

    def state_size(self, model: nn.Module, length: int) -> int:
        return cast(LanguageModel, model).state_size(length)

    @torch.no_grad()
    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Measures bits per byte of the test text in windows of `length`, 2 `length`, ... bytes."""
        if self.longest == 1:
            return Measurements()
        device, points = next(model.parameters()).device, []
        model.eval()
        for factor in (2**power for power in range(self.longest.bit_length())):
            total = count = 0.0
            for batch in self._held_out("test", factor * self.length, max(1, EVALUATION_BATCH // factor)):
                bits, size = self.score(model, {name: part.to(device) for name, part in batch.items()})
                total, count = total + bits.item(), count + size.item()
            points.append((factor * self.length, total / count))
        series = Series("length of the window in bytes", self.metric.name, points, mark=self.length)
        return Measurements(series={"length extrapolation": series})

    def _held_out(self, split: str, length: int, batch_size: int) -> Iterator[Batch]:
        """Yields fixed windows all over a part; as many bytes whatever their length."""
        data = self._parts[split]
        windows = max(1, self.valid_windows * self.length // length)
        starts = np.unique(np.linspace(0, len(data) - length - 1, windows).astype(np.int64))
        for first in range(0, len(starts), batch_size):
            yield _windows(data, starts[first : first + batch_size], length)


def _windows(data: np.ndarray, starts: np.ndarray, length: int) -> Batch:
    windows = torch.from_numpy(data[starts[:, None] + np.arange(length + 1)].astype(np.int64))
    return {"inputs": windows[:, :-1], "labels": windows[:, 1:]}
