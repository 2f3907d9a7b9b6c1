"""ListOps asks for the value of a nested expression of MIN, MAX, MED and SM over digits, one of ten classes.

Long Range Arena's files are `listops-1000/basic_{train,val,test}.tsv`, 96,000 / 2,000 / 2,000 expressions of 501 to
1,999 tokens. The vocabulary is fixed, 15 symbols and 0 for padding: parentheses are left out, `]` is `X`. Sequences are
padded on the right to the longest of a batch; the metric is accuracy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from mixerzoo.tasks.base import Batch, Measurements
from mixerzoo.tasks.config import BackboneConfig, check_at_least
from mixerzoo.tasks.data_cache import cached, stamps
from mixerzoo.tasks.rows import padded, ragged, ragged_rows, rows_forever, rows_once
from mixerzoo.tasks.sequence_classification import SequenceClassification

from .archive import archive_roots
from .listops_generator import FIRST_OPERATOR, FOLDER, HEADER, SYMBOLS, TreeShape, generate

SPLITS = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
HELD_OUT_SEEDS = {"valid": 2**31, "test": 2**31 + 1, "baseline": 2**31 + 2}  # training seeds lie below
PADDING = 0  # symbol s is the id s + 1
BASELINE_SAMPLES = 4096


@dataclass(frozen=True)
class ListOps(SequenceClassification):
    """Asks for the values of expressions.

    `lra_dir` has the files, written by `mixerzoo data listops` or Long Range Arena's own.

    Without `lra_dir` they are generated: fresh ones in every training batch, with lengths strictly between
    `min_length` and `max_length` and the generator's other settings. The defaults are short, for CPUs; Long Range
    Arena's are 500, 2000, 10 and 10. From files, what is longer than `max_tokens` is cut there.
    """

    lra_dir: str | None = None
    min_length: int = 19
    max_length: int = 101
    max_depth: int = 5
    max_args: int = 5
    max_tokens: int = 2000
    held_out_samples: int = 1000

    name: ClassVar[str] = "lra/listops"
    classes: ClassVar[int] = 10
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 2000,
        "train.batch_size": 32,
        "train.lr": 3e-3,
        "train.evaluate_every": 200,
    }

    def __post_init__(self) -> None:
        _ = self.shape
        check_at_least(1, self, "task", "max_tokens", "held_out_samples")

    @property
    def shape(self) -> TreeShape:
        return TreeShape(self.max_depth, self.max_args, self.min_length, self.max_length)

    @property
    def input_keywords(self) -> dict[str, Any]:
        return {"vocab_size": len(SYMBOLS) + 1, "max_length": self.max_tokens if self.lra_dir else self.max_length}

    @cached_property
    def fingerprint(self) -> str:
        """Hashes the whole validation set, and the training set's beginning."""
        first = next(self.batches("train", seed=0, batch_size=64)) if self.lra_dir is None else self._rows("train")
        valid = self._rows("valid")
        parts = [np.asarray(part) for part in (*valid.values(), *list(first.values()))]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        if split == "train" and self.lra_dir is None:
            if not 0 <= seed < HELD_OUT_SEEDS["valid"]:
                raise ValueError(f"seed must be from 0 to {HELD_OUT_SEEDS['valid'] - 1}, got {seed}")
            rng = np.random.default_rng(seed)
            while True:
                trees = generate(self.shape, rng, 8 * batch_size)
                for rows in rows_once(8 * batch_size, batch_size):
                    yield _batch(trees._asdict(), rows)
        data = self._rows(split)
        count = len(data["answers"])
        order = rows_forever(count, seed, batch_size) if split == "train" else rows_once(count, batch_size)
        for rows in order:
            yield _batch(data, rows)

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns what predictors score on the test split that know nothing, or read the first symbol alone."""
        majority, root = self.baselines
        lengths = np.diff(self._rows("test")["starts"])
        found = f"{lengths.min()} to {lengths.max()} tokens ({'files' if self.lra_dir else 'generated here'})"
        return Measurements(
            {"majority class": majority, "root operator": root},
            f"Expressions have {found}; Long Range Arena's have 501 to 1999.",
        )

    @cached_property
    def baselines(self) -> tuple[float, float]:
        """Returns accuracies on the test split: of the most frequent answer, and of that given the root."""
        if self.lra_dir is None:
            train = _generated(self.shape, HELD_OUT_SEEDS["baseline"], BASELINE_SAMPLES)
        else:
            train = self._rows("train")
        (roots, answers), (test_roots, test_answers) = (
            (np.asarray(data["tokens"])[np.asarray(data["starts"][:-1])], np.asarray(data["answers"]))
            for data in (train, self._rows("test"))
        )
        majority = np.bincount(answers, minlength=10).argmax()
        guesses = {root: np.bincount(answers[roots == root], minlength=10).argmax() for root in np.unique(roots)}
        by_root = np.array([guesses.get(root, majority) for root in test_roots])
        return float((test_answers == majority).mean()), float((test_answers == by_root).mean())

    def _rows(self, split: str) -> Mapping[str, np.ndarray]:
        """Returns tokens, starts and answers of a split, as in `listops_generator.Trees`."""
        return self._files[split] if self.lra_dir else self._held_out[split]

    @cached_property
    def _held_out(self) -> dict[str, Mapping[str, np.ndarray]]:
        return {
            split: _generated(self.shape, HELD_OUT_SEEDS[split], self.held_out_samples) for split in ("valid", "test")
        }

    @cached_property
    def _files(self) -> dict[str, Mapping[str, np.ndarray]]:
        roots = archive_roots(self.lra_dir or "")
        folders = [*(root / FOLDER for root in roots), roots[0]]
        folder = next((folder for folder in folders if (folder / SPLITS["train"]).is_file()), folders[0])
        files = {split: folder / name for split, name in SPLITS.items()}
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"{file} is missing; remedy: mixerzoo data listops --out DIR, and DIR as lra_dir")
        return {
            split: cached("listops", (stamps([file]), self.max_tokens), partial(read_listops, file, self.max_tokens))
            for split, file in files.items()
        }


def read_listops(file: Path, max_tokens: int = 2000) -> dict[str, np.ndarray]:
    """Returns tokens, starts and answers of a file. Raises ValueError with the line for what isn't ListOps."""
    symbol_of = {symbol: index for index, symbol in enumerate((*SYMBOLS[:10], "]", *SYMBOLS[FIRST_OPERATOR:]))}
    tokens, answers = [], []
    with open(file, encoding="utf-8", errors="replace") as lines:
        header = next(lines, "")
        if header.rstrip("\n") != HEADER.rstrip("\n"):
            raise ValueError(f"{file} line 1 must be the header Source, tab, Target, got {header[:40]!r}")
        for number, line in enumerate(lines, start=2):
            source, tab, answer = line.rstrip("\n").partition("\t")
            try:
                symbols = [symbol_of[word] for word in source.split() if word not in ("(", ")")]
            except KeyError as error:
                raise ValueError(f"{file} line {number} has the unknown symbol {error}") from None
            if not tab or not symbols or answer not in SYMBOLS[:10]:
                raise ValueError(f"{file} line {number} must be an expression, a tab and a digit, got {line[-20:]!r}")
            tokens.append(np.array(symbols[:max_tokens], np.uint8))
            answers.append(int(answer))
    if not answers:
        raise ValueError(f"{file} has no expressions")
    return {**ragged(tokens), "answers": np.array(answers)}


def _generated(shape: TreeShape, seed: int, count: int) -> Mapping[str, np.ndarray]:
    return generate(shape, np.random.default_rng(seed), count)._asdict()


def _batch(data: Mapping[str, np.ndarray], rows: np.ndarray) -> Batch:
    inputs, mask = padded([symbols.astype(np.int64) + 1 for symbols in ragged_rows(data, rows)])
    return {"inputs": inputs, "mask": mask, "labels": torch.from_numpy(data["answers"][rows].astype(np.int64))}
