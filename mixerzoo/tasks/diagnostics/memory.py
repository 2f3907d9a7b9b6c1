"""Bounded memory is tested by MAD's selective copying, memorization and compression (arXiv:2403.17844, appendix B).

selective copy    3 . . 1 . 2 | . . .       -> at the dots after the bar 3 1 2
memorization      a ? c ? b ? a ?           -> at every ? the value of the key before it, always the same one
compression       3 1 4 1 5 |               -> all of it again, from the bar's output vector alone
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixerzoo.tasks.config import BackboneConfig
from mixerzoo.tasks.models.language_model import LanguageModel

from .tokens import TokenTask, no_labels

MAP_SEED = 0


@dataclass(frozen=True)
class SelectiveCopy(TokenTask):
    """Asks for `num_copy` tokens in order, without the blanks between them. MAD: length 256, 16 tokens.

    The last two of `vocab_size` symbols are the blank and the bar. Each blank goes before a uniformly chosen token, so
    the last token and the bar are neighbours.
    """

    num_copy: int = 8

    name: ClassVar[str] = "diagnostics/selective-copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 3 or not 1 <= self.num_copy <= (self.length - 1) // 2:
            raise ValueError(
                f"task.num_copy must be from 1 to (length - 1) / 2 = {(self.length - 1) // 2} and task.vocab_size at "
                f"least 3, got {self.num_copy} and {self.vocab_size}"
            )

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        blank, bar, context = self.vocab_size - 2, self.vocab_size - 1, self.length - self.num_copy - 1
        copied = rng.integers(blank, size=(rows, self.num_copy))
        before = rng.integers(self.num_copy, size=(rows, context - self.num_copy))
        blanks = (before[..., None] <= np.arange(self.num_copy)).sum(1)  # up to and before each token
        tokens, labels = np.full((rows, self.length), blank), no_labels(rows, self.length)
        np.put_along_axis(tokens, blanks + np.arange(self.num_copy), copied, axis=1)
        tokens[:, context] = bar
        labels[:, context + 1 :] = copied
        return tokens, labels


@dataclass(frozen=True)
class Memorization(TokenTask):
    """Asks for a fixed map from keys to values: the weights hold it, not the context. MAD: 256, length 32.

    The symbols are half keys, half values, and a question mark besides.
    """

    length: int = 32
    vocab_size: int = 256

    name: ClassVar[str] = "diagnostics/memorization"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 2 or self.vocab_size % 2 or self.length % 2 or self.length < 2:
            raise ValueError(f"task.vocab_size and task.length must be even, got {self.vocab_size} and {self.length}")

    @property
    def model_vocabulary(self) -> int:
        return self.vocab_size + 1

    @cached_property
    def value_of(self) -> np.ndarray:
        """Returns the map, int64 [vocab_size / 2]: the same for every seed."""
        half = self.vocab_size // 2
        return half + np.random.default_rng((MAP_SEED, self.vocab_size)).integers(half, size=half)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        keys = rng.integers(self.vocab_size // 2, size=(rows, self.length // 2))
        tokens, labels = np.full((rows, self.length), self.vocab_size), no_labels(rows, self.length)
        tokens[:, 0::2], labels[:, 1::2] = keys, self.value_of[keys]
        return tokens, labels


@dataclass(frozen=True)
class Compression(TokenTask):
    """Compresses a random sequence into one vector: the label of every place is its own token. MAD: 16, length 32.

    The last place holds the bar, the symbol `vocab_size`, and has no label.
    """

    length: int = 33

    name: ClassVar[str] = "diagnostics/compression"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2 or self.vocab_size < 2:
            raise ValueError(
                f"task.length and task.vocab_size must be at least 2, got {self.length} and {self.vocab_size}"
            )

    @property
    def model_vocabulary(self) -> int:
        return self.vocab_size + 1

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, labels = rng.integers(self.vocab_size, size=(rows, self.length)), no_labels(rows, self.length)
        tokens[:, -1] = self.vocab_size
        labels[:, :-1] = tokens[:, :-1]
        return tokens, labels

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return Autoencoder(cast(LanguageModel, super().build_model(backbone)), self.length)


class Autoencoder(nn.Module):
    """Encodes with a causal model and decodes with an MLP.

    The MLP decodes every place from the model's last output vector and that place's own vector.
    """

    def __init__(self, model: LanguageModel, length: int) -> None:
        super().__init__()
        vocab_size, dim = model.head.weight.shape
        self.embedding, self.stack = model.embedding, model.stack
        self.place = nn.Parameter(torch.randn(length, dim) * 0.2)
        self.decoder = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, vocab_size))

    def forward(self, ids: Tensor) -> Tensor:
        """Maps [B,T] to logits [B,T,vocabulary]."""
        summary = self.stack(self.embedding(ids))[:, -1:].expand(-1, ids.shape[1], -1)
        return self.decoder(torch.cat([summary, self.place.expand(len(ids), -1, -1)], dim=-1))

    def state_size(self, length: int) -> int:
        return self.stack.state_size(length)
