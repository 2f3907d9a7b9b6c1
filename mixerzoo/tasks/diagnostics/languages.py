"""Formal languages are learned on short words and tested on long ones: parity, even pairs, modular arithmetic.

The languages are those of Deletang et al. (arXiv:2207.02098), the lengths those of Beck et al. (arXiv:2405.04517):
words of 3 to 40 symbols in training, up to 256 in the test. A model that counts stays right on long words; a model that
learned a shortcut falls to chance. The score is the mean accuracy over lengths above 40; `accuracy_by_length` gives the
curve.

    parity                             1 0 1 1          1 if the number of ones is odd
    even pairs                         1 0 1 1          1 if first and last symbol differ, so 0 here
    modular arithmetic                 2 + 3 * 4 - 1    modulo 5, * before + and -
    modular arithmetic with brackets   ( 2 + ( - 3 ) )  modulo 5, brackets around every operation
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from mixerzoo.tasks.base import Batch, Measurements, Metric, Series
from mixerzoo.tasks.config import BackboneConfig, check_at_least
from mixerzoo.tasks.rows import padded
from mixerzoo.tasks.sequence_classification import SequenceClassification

from .tokens import VALID_SEED

MODULUS = 5
CURVE = (0.5, 1.0, 1.6, 3.2, 6.4)  # lengths of the curve, in units of the longest in training
LENGTHS_BEYOND = 8
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class LengthExtrapolation(SequenceClassification):
    """Trains on words of `shortest` to `longest` symbols, uniform, and tests on longer ones, up to `test_longest`.

    The splits: "train"; "valid" and "test", `valid_words` words of each of eight lengths above `longest`; "trained",
    held-out words of the training lengths; "length-64", words of one length. Causal, read at the last symbol.
    Embeddings start at 0.2: with 0.02 the first blocks' outputs drown them and HGRN2 stays at chance for long.
    """

    pooling: str = "last"
    bidirectional: bool = False
    shortest: int = 3
    longest: int = 40
    test_longest: int = 256
    valid_words: int = 64
    embedding_std: float = 0.2

    metric: ClassVar[Metric] = Metric("accuracy", "longer than in training", higher_is_better=True)
    symbols: ClassVar[str]
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 1500,
        "train.batch_size": 64,
        "train.lr": 3e-3,
        "train.evaluate_every": 250,
    }

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest < self.test_longest:
            raise ValueError(
                "1 <= task.shortest <= task.longest < task.test_longest must hold, got "
                f"{self.shortest}, {self.longest} and {self.test_longest}"
            )
        check_at_least(1, self, "task", "valid_words")

    @abstractmethod
    def draw(self, rng: np.random.Generator, length: int) -> tuple[str, int]:
        """Draws a word of that length, over `symbols`, and its class."""

    def nearest(self, length: int) -> int:
        """Returns the length of a word closest to, and not above, `length`."""
        return length

    @property
    def input_keywords(self) -> dict[str, Any]:
        return {"vocab_size": len(self.symbols) + 1, "max_length": self.test_longest}

    @cached_property
    def fingerprint(self) -> str:
        first = islice(self.batches("train", seed=0, batch_size=64), 1)
        parts = (part for batch in (*first, *self.batches("valid", seed=0, batch_size=64)) for part in batch.values())
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        if split == "train":
            if not 0 <= seed < VALID_SEED:
                raise ValueError(f"seed must be from 0 to {VALID_SEED - 1}, got {seed}")
            rng = np.random.default_rng(seed)
            while True:
                yield self._words(rng, rng.integers(self.shortest, self.longest + 1, size=batch_size))
        rng = np.random.default_rng(VALID_SEED + (split == "test"))
        for length in self._lengths(split, rng):
            for first in range(0, self.valid_words, batch_size):
                yield self._words(rng, np.full(min(batch_size, self.valid_words - first), length))

    @torch.no_grad()
    def accuracy_by_length(self, model: nn.Module) -> dict[int, float]:
        """Measures a trained model's extrapolation curve, from half of the longest training length to `test_longest`.

        The model's mode, training or evaluation, stays unchanged.
        """
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        curve = {}
        for share in CURVE:
            length = self.nearest(max(1, min(self.test_longest, round(share * self.longest))))
            correct = count = 0
            for batch in self.batches(f"length-{length}", seed=0, batch_size=EVALUATION_BATCH):
                right, words = self.score(model, {name: part.to(device) for name, part in batch.items()})
                correct, count = correct + int(right), count + int(words)
            curve[length] = correct / count
        model.train(was_training)
        return curve

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Measures the extrapolation curve."""
        curve = self.accuracy_by_length(model)
        extrapolation = Series("length of the word", "accuracy", list(curve.items()), mark=self.longest)
        return Measurements(
            {f"length {length}": accuracy for length, accuracy in curve.items()},
            f"Accuracy by length of the word; words of {self.shortest} to {self.longest} symbols were trained on.",
            series={"length extrapolation": extrapolation},
        )

    def _lengths(self, split: str, rng: np.random.Generator) -> list[int]:
        kind, _, number = split.partition("-")
        if kind == "length" and number.isdigit():
            return [self.nearest(int(number))]
        if split == "trained":
            return rng.integers(self.shortest, self.longest + 1, size=LENGTHS_BEYOND).tolist()
        if split not in ("valid", "test"):
            raise ValueError(f"unknown split {split!r}; known: train, valid, test, trained, length-N")
        return np.linspace(self.longest + 1, self.test_longest, LENGTHS_BEYOND).astype(int).tolist()

    def _words(self, rng: np.random.Generator, lengths: np.ndarray) -> Batch:
        words = [self.draw(rng, self.nearest(length)) for length in lengths.tolist()]
        inputs, mask = padded([np.array([self.symbols.index(symbol) + 1 for symbol in word]) for word, _ in words])
        return {"inputs": inputs, "mask": mask, "labels": torch.tensor([label for _, label in words])}


