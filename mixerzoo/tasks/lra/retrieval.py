"""Retrieval asks if one paper cites the other: papers of the ACL Anthology Network (Radev et al., 2013), two classes.

Long Range Arena's files are `tsv_data/new_aan_pairs.{train,eval,test}.tsv`, 147,086 / 18,090 / 17,437 lines. A line has
a label (0.0 or 1.0), two numbers and two texts with tabs between; there is no header and no quoting. Each text is cut
at 4,000 tokens and goes through the same encoder; the metric is accuracy. Texts are padded on the right to the longest
of a batch.

    standard    bytes, 257 ids (Long Range Arena's)
    hgrn        characters, 98 ids: of printable ASCII, unknown, end and padding (S4's loaders, HGRN's and HGRN2's)

Where these files aren't at hand, `lra/retrieval-proxy` asks of other documents whether two pieces are of the same one.
It has other data and another question: its scores are not Long Range Arena's, nor comparable with them.
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
from torch import Tensor, nn

from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.tasks.base import Batch, Measurements
from mixerzoo.tasks.config import BackboneConfig
from mixerzoo.tasks.data_cache import cached, stamps
from mixerzoo.tasks.models.encoder import PAIR_HEADS, PairClassifier
from mixerzoo.tasks.rows import padded, ragged, ragged_rows, rows_forever, rows_once
from mixerzoo.tasks.sequence_classification import SequenceClassification

from .archive import archive_roots
from .characters import BYTE_IDS, PRINTABLE, PROTOCOLS, byte_encoder, character_encoder, character_ids

FOLDER = "tsv_data"
SPLITS = {name: f"new_aan_pairs.{part}.tsv" for name, part in (("train", "train"), ("valid", "eval"), ("test", "test"))}


@dataclass(frozen=True)
class PairClassification(SequenceClassification):
    """Classifies pairs of texts.

    A batch holds `inputs` and `mask` [B,2,T], and `labels` [B]. head: nli | concat.
    """

    head: str = "nli"

    classes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_choice("task.head", self.head, PAIR_HEADS)

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return PairClassifier(backbone, self.classes, self.encoder_keywords, head=self.head)


@dataclass(frozen=True)
class Retrieval(PairClassification):
    """Asks whether one cites the other. `lra_dir` has the folder tsv_data, or is it. protocol: standard | hgrn."""

    lra_dir: str | None = None
    protocol: str = "standard"
    max_tokens: int = 4000

    name: ClassVar[str] = "lra/retrieval"
    recipe: ClassVar[Mapping[str, Any]] = {
        "train.steps": 5000,
        "train.batch_size": 32,
        "train.lr": 3e-3,
        "train.evaluate_every": 1000,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("task.protocol", self.protocol, PROTOCOLS)
        if self.max_tokens < 2:
            raise ValueError(f"task.max_tokens must be at least 2, got {self.max_tokens}")

    @property
    def input_keywords(self) -> dict[str, Any]:
        ids = BYTE_IDS if self.protocol == "standard" else character_ids(len(PRINTABLE))
        return {"vocab_size": ids, "max_length": self.max_tokens}

    @cached_property
    def fingerprint(self) -> str:
        digests = (hashlib.sha256(np.asarray(a).data).digest() for s in SPLITS for a in self._data[s].values())
        return hashlib.sha256(b"".join((*digests, self.protocol.encode()))).hexdigest()[:16]

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        data = self._data[split]
        count = len(data["labels"])
        for rows in rows_forever(count, seed, batch_size) if split == "train" else rows_once(count, batch_size):
            codes = ragged_rows(data, data["pairs"][rows].reshape(-1))
            yield pair_batch(codes, data["labels"][rows])

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns what a predictor that knows nothing scores on the test split."""
        share = float(np.asarray(self._data["test"]["labels"]).mean())
        return Measurements(
            {"majority class": max(share, 1 - share)},
            f"Protocol {self.protocol}, head {self.head}, texts cut at {self.max_tokens} tokens; Long Range Arena's at "
            "4000.",
        )

    @cached_property
    def _data(self) -> dict[str, Mapping[str, np.ndarray]]:
        """Returns every split: tokens (codes) and starts of its texts, each once, their pairs [N,2], and labels [N]."""
        if self.lra_dir is None:
            raise ValueError(
                "lra/retrieval needs the ACL Anthology Network's pairs; remedy: task.lra_dir with the folder tsv_data, "
                "or lra/retrieval-proxy, which is another task"
            )
        roots = archive_roots(self.lra_dir)
        folders = [*(root / FOLDER for root in roots), roots[0]]
        folder = next((f for f in folders if any((f / name).is_file() for name in SPLITS.values())), folders[0])
        files = {split: folder / name for split, name in SPLITS.items()}
        for file in files.values():
            if not file.is_file():
                raise ValueError(
                    f"{file} is missing; remedy: unpack lra_release.gz, and the folder above tsv_data as task.lra_dir"
                )
        return {
            split: cached(
                "aan",
                (stamps([file]), self.protocol, self.max_tokens),
                partial(read_pairs, file, self.protocol, self.max_tokens),
            )
            for split, file in files.items()
        }


def read_pairs(file: Path, protocol: str = "standard", max_tokens: int = 4000) -> dict[str, np.ndarray]:
    """Reads tokens, starts, pairs and labels of a file. Raises ValueError with the line for what isn't a pair.

    A paper is in many pairs, and kept once. An empty text reads as a space.
    """
    encode = byte_encoder(max_tokens) if protocol == "standard" else character_encoder(PRINTABLE, max_tokens)
    number_of: dict[bytes, int] = {}
    pairs, labels = [], []
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) != 5 or columns[0] not in (b"0.0", b"1.0", b"0", b"1"):
                start = line[:40].decode("utf-8", "replace")
                raise ValueError(
                    f"{file} line {number} must be: label 0.0 or 1.0, two numbers, two texts, tabs between; got "
                    f"{len(columns)} columns, {start!r} ..."
                )
            texts = [text[: 4 * max_tokens] or b" " for text in columns[3:]]
            pairs.append([number_of.setdefault(text, len(number_of)) for text in texts])
            labels.append(int(columns[0][:1]))
    if not labels:
        raise ValueError(f"{file} has no pairs")
    return {
        **ragged([encode(text) for text in number_of]),
        "pairs": np.array(pairs, np.int32),
        "labels": np.array(labels, np.uint8),
    }


def pair_batch(codes: list[np.ndarray], labels: np.ndarray) -> Batch:
    """Makes a batch out of 2 B sequences of codes, the two of a pair one after the other."""
    inputs, mask = padded([sequence.astype(np.int64) + 1 for sequence in codes])

    def paired(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2))

    return {"inputs": paired(inputs), "mask": paired(mask), "labels": torch.from_numpy(labels.astype(np.int64))}
