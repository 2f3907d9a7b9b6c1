"""Keeps a corpus in token files, one long array of ids on disk, memory-mapped, whatever its size.

    NAME.bin    the ids, uint16 or uint32, little-endian, documents one after the other
    NAME.json   {"dtype": "uint16", "tokens": N, "vocab_size": V, "end": id or null, "tokenizer": name}

The JSON file is written last: if it exists, the other one is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mixerzoo.tasks.files import read_json, replacing, to_json, write_atomically

END = "<|endoftext|>"
DOCUMENTS_AT_ONCE = 1000
TYPES = ("uint16", "uint32")


@dataclass(frozen=True)
class Tokens:
    """Holds ids [N] of a corpus. end: the id after every document, None where nothing stands there.

    tokenizer: the name of the one that made them, for `load_tokenizer`; None where nobody wrote it down."""

    ids: np.ndarray
    vocab_size: int
    end: int | None
    tokenizer: str | None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int) -> Tokens:
        return Tokens(self.ids[first:last], self.vocab_size, self.end, self.tokenizer)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads `bytes`, or a tokenizer of the Hugging Face hub or of a folder. Raises ValueError if there is none."""
    if name == "bytes":
        return byte_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"cannot load the tokenizer {name!r}: {text}; remedy: bytes, a folder, or a hub name"
        ) from error


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer as transformers knows it: id = byte, and 256 ends a document."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], end: int | None = None) -> list[np.ndarray]:
    """Returns the ids of every text, `end` after them if given.

    Nothing in a text is taken for a special token's name.
    """
    dtype = id_type(len(tokenizer))
    if is_bytes(tokenizer):
        encoded = [np.frombuffer(text.encode(), np.uint8).astype(dtype) for text in texts]
    else:
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        encoded = [np.asarray(ids, dtype) for ids in tokenizer(list(texts), **plain)["input_ids"]]
    return encoded if end is None else [np.append(ids, np.asarray([end], dtype)) for ids in encoded]


def count_bytes(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> int:
    """Returns the length in UTF-8 of the text that the ids stand for, special tokens left out."""
    if is_bytes(tokenizer):
        return int((ids < 256).sum())
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(str(text).encode())


def is_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) == 257 and tokenizer.get_vocab() == {**_byte_vocabulary(), END: 256}


def id_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def write_tokens(
    path: Path,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    end_documents: bool = True,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Tokens:
    """Tokenizes documents as they come into NAME.bin and NAME.json, `path` being NAME or either of them.

    Raises ValueError for no text at all, and if the documents are to end with a token that the tokenizer hasn't.
    """
    end = tokenizer.eos_token_id if end_documents else None
    if end_documents and end is None:
        raise ValueError(f"the tokenizer {name!r} has no end-of-text token; remedy: data.end_documents=false")
    path, count, stream = _stem(path), 0, iter(documents)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path.with_name(path.name + ".bin")) as file:
            while texts := list(islice(stream, DOCUMENTS_AT_ONCE)):
                for ids in encode(tokenizer, texts, end):
                    file.write(ids.tobytes())
                    count += len(ids)
                progress(count)
            if count == 0:
                raise ValueError("there is no text in the data")
    except OSError as error:
        raise ValueError(f"cannot write the tokens {str(path)!r}: {error.strerror}") from error
    meta = {"dtype": f"uint{8 * id_type(len(tokenizer)).itemsize}", "tokens": count, "vocab_size": len(tokenizer)}
    write_atomically(path.with_name(path.name + ".json"), to_json({**meta, "end": end, "tokenizer": name}))
    return read_tokens(path)


def read_tokens(path: Path) -> Tokens:
    """Reads NAME.bin and NAME.json, left on disk until used. Raises ValueError where they are missing or disagree."""
    path = _stem(path)
    meta = read_json(path.with_name(path.name + ".json"))
    file = path.with_name(path.name + ".bin")
    if meta is None or not file.is_file():
        raise ValueError(f"there are no tokens {path}.bin with {path}.json; remedy: mixerzoo data tokens SOURCE {path}")
    if meta.get("dtype") not in TYPES or not isinstance(meta.get("vocab_size"), int):
        raise ValueError(f"{path}.json must have a dtype, uint16 or uint32, and a vocab_size, got {meta}")
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    size = file.stat().st_size
    if size == 0 or size % dtype.itemsize or meta.get("tokens", size // dtype.itemsize) * dtype.itemsize != size:
        raise ValueError(f"{file} has {size} bytes, not the {meta.get('tokens')} tokens of {path}.json")
    ids = np.memmap(file, dtype=dtype, mode="r")
    return Tokens(ids, meta["vocab_size"], meta.get("end"), meta.get("tokenizer"))


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".json") else path


@cache
def _byte_vocabulary() -> dict[str, Any]:
    """Returns every byte as the printable character that byte-level tokenizers write for it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