@dataclass(frozen=True)
class Parity(LengthExtrapolation):
    """Asks whether the number of ones is odd."""

    name: ClassVar[str] = "diagnostics/parity"
    classes: ClassVar[int] = 2
    symbols: ClassVar[str] = "01"

    def draw(self, rng: np.random.Generator, length: int) -> tuple[str, int]:
        bits = rng.integers(2, size=length)
        return _word(self.symbols, bits), int(bits.sum() % 2)


@dataclass(frozen=True)
class EvenPairs(LengthExtrapolation):
    """Asks whether the number of unequal neighbours is odd, that is, whether the first symbol differs from the last."""

    name: ClassVar[str] = "diagnostics/even-pairs"
    classes: ClassVar[int] = 2
    symbols: ClassVar[str] = "01"

    def draw(self, rng: np.random.Generator, length: int) -> tuple[str, int]:
        bits = rng.integers(2, size=length)
        return _word(self.symbols, bits), int(bits[0] != bits[-1])


@dataclass(frozen=True)
class ModularArithmetic(LengthExtrapolation):
    """Asks for the value, modulo 5, of digits 0 to 4 with +, - and * between them; lengths are odd."""

    name: ClassVar[str] = "diagnostics/modular-arithmetic"
    classes: ClassVar[int] = MODULUS
    symbols: ClassVar[str] = "01234+-*"

    def nearest(self, length: int) -> int:
        return max(1, length - 1 + length % 2)

    def draw(self, rng: np.random.Generator, length: int) -> tuple[str, int]:
        digits, operators = rng.integers(MODULUS, size=(length + 1) // 2), rng.integers(3, size=length // 2)
        total, product = 0, int(digits[0])
        for operator, digit in zip(operators.tolist(), digits[1:].tolist(), strict=True):
            if operator == 2:
                product = product * digit % MODULUS
            else:
                total, product = total + product, digit if operator == 0 else -digit
        codes = np.zeros(length, np.int64)
        codes[0::2], codes[1::2] = digits, MODULUS + operators
        return _word(self.symbols, codes), (total + product) % MODULUS


@dataclass(frozen=True)
class BracketedArithmetic(LengthExtrapolation):
    """Asks for the value, modulo 5, of a term with brackets.

    Terms are x, -x, (x), (-x), and from 5 symbols on (A+B), (A-B), (A*B), cut at a uniform place.
    """

    name: ClassVar[str] = "diagnostics/modular-arithmetic-brackets"
    classes: ClassVar[int] = MODULUS
    symbols: ClassVar[str] = "01234+-*()"

    def draw(self, rng: np.random.Generator, length: int) -> tuple[str, int]:
        if length >= 5:
            cut = int(rng.integers(1, length - 3))
            (left, a), (right, b) = self.draw(rng, cut), self.draw(rng, length - 3 - cut)
            operator = "+-*"[rng.integers(3)]
            value = {"+": a + b, "-": a - b, "*": a * b}[operator]
            return f"({left}{operator}{right})", value % MODULUS
        digit = int(rng.integers(MODULUS))
        form = {1: "{}", 2: "-{}", 3: "({})", 4: "(-{})"}[length]
        return form.format(digit), (-digit if "-" in form else digit) % MODULUS


def _word(symbols: str, codes: np.ndarray) -> str:
    return "".join(symbols[code] for code in codes.tolist())
