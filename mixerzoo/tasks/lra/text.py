"""Text asks if a film review is favourable, read byte by byte: IMDB's reviews (Maas et al., 2011), two classes.

The files are `aclImdb/{train,test}/{neg,pos}/*.txt`, 25,000 reviews each in train and test, or a data set of the
Hugging Face hub with the columns `text` and `label`. What is longer than 4096 tokens is cut; sequences are padded on
the right to the longest of a batch; the metric is accuracy. The sources differ in two things:

    standard    bytes, 257 ids; a fixed tenth of the training reviews validates, test reviews are read once
    hgrn        characters, 135 ids; all training reviews train, and the test reviews validate, so that a score that was
                chosen by them is chosen on the test (so do Long Range Arena's and S4's code, and all published scores)

S4 keeps characters that it sees 15 times or more, and counts 135 ids; here they are the 132 most frequent ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.tasks.base import Batch, Measurements
from mixerzoo.tasks.config import BackboneConfig
from mixerzoo.tasks.data_cache import cached
from mixerzoo.tasks.rows import padded, ragged, ragged_rows, rows_forever, rows_once
from mixerzoo.tasks.sequence_classification import SequenceClassification

from .characters import (
    BYTE_IDS,
    PROTOCOLS,
    Encoder,
    byte_encoder,
    character_encoder,
    character_ids,
    frequent_characters,
)

ALPHABET, CLASSES, SPLIT_SEED = 132, ("neg", "pos"), 0


class Review(NamedTuple):
    text: bytes
    label: int


@dataclass(frozen=True)
class Text(SequenceClassification):
    """Asks whether a review is favourable.

    `lra_dir` has the folder aclImdb, or is it; without it `hub_name` is read, by `datasets`.

    protocol: standard | hgrn. max_tokens: 4096 in the benchmark.
    """

    lra_dir: str | None = None
    hub_name: str = "stanfordnlp/imdb"
    protocol: str = "standard"
    max_tokens: int = 4096

    name: ClassVar[str] = "lra/text"
    classes: ClassVar[int] = 2
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 2000,
        "train.batch_size": 32,
        "train.lr": 3e-3,
        "train.evaluate_every": 500,
    }

    def __post_init__(self) -> None:
        check_choice("task.protocol", self.protocol, PROTOCOLS)
        if self.max_tokens < 2:
            raise ValueError(f"task.max_tokens must be at least 2, got {self.max_tokens}")

    @property
    def input_keywords(self) -> dict[str, Any]:
        ids = BYTE_IDS if self.protocol == "standard" else character_ids(ALPHABET)
        return {"vocab_size": ids, "max_length": self.max_tokens}

    @cached_property
    def fingerprint(self) -> str:
        parts = (array for part in ("train", "test") for array in self._data[part].values())
        digests = (hashlib.sha256(np.asarray(array).data).digest() for array in parts)
        return hashlib.sha256(b"".join((*digests, self.protocol.encode()))).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        part, chosen = self._rows(split)
        train = split == "train"
        order = rows_forever(len(chosen), seed, batch_size) if train else rows_once(len(chosen), batch_size)
        data = self._data[part]
        for rows in order:
            inputs, mask = padded([codes.astype(np.int64) + 1 for codes in ragged_rows(data, chosen[rows])])
            labels = torch.from_numpy(data["labels"][chosen[rows]].astype(np.int64))
            yield {"inputs": inputs, "mask": mask, "labels": labels}

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns what a predictor that knows nothing scores on the test split."""
        favourable = float(np.asarray(self._data["test"]["labels"]).mean())
        cut = np.mean(np.diff(self._data["train"]["starts"]) >= self.max_tokens)
        return Measurements(
            {"majority class": max(favourable, 1 - favourable)},
            f"Protocol {self.protocol}. {cut:.0%} of the training reviews reach {self.max_tokens} tokens and are cut; "
            "Long Range Arena's limit is 4096."
            + (" Validation reads the test reviews, as published." if self.protocol == "hgrn" else ""),
        )

    def _rows(self, split: str) -> tuple[str, np.ndarray]:
        """Returns which of the two parts a split belongs to, and its rows there."""
        rows = {part: np.arange(len(self._data[part]["labels"])) for part in ("train", "test")}
        if self.protocol == "hgrn":
            part = "train" if split == "train" else "test"
            return part, rows[part]
        if split == "test":
            return "test", rows["test"]
        order = np.random.default_rng(SPLIT_SEED).permutation(rows["train"])
        held_out = max(1, len(order) // 10)
        return "train", np.sort(order[:held_out] if split == "valid" else order[held_out:])

    @cached_property
    def _data(self) -> dict[str, Mapping[str, np.ndarray]]:
        """Returns tokens (codes), starts and labels of the parts train and test."""
        if self.lra_dir is None:
            key: Any = (self.hub_name, _folder_stamps(Path(self.hub_name).expanduser()))
        else:
            folder = _folder(Path(self.lra_dir).expanduser())
            key = [_folder_stamps(folder / part / name) for part in ("train", "test") for name in CLASSES]
        arrays = cached("imdb", (key, self.protocol, self.max_tokens), self._read)
        names = ("tokens", "starts", "labels")
        return {part: {name: arrays[f"{part}_{name}"] for name in names} for part in ("train", "test")}

    def _read(self) -> dict[str, np.ndarray]:
        if self.lra_dir is None:
            parts = {part: read_hub(self.hub_name, part) for part in ("train", "test")}
        else:
            folder = _folder(Path(self.lra_dir).expanduser())
            parts = {part: read_reviews(folder / part) for part in ("train", "test")}
        encode = self._encoder(parts["train"])
        arrays = {}
        for part, reviews in parts.items():
            arrays.update({f"{part}_{k}": v for k, v in ragged([encode(review.text) for review in reviews]).items()})
            arrays[f"{part}_labels"] = np.array([review.label for review in reviews], np.uint8)
        return arrays

    def _encoder(self, train: list[Review]) -> Encoder:
        if self.protocol == "standard":
            return byte_encoder(self.max_tokens)
        alphabet = frequent_characters((review.text for review in train), ALPHABET, self.max_tokens)
        return character_encoder(alphabet, self.max_tokens)


def read_reviews(folder: Path) -> list[Review]:
    """Reads the reviews in `folder/neg` and `folder/pos`, by name.

    Raises ValueError with the file that is no review.
    """
    reviews = []
    for label, name in enumerate(CLASSES):
        for entry in _text_files(folder / name):
            try:
                text = Path(entry.path).read_bytes()
            except OSError as error:
                raise ValueError(f"cannot read {entry.path}: {error.strerror}") from error
            if not text:
                raise ValueError(f"{entry.path} is empty; remedy: the file from the archive, or remove it")
            reviews.append(Review(text, label))
    return reviews


def read_hub(name: str, part: str) -> list[Review]:
    """Reads a split of a Hugging Face data set, or of a local folder of one.

    Raises ValueError for what it lacks.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            "the reviews come from the Hugging Face hub by the package datasets; remedy: pip install datasets, or "
            "task.lra_dir with the folder aclImdb"
        ) from error
    try:
        rows = load_dataset(name, split=part)
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"cannot read the {part} split of {name!r}: {text}; remedy: your connection, or task.lra_dir with the "
            "folder aclImdb"
        ) from error
    if not {"text", "label"} <= set(rows.column_names):
        raise ValueError(f"{name!r} must have the columns text and label, it has {', '.join(rows.column_names)}")
    reviews = [Review(row["text"].encode(), row["label"]) for row in rows]
    for number, review in enumerate(reviews):
        if not review.text or review.label not in (0, 1):
            raise ValueError(f"row {number} of the {part} split of {name!r} must be a text and 0 or 1, got {review}")
    return reviews


def _folder(root: Path) -> Path:
    """Returns where the folders train and test are. Raises ValueError for what is missing of the layout."""
    folder = root / "aclImdb" if (root / "aclImdb").is_dir() or not (root / "train").is_dir() else root
    for part in ("train", "test"):
        for name in CLASSES:
            if not (folder / part / name).is_dir():
                raise ValueError(
                    f"{folder / part / name} is missing; remedy: unpack aclImdb_v1.tar.gz, "
                    "and the folder that has aclImdb as task.lra_dir"
                )
            if not _text_files(folder / part / name):
                raise ValueError(f"{folder / part / name} has no .txt files; remedy: unpack aclImdb_v1.tar.gz again")
    return folder


def _text_files(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name.endswith(".txt")), key=lambda entry: entry.name)


def _folder_stamps(folder: Path) -> str:
    """Returns what tells a changed folder from the same; none for no folder.

    It is a hash of its files' names, sizes and times.
    """
    if not folder.is_dir():
        return ""
    with os.scandir(folder) as entries:
        stamps = sorted((entry.path, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
    return hashlib.sha256(str((str(folder.resolve()), stamps)).encode()).hexdigest()
