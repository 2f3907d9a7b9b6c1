"""Next-byte prediction on real text, in bits per byte.

The embedded corpus is the language reference that CPython ships for `help()` (`pydoc_data.topics`, about 470 kB of
English); `path` takes any file instead. The last tenth is for validation, cut into windows that never change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixerzoo.tasks.base import Batch, Metric, Task
from mixerzoo.tasks.config import BackboneConfig

from .model import LanguageModel, token_loss

VOCABULARY = 256


@dataclass(frozen=True)
class TextLM(Task):
    """Next-byte prediction: train on random windows of `length` bytes, validate on `valid_windows` fixed ones."""

    path: str | None = None
    length: int = 128
    valid_windows: int = 256
    valid_fraction: float = 0.1
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

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        data = read_corpus(self.path)
        cut = round(len(data) * (1 - self.valid_fraction))
        parts = {"train": data[:cut], "valid": data[cut:]}
        for split, part in parts.items():
            if len(part) <= self.length:
                raise ValueError(
                    f"the text is too short: its {split} part has {len(part)} bytes, a window needs {self.length + 1}; "
                    "remedy: a longer text or a smaller task.length"
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
        data = self._parts[split]
        last = len(data) - self.length - 1
        if split == "train":
            rng = np.random.default_rng(seed)
            while True:
                yield self._windows(data, rng.integers(0, last + 1, size=batch_size))
        starts = np.unique(np.linspace(0, last, self.valid_windows).astype(np.int64))
        for first in range(0, len(starts), batch_size):
            yield self._windows(data, starts[first : first + batch_size])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model(batch["inputs"]), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        nats = token_loss(model(batch["inputs"]), batch["labels"], reduction="sum")
        return nats / math.log(2), torch.tensor(batch["labels"].numel(), device=nats.device)

    def state_size(self, model: nn.Module, length: int) -> int:
        return cast(LanguageModel, model).state_size(length)

    def _windows(self, data: np.ndarray, starts: np.ndarray) -> Batch:
        windows = torch.from_numpy(data[starts[:, None] + np.arange(self.length + 1)].astype(np.int64))
        return {"inputs": windows[:, :-1], "labels": windows[:, 1:]}


def read_corpus(path: str | None) -> np.ndarray:
    """The bytes of a file, left on disk until used, or of CPython's language reference, its topics in sorted order."""
    if path is not None:
        try:
            file = Path(path).expanduser()
            return np.memmap(file, dtype=np.uint8, mode="r") if file.stat().st_size else np.zeros(0, dtype=np.uint8)
        except OSError as error:
            raise ValueError(f"cannot read the text {path!r}: {error.strerror}") from error
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python comes without pydoc_data; remedy: give a text of your own with --text") from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode(), dtype=np.uint8)
