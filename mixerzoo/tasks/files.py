"""Files written here are whole or absent: they survive a kill at any moment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file to write; at the end of the block it takes the place of `path`.

    Readers see the old content or the new one and nothing between. The same holds after a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def to_json(value: Any, indent: int | None = 1) -> str:
    """Returns JSON in which a number that is not finite is null, as the format demands."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def read_json(path: str | Path) -> dict[str, Any] | None:
    """Returns the object in a file; None if the file is absent or damaged."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """Returns the tables of a file.

    Raises ValueError if it can't be read; `what` names the file's purpose in the error.
    """
    path = Path(path).expanduser()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the {what} {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the {what} {str(path)!r} is not TOML: {error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
