"""Batches rows of a data set: their order, and sequences of different lengths in one array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def rows_forever(count: int, seed: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields batches of row numbers from a data set, epoch after epoch, each a shuffle that `seed` decides."""
    rng = np.random.default_rng(seed)
    order = np.zeros(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:batch_size]
        order = order[batch_size:]


def rows_once(count: int, batch_size: int) -> Iterator[np.ndarray]:
    for first in range(0, count, batch_size):
        yield np.arange(first, min(first + batch_size, count))


def ragged(sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Joins sequences of different lengths to one array `tokens`; `starts` has one more than there are sequences."""
    starts = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    return {"tokens": np.concatenate(sequences), "starts": starts}


def ragged_rows(data: Mapping[str, np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """Returns sequences out of what `ragged` returns."""
    spans = zip(data["starts"][rows], data["starts"][rows + 1], strict=True)
    return [data["tokens"][start:end] for start, end in spans]


def padded(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Returns id sequences, none empty, as `inputs` [B,T] int64, zeros on the right, and their `mask`."""
    inputs = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in zip(inputs, sequences, strict=True):
        row[: len(sequence)] = sequence
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return torch.from_numpy(inputs), torch.arange(inputs.shape[1]) < lengths[:, None]
