"""Where text comes from: one document after the other.

embedded        the language reference that CPython ships for `help()`, half a megabyte of English
text:FILES      every file one document; FILES are paths and patterns with commas between, here and below
jsonl:FILES     one document a line, its field `text_key`; like text, .gz too
parquet:FILES   one document a row, its column `text_key`
hfds:NAME@SPLIT a data set of the Hugging Face hub, or a local folder of one, its split `train` unless given
tokens:FILE     a token file (`tokens.py`)
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mixerzoo.registry.registry import unknown

from .recipe import DataConfig
from .text import read_corpus


def documents(config: DataConfig, source: str) -> Iterator[str]:
    """The documents of any source but token files, one at a time. Raises ValueError for what can't be read."""
    kind, _, rest = source.partition(":")
    if kind not in READERS:
        raise ValueError(unknown("source of documents", source, READERS))
    return READERS[kind](config, rest)


def open_data_set(config: DataConfig, name: str) -> Any:
    """A streamed split of a Hugging Face data set, `NAME@SPLIT`. Raises ValueError if it, or its text, isn't there."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError("hfds: needs the package datasets; remedy: pip install datasets") from error
    name, _, split = name.partition("@")
    try:
        dataset = load_dataset(name, config.subset, split=split or "train", streaming=True)
        columns = list(next(iter(dataset.take(1)), {config.text_key: ""}))
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"cannot read the data set {name!r}: {text}; remedy: check its name, data.subset, and your connection"
        ) from error
    if config.text_key not in columns:
        raise ValueError(f"{name!r} has no column {config.text_key!r} (data.text_key), it has {', '.join(columns)}")
    return dataset


def files(patterns: str) -> list[Path]:
    """Those that the patterns fit, in the patterns' order. Raises ValueError for a pattern that fits none."""
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
        with _open(file) as stream:
            text = stream.read()
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from error


def _jsonl(config: DataConfig, rest: str) -> Iterator[str]:
    for file in files(rest):
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield json.loads(line)[config.text_key]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"line {number} of {file} is no JSON object with the field {config.text_key!r} (data.text_key)"
                    ) from error


def _parquet(config: DataConfig, rest: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError("parquet needs the package pyarrow; remedy: pip install pyarrow") from error
    for file in files(rest):
        try:
            table = ParquetFile(file)
        except ArrowInvalid as error:
            raise ValueError(f"{file} is not a parquet file: {error}") from error
        if config.text_key not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise ValueError(f"{file} has no column {config.text_key!r} (data.text_key), it has {names}")
        for batch in table.iter_batches(columns=[config.text_key]):
            yield from batch.column(0).to_pylist()


def _hfds(config: DataConfig, rest: str) -> Iterator[str]:
    for example in open_data_set(config, rest):
        yield example[config.text_key]


def _open(file: Path) -> IO[bytes]:
    try:
        return gzip.open(file) if file.suffix == ".gz" else open(file, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise ValueError(f"cannot read {str(file)!r}: {error.strerror}") from error


READERS: dict[str, Callable[[DataConfig, str], Iterator[str]]] = {
    "embedded": _embedded,
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "hfds": _hfds,
}
