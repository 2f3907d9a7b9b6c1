"""Recall is tested by induction heads and by the recall tasks of MAD (Poli et al., arXiv:2403.17844, appendix B).

    induction            5 2 * 7 3 3 1 *                     -> 7, which followed the first *
    in-context recall    a 3 b 1 c 3 a 3 b 1                 at a key seen before, its value
    noisy recall         a 3 # % b 1 ! # a 3                 the same among noise, from symbols of its own
    fuzzy recall         a c 3 1 b 2 b c 1 a c 3 1           keys and values of one to three symbols

Keys are from the lower half of the vocabulary, values from the upper. Every sequence draws a new value for each key,
independently: several keys may share one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .tokens import TokenTask, no_labels


@dataclass(frozen=True)
class Induction(TokenTask):
    """Asks, after the second trigger, for the symbol after the first.

    The first trigger stands at a uniform place; the one answer is at the end. Mamba (arXiv:2312.00752, section 4.1.2)
    has 16 symbols and a trigger besides, and length 256.
    """

    name: ClassVar[str] = "diagnostics/induction"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 4 or self.vocab_size < 2:
            raise ValueError(
                f"task.length must be at least 4 and task.vocab_size 2, got {self.length} and {self.vocab_size}"
            )

    @property
    def model_vocabulary(self) -> int:
        return self.vocab_size + 1

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, labels = rng.integers(self.vocab_size, size=(rows, self.length)), no_labels(rows, self.length)
        every, place = np.arange(rows), rng.integers(self.length - 2, size=rows)
        tokens[every, place] = tokens[:, -1] = self.vocab_size
        labels[:, -1] = tokens[every, place + 1]
        return tokens, labels


@dataclass(frozen=True)
class InContextRecall(TokenTask):
    """Asks, in pairs of a key and its value, for the value of each key seen before: MAD's in-context recall.

    The last key is always one seen before. `noise` is the probability that a pair is two tokens of noise instead, from
    `noise_vocab_size` further symbols; MAD's noisy recall has 0.2 and 16.
    """

    length: int = 128
    noise: float = 0.0
    noise_vocab_size: int = 0

    name: ClassVar[str] = "diagnostics/in-context-recall"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 2 or self.vocab_size % 2 or self.length < 4 or self.length % 2:
            raise ValueError(
                "task.vocab_size and task.length must be even and at least 2 and 4, got "
                f"{self.vocab_size} and {self.length}"
            )
        if not 0 <= self.noise < 1 or (self.noise > 0) != (self.noise_vocab_size > 0):
            raise ValueError(
                "task.noise must lie in [0, 1), and be above 0 just if task.noise_vocab_size is, got "
                f"{self.noise} and {self.noise_vocab_size}"
            )

    @property
    def model_vocabulary(self) -> int:
        return self.vocab_size + self.noise_vocab_size

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        half, pairs, every = self.vocab_size // 2, self.length // 2, np.arange(rows)
        value_of = half + rng.integers(half, size=(rows, half))
        keys = rng.integers(half, size=(rows, pairs))
        noisy = rng.random((rows, pairs)) < self.noise
        noisy[:, [0, -1]] = False  # something is known by the end, and asked there
        seen, asked = np.zeros((rows, half), bool), np.zeros((rows, pairs), bool)
        for pair in range(pairs - 1):
            asked[:, pair] = seen[every, keys[:, pair]] & ~noisy[:, pair]
            seen[every, keys[:, pair]] |= ~noisy[:, pair]
        keys[:, -1] = (rng.random((rows, half)) * seen).argmax(1)
        asked[:, -1] = True
        values = np.take_along_axis(value_of, keys, axis=1)
        noise = self.vocab_size + rng.integers(max(1, self.noise_vocab_size), size=(2, rows, pairs))
        tokens, labels = np.zeros((rows, self.length), np.int64), no_labels(rows, self.length)
        tokens[:, 0::2], tokens[:, 1::2] = np.where(noisy, noise[0], keys), np.where(noisy, noise[1], values)
        labels[:, 0::2] = np.where(asked, values, labels[:, 0::2])
        return tokens, labels


@dataclass(frozen=True)
class NoisyRecall(InContextRecall):
    """Replaces a fifth of the pairs of in-context recall by noise: MAD's noisy recall."""

    noise: float = 0.2
    noise_vocab_size: int = 16

    name: ClassVar[str] = "diagnostics/noisy-recall"


@dataclass(frozen=True)
class FuzzyRecall(TokenTask):
    """Asks for values of several symbols, one symbol after the other: MAD's fuzzy recall.

    Keys and values have one to `longest` symbols. Each label of a value stands where the symbol before it does, and
    only if the whole key was seen before. As many pairs as fit come first, then padding, the symbol `vocab_size`. The
    last pair is a known key with its value, without the last symbol.
    """

    length: int = 128
    longest: int = 3
    pairs: int = 8

    name: ClassVar[str] = "diagnostics/fuzzy-recall"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 4 or self.vocab_size % 2 or self.longest < 1 or self.pairs < 1:
            raise ValueError(f"fuzzy recall needs an even vocab_size >= 4 and longest and pairs >= 1, got {self}")
        if self.length < 4 * self.longest:
            raise ValueError(f"task.length must be at least 4 * longest = {4 * self.longest}, got {self.length}")

    @property
    def model_vocabulary(self) -> int:
        return self.vocab_size + 1

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((rows, self.length), self.vocab_size, np.int64)
        labels = no_labels(rows, self.length)
        for row in range(rows):
            self._fill(rng, tokens[row], labels[row])
        return tokens, labels

    def _fill(self, rng: np.random.Generator, tokens: np.ndarray, labels: np.ndarray) -> None:
        half = self.vocab_size // 2
        value_of: dict[tuple[int, ...], list[int]] = {}
        for size in rng.integers(1, self.longest + 1, size=self.pairs):
            key = tuple(rng.integers(half, size=size).tolist())
            value_of[key] = (half + rng.integers(half, size=rng.integers(1, self.longest + 1))).tolist()
        dictionary, known, place = list(value_of.items()), set(), 0
        limit = self.length - 2 * self.longest
        for chosen in rng.integers(len(dictionary), size=self.length):
            key, value = dictionary[chosen]
            pair = [*key, *value]
            if place + len(pair) > limit:
                break
            tokens[place : place + len(pair)] = pair
            if key in known:
                asked = place + len(key) - 1
                labels[asked : asked + len(value)] = value
            known.add(key)
            place += len(pair)
        ordered = sorted(known)
        key = ordered[rng.integers(len(ordered))]
        pair = [*key, *value_of[key]]
        tokens[-len(pair) + 1 :] = pair[:-1]
        labels[-len(value_of[key]) :] = value_of[key]
