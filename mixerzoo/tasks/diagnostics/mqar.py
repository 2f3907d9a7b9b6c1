"""Multi-query associative recall (MQAR) has the generator of Zoology (Arora et al., arXiv:2312.04927).

    inputs   k1 v1 k2 v2 0 0 k2 0 0 0 k1 0        pairs first, then every key once more, at even slots of the rest
    labels    .  .  .  . . . v2 . . . v1 .        -100 wherever the dot stands

Keys are distinct and from the lower half of the vocabulary (0 is filler), values are distinct and from the upper half.
The slot g of a query is drawn without replacement with probability proportional to a * (g+1)^(a-1), so most questions
come soon after the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mixerzoo.tasks.base import Metric
from mixerzoo.tasks.config import check_at_least

from .tokens import TokenTask, no_labels


@dataclass(frozen=True)
class MQAR(TokenTask):
    """Asks for the value of each of `num_pairs` keys when the key appears again.

    Every training batch has fresh sequences.

    The defaults are the small setting, which two CPU cores can learn; Zoology's first is length=64, vocab_size=8192.
    Embeddings start at 0.2 rather than 0.02, because the first blocks' outputs would otherwise drown them.
    """

    length: int = 32
    vocab_size: int = 64
    num_pairs: int = 4
    power: float = 0.01
    random_fillers: bool = False

    name: ClassVar[str] = "mqar"
    metric: ClassVar[Metric] = Metric("accuracy", "fraction of queries", higher_is_better=True)
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 900,
        "train.batch_size": 32,
        "train.lr": 1e-2,
        # Measured: at 1e-2 attention stays on the plateau where it guesses among the pairs, and GLA leaves it late.
        "attention:train.lr": 3e-3,
        "gla:train.lr": 5e-3,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "task", "num_pairs")
        if self.length % 2 or self.length < 4 * self.num_pairs:
            raise ValueError(
                f"task.length must be even and at least 4 * num_pairs = {4 * self.num_pairs}, got {self.length}"
            )
        if self.vocab_size <= self.length:
            raise ValueError(f"task.vocab_size must be larger than length = {self.length}, got {self.vocab_size}")

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Generates `rows` sequences: inputs and labels, int64 [rows, length]."""
        pairs, half = self.num_pairs, self.vocab_size // 2
        context, slots = 2 * pairs, (self.length - 2 * pairs) // 2
        keys = 1 + _draw_distinct(rng, np.zeros(half - 1), rows, pairs)
        values = half + _draw_distinct(rng, np.zeros(self.vocab_size - half), rows, pairs)
        gaps = _draw_distinct(rng, (self.power - 1) * np.log(np.arange(1, slots + 1)), rows, pairs)
        inputs = np.zeros((rows, self.length), dtype=np.int64)
        labels = no_labels(rows, self.length)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        np.put_along_axis(inputs, context + 2 * gaps, keys, axis=1)
        np.put_along_axis(labels, context + 2 * gaps, values, axis=1)
        if self.random_fillers:
            inputs = np.where(inputs == 0, rng.integers(self.vocab_size, size=inputs.shape), inputs)
        return inputs, labels


def _draw_distinct(rng: np.random.Generator, log_weights: np.ndarray, rows: int, count: int) -> np.ndarray:
    """Draws `count` distinct indices per row, one after the other, in proportion to their weights (Gumbel top-k)."""
    scores = log_weights + rng.gumbel(size=(rows, len(log_weights)))
    return np.argsort(-scores, axis=1)[:, :count]
