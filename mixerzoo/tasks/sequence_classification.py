"""Defines tasks that put a whole sequence into one of several classes: what they share beside their data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.tasks.models.encoder import SequenceClassifier

from .base import Batch, Metric, Task
from .config import BackboneConfig


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Classifies sequences.

    A batch holds `inputs`, `labels` [B] and, unless all are as long, `mask` [B,T].

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
        """Returns the encoder's vocab_size or channels, max_length and, for images, scan_order and grid."""
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
        """Returns the size of the scan in one direction."""
        return cast(SequenceClassifier, model).state_size(length)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["inputs"], mask=batch.get("mask")).float()
