"""Tasks that put a whole sequence into one of several classes: what they share beside their data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.tasks.base import Batch, Metric, Task
from mixerzoo.tasks.config import BackboneConfig

from .encoder import SequenceClassifier


@dataclass(frozen=True)
class SequenceClassification(Task):
    """A task of sequences and labels. A batch holds `inputs`, `labels` [B] and, unless all are as long, `mask` [B,T].

    The fields are the encoder's. Subclasses say what `inputs` are, in `input_keywords`.
    """

    pooling: str = "mean"
    positions: str = "none"
    bidirectional: bool = True
    embedding_std: float = 0.02
    embedding_dropout: float = 0.0

    metric: ClassVar[Metric] = Metric("accuracy", "fraction of sequences", higher_is_better=True)
    classes: ClassVar[int]

    @property
    def input_keywords(self) -> dict[str, Any]:
        """The encoder's vocab_size or channels, its max_length and, for images, its scan_order and grid."""
        raise NotImplementedError

    @property
    def encoder_keywords(self) -> dict[str, Any]:
        own = ("pooling", "positions", "bidirectional", "embedding_std", "embedding_dropout")
        return {**{keyword: getattr(self, keyword) for keyword in own}, **self.input_keywords}

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return SequenceClassifier(backbone, self.classes, self.encoder_keywords)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self._logits(model, batch), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        correct = self._logits(model, batch).argmax(-1) == batch["labels"]
        return correct.sum(), torch.tensor(len(correct), device=correct.device)

    def count_tokens(self, batch: Batch) -> int:
        return int(batch["mask"].sum()) if "mask" in batch else batch["inputs"].shape[:2].numel()

    def state_size(self, model: nn.Module, length: int) -> int:
        """Of the scan in one direction."""
        return cast(SequenceClassifier, model).state_size(length)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["inputs"], mask=batch.get("mask")).float()


def rows_forever(count: int, seed: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of row numbers from a data set, epoch after epoch, each a shuffle that `seed` decides."""
    rng = np.random.default_rng(seed)
    order = np.zeros(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:batch_size]
        order = order[batch_size:]


def rows_once(count: int, batch_size: int) -> Iterator[np.ndarray]:
    for first in range(0, count, batch_size):
        yield np.arange(first, min(first + batch_size, count))


def ragged(sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Sequences of different lengths as one array: `tokens`, and `starts`, one more than there are sequences."""
    starts = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    return {"tokens": np.concatenate(sequences), "starts": starts}


def ragged_rows(data: Mapping[str, np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """Sequences out of what `ragged` returns."""
    spans = zip(data["starts"][rows], data["starts"][rows + 1], strict=True)
    return [data["tokens"][start:end] for start, end in spans]


def padded(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Id sequences, none of them empty, as `inputs` [B,T] int64, zeros on the right, and their `mask`."""
    inputs = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in zip(inputs, sequences, strict=True):
        row[: len(sequence)] = sequence
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return torch.from_numpy(inputs), torch.arange(inputs.shape[1]) < lengths[:, None]
