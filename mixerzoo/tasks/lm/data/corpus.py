"""Reads the bytes of one text: a file, or the language reference that CPython ships for `help()`."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_corpus(path: str | None) -> np.ndarray:
    """Reads the bytes of a file, or of CPython's language reference, its topics in sorted order.

    A file's bytes are left on disk until used.
    """
    if path is not None:
        try:
            file = Path(path).expanduser()
            return np.memmap(file, dtype=np.uint8, mode="r") if file.stat().st_size else np.zeros(0, dtype=np.uint8)
        except OSError as error:
            raise ValueError(f"cannot read the text {path!r}: {error.strerror}") from error
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python comes without pydoc_data; remedy: give a text of your own with --text") from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode(), dtype=np.uint8)
