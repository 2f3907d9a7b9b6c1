"""The cache holds data sets on disk, memory-mapped.

Each is read or generated once, then shared by all processes and runs. They stand below MIXERZOO_CACHE, by default
`mixerzoo` in the user's cache folder, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

ENVIRONMENT_VARIABLE = "MIXERZOO_CACHE"


def cached(name: str, key: object, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays that `build` makes, read-only. `key`'s text must name everything that they depend on.

    If several processes build the same arrays at once, each builds its own. The first to finish is saved.
    """
    digest = hashlib.sha256(str(key).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{digest}"
    if not folder.is_dir():
        arrays = build()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
            for part, array in arrays.items():
                np.save(unfinished / f"{part}.npy", array)
        except OSError as error:
            raise ValueError(
                f"cannot write the cache {str(folder)!r}: {error.strerror}; remedy: {ENVIRONMENT_VARIABLE}=DIR"
            ) from error
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
            if not folder.is_dir():
                raise
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns each file's path, size and time, which change when the file changes."""
    status = [(file.resolve(), file.stat()) for file in files]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in status]


def cache_folder() -> Path:
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixerzoo"
