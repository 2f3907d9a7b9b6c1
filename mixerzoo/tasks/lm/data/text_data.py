"""Orders rows of tokens by a seed: any update's rows are there at once, also after a restart.

Every source of text (`sources.py`) but a token file is tokenized once, into a token file in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mixerzoo.registry.registry import unknown
from mixerzoo.tasks.data_cache import cache_folder, stamps
from mixerzoo.tasks.lm.recipe import DataConfig

from .corpus import read_corpus
from .sources import READERS, documents, files, open_data_set, text_of
from .token_files import Tokens, encode, load_tokenizer, read_tokens, write_tokens

IGNORED = -100
KINDS = (*READERS, "tokens")


class Rows(Protocol):
    """Supplies rows of T+1 tokens without end: T inputs and, moved by one, their targets."""

    def batches(
        self, step: int, batch_size: int, rank: int, processes: int, state: Any = None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields this process's rows [batch_size/processes,T+1] of every update from `step` on (the first is 0).

        With every batch comes the state after it, which JSON can hold. Given as `state`, it resumes there.
        """


@dataclass(frozen=True)
class TextData:
    """Holds what a run reads. end: the id after every document, None where nothing stands there."""

    train: Rows
    valid: Tokens
    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    end: int | None


def load_data(config: DataConfig, *, seed: int, rank: int = 0, processes: int = 1) -> TextData:
    """Loads the text of a configuration, ready to be read from any update on.

    Raises ValueError for unknown names, data that aren't there or too short, and files of another tokenizer.
    """
    if config.streaming:
        valid, tokenizer = load_tokens(config, config.valid or "")
        if tokenizer is None:
            raise ValueError(f"{config.valid} doesn't name the tokenizer for the stream; remedy: data.tokenizer=NAME")
        streamed = StreamedRows(config, tokenizer, valid.end, seed=seed, rank=rank, processes=processes)
        return TextData(streamed, valid, tokenizer, len(tokenizer), valid.end)
    tokens, tokenizer = load_tokens(config, config.name)
    if config.packing == "documents" and tokens.end is None:
        raise ValueError(f"nothing ends the documents of {config.name}; remedy: data.packing=concat")
    if config.valid is None:
        cut = round(len(tokens) * (1 - config.valid_fraction))
        train, valid = tokens.part(0, cut), tokens.part(cut, len(tokens))
    else:
        train, (valid, _) = tokens, load_tokens(config, config.valid)
        if (valid.vocab_size, valid.end) != (train.vocab_size, train.end):
            raise ValueError(f"{config.valid} has other tokens than {config.name}; remedy: the same tokenizer for both")
    if len(valid) <= config.length:
        raise ValueError(
            f"the validation text has {len(valid)} tokens, a row needs {config.length + 1}; remedy: a longer text, a "
            "larger data.valid_fraction, or a smaller data.length"
        )
    return TextData(StoredRows(train, config.length, seed), valid, tokenizer, tokens.vocab_size, tokens.end)


def load_tokens(config: DataConfig, source: str) -> tuple[Tokens, PreTrainedTokenizerBase | None]:
    """Returns a source's tokens, made and cached if need be, and their tokenizer.

    The tokenizer is None for a token file that doesn't name it.
    """
    kind, _, rest = source.partition(":")
    if kind not in KINDS:
        raise ValueError(unknown("data", source, KINDS))
    if kind == "tokens":
        tokens = read_tokens(Path(rest).expanduser())
        name = config.tokenizer or tokens.tokenizer
        if tokens.tokenizer is not None and name != tokens.tokenizer:
            raise ValueError(
                f"{rest} was made with the tokenizer {tokens.tokenizer!r}, got data.tokenizer={name!r}; remedy: leave "
                "it out, or, if it has only moved, write its new name into the token file's .json"
            )
        return tokens, None if name is None else load_tokenizer(name)
    name = config.tokenizer or "bytes"
    tokenizer = load_tokenizer(name)
    given = {"source": source, "tokenizer": _fingerprint(tokenizer), "end": config.end_documents}
    if kind in ("jsonl", "parquet", "hfds"):
        given |= {"text_key": config.text_key, "subset": config.subset}
    if kind == "embedded":
        given["text"] = hashlib.sha256(read_corpus(None).data).hexdigest()
    elif kind != "hfds":
        given["files"] = stamps(files(rest))
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"tokens-{kind}-{digest}"
    if not path.with_name(path.name + ".json").exists():
        texts = documents(config, source)
        return write_tokens(path, texts, tokenizer, name=name, end_documents=config.end_documents), tokenizer
    return read_tokens(path), tokenizer


