"""Reads text from its sources, one document after the other.

embedded        the language reference that CPython ships for `help()`, half a megabyte of English
text:FILES      every file one document; FILES are paths and patterns with commas between, here and below
jsonl:FILES     one document a line, its field `text_key`; like text, .gz too
parquet:FILES   one document a row, its column `text_key`
hfds:NAME@SPLIT a data set of the Hugging Face hub, or a local folder of one, its split `train` unless given
tokens:FILE     a token file (`token_files.py`)
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mixerzoo.registry.registry import unknown
from mixerzoo.tasks.lm.recipe import DataConfig

from .corpus import read_corpus


def documents(config: DataConfig, source: str) -> Iterator[str]:
    """Yields the documents of any source but token files, one at a time. Raises ValueError for what can't be read."""
    kind, _, rest = source.partition(":")
    if kind not in READERS:
        raise ValueError(unknown("source of documents", source, READERS))
    if kind == "embedded" and rest:
        raise ValueError(f"embedded is one text and takes no name, got {source!r}; remedy: embedded, or text:{rest}")
    return (text_of(config, document, source) for document in READERS[kind](config, rest))


def open_data_set(config: DataConfig, name: str) -> Any:
    """Opens a split of a Hugging Face data set, `NAME@SPLIT`, as a stream.

    Raises ValueError if it, or its text, isn't there.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError("hfds: needs the package datasets; remedy: pip install datasets") from error
    name, _, split = name.partition("@")
    try:
        dataset = load_dataset(name, config.subset, split=split or "train", streaming=True)
        columns = list(next(iter(dataset.take(1)), {config.text_key: ""}))
    except (OSError, ValueError, LookupError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"cannot read the data set {name!r}: {text}; remedy: check its name, data.subset, and your connection"
        ) from error
    if config.text_key not in columns:
        raise ValueError(f"{name!r} has no column {config.text_key!r} (data.text_key), it has {', '.join(columns)}")
    return dataset


def files(patterns: str) -> list[Path]:
    """Returns the files that fit the patterns, in the patterns' order.

    Raises ValueError for a pattern that fits none.
    """
    found: list[str] = []
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not matches:
            raise ValueError(f"there is no file {pattern!r}")
        found += matches
    if not found:
        raise ValueError("the data name no files; remedy: for example text:FILE")
    return [Path(file) for file in found]


def _embedded(config: DataConfig, rest: str) -> Iterator[str]:
    yield bytes(read_corpus(None)).decode()


def _text(config: DataConfig, rest: str) -> Iterator[str]:
    for file in files(rest):
        with _opened(file) as stream:
            text = stream.read()
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from error


def _jsonl(config: DataConfig, rest: str) -> Iterator[Any]:
    for file in files(rest):
        with _opened(file) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield json.loads(line)[config.text_key]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"line {number} of {file} is no JSON object with the field {config.text_key!r} (data.text_key)"
                    ) from error


def _parquet(config: DataConfig, rest: str) -> Iterator[Any]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError("parquet needs the package pyarrow; remedy: pip install pyarrow") from error
    for file in files(rest):
        try:
            table = ParquetFile(file)
            if config.text_key not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise ValueError(f"{file} has no column {config.text_key!r} (data.text_key), it has {names}")
            for batch in table.iter_batches(columns=[config.text_key]):
                yield from batch.column(0).to_pylist()
        except (ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is not a parquet file: {error}") from error


def _hfds(config: DataConfig, rest: str) -> Iterator[Any]:
    try:
        for example in open_data_set(config, rest):
            yield example[config.text_key]
    except OSError as error:
        raise ValueError(f"cannot read on in the data set {rest!r}: {error}") from error


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            yield stream  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {str(file)!r}: {getattr(error, 'strerror', None) or error}") from error


def text_of(config: DataConfig, value: Any, source: str) -> str:
    """Returns a document's text. Raises ValueError where a field or column holds something else."""
    if not isinstance(value, str):
        raise ValueError(f"{config.text_key!r} (data.text_key) of {source} must be text, got {value!r:.40}")
    return value


READERS: dict[str, Callable[[DataConfig, str], Iterator[str]]] = {
    "embedded": _embedded,
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "hfds": _hfds,
}
