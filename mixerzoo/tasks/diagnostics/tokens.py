"""Synthetic token tasks share this base: fresh sequences in every training batch, a label at every position or none."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixerzoo.tasks.base import Batch, Metric, Task
from mixerzoo.tasks.config import BackboneConfig, check_at_least
from mixerzoo.tasks.models.language_model import IGNORED, LanguageModel, token_loss

VALID_SEED = 2**31  # training seeds lie below it, so that no splits share a random stream
HELD_OUT_SEEDS = {"valid": VALID_SEED, "test": VALID_SEED + 1}


@dataclass(frozen=True)
class TokenTask(Task):
    """Asks a causal model for the labels that are not -100 of int64 [B,length] tokens.

    Subclasses draw the sequences. The splits are different random streams of one distribution.
    """

    length: int = 64
    vocab_size: int = 16
    valid_sequences: int = 512
    tie_embeddings: bool = True
    embedding_std: float = 0.2

    metric: ClassVar[Metric] = Metric("accuracy", "fraction of answers", higher_is_better=True)
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 1000,
        "train.batch_size": 32,
        "train.lr": 5e-3,
        "train.evaluate_every": 100,
    }
    mixer_keywords: ClassVar[Mapping[str, Any]] = {"short_conv": 4}

    def __post_init__(self) -> None:
        check_at_least(1, self, "task", "valid_sequences")

    @abstractmethod
    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Generates `rows` sequences: tokens and labels, int64 [rows, length]."""

    @property
    def model_vocabulary(self) -> int:
        """Returns the number of ids that the model needs; special symbols come on top of `vocab_size`."""
        return self.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """Hashes the held-out sets and the first training sequences, so that a changed random stream shows."""
        parts = (self.generate(np.random.default_rng(seed), 64) for seed in (*HELD_OUT_SEEDS.values(), 0))
        return hashlib.sha256(b"".join(array.tobytes() for part in parts for array in part)).hexdigest()[:16]

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return LanguageModel.from_backbone(
            self.model_vocabulary, backbone, tie_embeddings=self.tie_embeddings, embedding_std=self.embedding_std
        )

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        if split == "train":
            if not 0 <= seed < VALID_SEED:
                raise ValueError(f"seed must be from 0 to {VALID_SEED - 1}, got {seed}")
            rng = np.random.default_rng(seed)
            while True:
                yield _as_batch(*self.generate(rng, batch_size))
        inputs, labels = self.generate(np.random.default_rng(HELD_OUT_SEEDS[split]), self.valid_sequences)
        for first in range(0, self.valid_sequences, batch_size):
            yield _as_batch(inputs[first : first + batch_size], labels[first : first + batch_size])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model(batch["inputs"]), batch["labels"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        asked = batch["labels"] != IGNORED
        correct = (model(batch["inputs"]).argmax(-1) == batch["labels"]) & asked
        return correct.sum(), asked.sum()

    def state_size(self, model: nn.Module, length: int) -> int:
        return cast(LanguageModel, model).state_size(length)


def no_labels(rows: int, length: int) -> np.ndarray:
    return np.full((rows, length), IGNORED, dtype=np.int64)


def _as_batch(inputs: np.ndarray, labels: np.ndarray) -> Batch:
    return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