def make_batch(rows: np.ndarray, packing: str, end: int | None) -> dict[str, Tensor]:
    """Makes a model's arguments from rows [B,T+1]: input_ids, shift_labels [B,T]; for `documents`, cu_seqlens.

    With `documents`, no target stands after a document's end, and the model sees every piece of a document by itself.
    """
    rows = rows.astype(np.int64)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    batch = {"input_ids": torch.from_numpy(inputs.copy()), "shift_labels": torch.from_numpy(targets.copy())}
    if packing == "documents":
        ends = inputs == end
        batch["shift_labels"][torch.from_numpy(ends)] = IGNORED
        first = np.roll(ends, 1, axis=1)
        first[:, 0] = True
        starts = np.append(np.flatnonzero(first), inputs.size)
        batch["cu_seqlens"] = torch.from_numpy(starts.astype(np.int32))
    return batch


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yields the items of an endless supply; a thread makes the next one while one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items)
        while True:
            item, coming = coming.result(), thread.submit(next, items)
            yield item


class StoredRows:
    """Cuts rows from a token file at multiples of T, in an order that is new in every epoch.

    Any row can be read at once, so a step alone says where to resume, for any number of processes.
    """

    def __init__(self, tokens: Tokens, length: int, seed: int) -> None:
        self.tokens, self.length, self.seed = tokens, length, seed
        self.count = (len(tokens) - 1) // length
        if self.count < 1:
            raise ValueError(
                f"the text has {len(tokens)} tokens, a row needs {length + 1}; remedy: a longer text or a smaller "
                "data.length"
            )
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def batches(
        self, step: int, batch_size: int, rank: int, processes: int, state: Any = None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        for first in count(step * batch_size, batch_size):
            yield np.stack([self.row(first + row) for row in range(rank, batch_size, processes)]), None

    def row(self, index: int) -> np.ndarray:
        """Returns row `index` [T+1] of the endless supply."""
        epoch, place = divmod(index, self.count)
        if epoch != self._epoch:
            smallest = np.arange(self.count, dtype=np.uint32 if self.count < 2**32 else np.uint64)
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(smallest)
        start = int(self._order[place]) * self.length
        return self.tokens.ids[start : start + self.length + 1]


class StreamedRows:
    """Yields rows from a streamed data set, of which every process reads a share of its own.

    `shuffle_rows` rows at a time are shuffled. Resuming reads such a block again, not what came before it.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        end: int | None,
        *,
        seed: int,
        rank: int,
        processes: int,
    ) -> None:
        self.config, self.tokenizer, self.end, self.seed = config, tokenizer, end, seed
        self.rank, self.processes = rank, processes
        self._open()  # a wrong name shows only here

    def batches(
        self, step: int, batch_size: int, rank: int, processes: int, state: Any = None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        rows = self._rows(state)
        while True:
            taken = list(islice(rows, batch_size // processes))
            yield np.stack([row for row, _ in taken]), taken[-1][1]

    def _rows(self, state: Mapping[str, Any] | None) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        state = state or {"processes": self.processes, "examples": None, "rest": [], "block": 0, "used": 0}
        if state["processes"] != self.processes:
            raise ValueError(f"a streamed run goes on with as many processes as before, {state['processes']}")
        stream = self._stream(state["examples"])
        rest, block, used = np.asarray(state["rest"], np.int64), state["block"], state["used"]
        wanted = self.config.shuffle_rows * self.config.length + 1
        examples = state["examples"]
        while True:
            start = {"processes": self.processes, "examples": examples, "rest": rest.tolist(), "block": block}
            parts = [rest]
            while sum(map(len, parts)) < wanted:
                ids, dataset = next(stream)
                parts.append(ids)
            if len(parts) > 1:
                examples = dataset.state_dict()
            tokens = np.concatenate(parts)
            order = np.random.default_rng((self.seed, block)).permutation(self.config.shuffle_rows)
            for place, row in enumerate(order[used:], used + 1):
                first = row * self.config.length
                yield tokens[first : first + self.config.length + 1], {**start, "used": place}
            rest, block, used = tokens[wanted - 1 :], block + 1, 0

    def _stream(self, examples: Any) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields tokens of one document after the other, for ever, and the data set whose state says where that is."""
        while True:
            dataset = self._open()
            if examples is not None:
                dataset.load_state_dict(examples)
            tokens = 0
            for example in dataset:
                text = text_of(self.config, example[self.config.text_key], self.config.name)
                ids = encode(self.tokenizer, [text], self.end)[0]
                tokens += len(ids)
                yield ids, dataset
            if examples is None and tokens == 0:
                raise ValueError(f"there is no text in process {self.rank}'s share of {self.config.name}")
            examples = None

    def _open(self) -> Any:
        from datasets.distributed import split_dataset_by_node

        dataset = open_data_set(self.config, self.config.name.partition(":")[2])
        return split_dataset_by_node(dataset, self.rank, self.processes)


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()
