"""Stands in for Retrieval where its papers aren't at hand: are two pieces of text from the same document?

Pieces are bytes, 257 ids as in Retrieval, all of the same length, so that neither length nor place tells the answer. A
document's pieces follow each other without overlap; documents shorter than two are left out. The documents themselves
are split 80 / 10 / 10: none is in two splits. The metric is accuracy, and comparable with nothing but itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from mixerzoo.tasks.base import Batch, Measurements
from mixerzoo.tasks.config import BackboneConfig, check_at_least
from mixerzoo.tasks.data_cache import cached, stamps
from mixerzoo.tasks.rows import ragged

from .characters import BYTE_IDS
from .retrieval import PairClassification, pair_batch

SPLIT_SEED, HELD_OUT_SEEDS = 0, {"valid": 2**31, "test": 2**31 + 1}  # training seeds lie below
SHARES = {"train": (0, 8), "valid": (8, 9), "test": (9, 10)}
FEWEST, PARAGRAPH = 20, 40


@dataclass(frozen=True)
class RetrievalProxy(PairClassification):
    """Asks whether two pieces are of the same document.

    `documents` is a folder with .txt files, at any depth; None: Python's own help texts.

    Training pairs are always new ones. The defaults are for CPUs; Long Range Arena's texts have 4,000 tokens.
    """

    documents: str | None = None
    max_tokens: int = 256
    held_out_samples: int = 500

    name: ClassVar[str] = "lra/retrieval-proxy"
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 2000,
        "train.batch_size": 32,
        "train.lr": 3e-3,
        "train.evaluate_every": 500,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "task", "max_tokens", "held_out_samples")

    @property
    def input_keywords(self) -> dict[str, Any]:
        return {"vocab_size": BYTE_IDS, "max_length": self.max_tokens}

    @cached_property
    def fingerprint(self) -> str:
        parts = (np.ascontiguousarray(piece) for split in SHARES for piece in self._pieces[split])
        return hashlib.sha256(b"".join(hashlib.sha256(part.data).digest() for part in parts)).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        pieces = self._pieces[split]
        if split == "train":
            if not 0 <= seed < HELD_OUT_SEEDS["valid"]:
                raise ValueError(f"seed must be from 0 to {HELD_OUT_SEEDS['valid'] - 1}, got {seed}")
            rng = np.random.default_rng(seed)
            while True:
                yield _batch([draw_pair(pieces, rng) for _ in range(batch_size)])
        rng = np.random.default_rng(HELD_OUT_SEEDS[split])
        pairs = [draw_pair(pieces, rng) for _ in range(self.held_out_samples)]
        for first in range(0, len(pairs), batch_size):
            yield _batch(pairs[first : first + batch_size])

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns how many documents there are."""
        counts = {split: len(pieces) for split, pieces in self._pieces.items()}
        return Measurements(
            note=f"A proxy, not Long Range Arena's Retrieval: pieces of {self.max_tokens} bytes from {counts['train']} "
            f"documents in training, {counts['valid']} others in validation and {counts['test']} in the test.",
        )

    @cached_property
    def _pieces(self) -> dict[str, list[np.ndarray]]:
        """Returns, of every split, the documents as uint8 [pieces,max_tokens]."""
        data = self._texts
        ends = zip(data["starts"][:-1], data["starts"][1:], strict=True)
        texts = [data["tokens"][start:end] for start, end in ends]
        counts = [len(text) // self.max_tokens for text in texts]
        long = [text[: n * self.max_tokens].reshape(n, -1) for text, n in zip(texts, counts, strict=True) if n > 1]
        if len(long) < FEWEST:
            raise ValueError(
                f"{self.name} needs at least {FEWEST} documents of {2 * self.max_tokens} bytes, got {len(long)}; "
                "remedy: a smaller task.max_tokens, or a larger task.documents"
            )
        order = np.random.default_rng(SPLIT_SEED).permutation(len(long))
        cuts = {split: (len(long) * first // 10, len(long) * last // 10) for split, (first, last) in SHARES.items()}
        return {split: [long[index] for index in order[first:last]] for split, (first, last) in cuts.items()}

    @property
    def _texts(self) -> Mapping[str, np.ndarray]:
        if self.documents is None:
            return ragged([np.frombuffer(text, np.uint8) for text in help_texts()])
        folder = Path(self.documents).expanduser()
        files = sorted(file for file in folder.rglob("*.txt") if file.stat().st_size)
        if not files:
            raise ValueError(f"{folder} has no .txt files that aren't empty; remedy: task.documents with a folder")
        return cached(
            "documents",
            stamps(files),
            lambda: ragged([np.frombuffer(file.read_bytes(), np.uint8) for file in files]),
        )


def help_texts() -> list[bytes]:
    """Returns the chapters of CPython's language reference that it ships for `help()`, in the order of their names.

    Some chapters repeat others, which would put one text into two documents. So a chapter that shares a paragraph with
    an earlier one is left out.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python comes without pydoc_data; remedy: task.documents with a folder") from error
    known: set[str] = set()
    chapters = []
    for name in sorted(topics):
        paragraphs = {" ".join(paragraph.split()) for paragraph in topics[name].split("\n\n")}
        paragraphs = {paragraph for paragraph in paragraphs if len(paragraph) >= PARAGRAPH}
        if not paragraphs & known:
            known |= paragraphs
            chapters.append(topics[name].encode())
    return chapters


def draw_pair(pieces: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Draws two pieces, of one document half of the time, and whether they are: 1.

    Every document is as likely as another.
    """
    if rng.integers(2):
        document = pieces[rng.integers(len(pieces))]
        first, second = rng.choice(len(document), size=2, replace=False)
        return document[first], document[second], 1
    one, other = (pieces[index] for index in rng.choice(len(pieces), size=2, replace=False))
    return one[rng.integers(len(one))], other[rng.integers(len(other))], 0


def _batch(pairs: list[tuple[np.ndarray, np.ndarray, int]]) -> Batch:
    sequences = [sequence for first, second, _ in pairs for sequence in (first, second)]
    return pair_batch(sequences, np.array([label for *_, label in pairs]))
