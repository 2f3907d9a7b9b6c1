"""Studies that come with the package: each the central figure of a paper, as a question file that `ablate` takes.

They are sized for minutes on a laptop, but for `mqar-zoology`, a published grid in full. Any of their settings can be
changed on the command line, and the files, in `mixerzoo/studies`, are examples of how a question is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixerzoo
from mixerzoo.registry.registry import unknown

from .grid import read_grid

STUDIES = Path(mixerzoo.__file__).parent / "studies"


def list_studies() -> dict[str, str]:
    """Their names, and what each asks."""
    return {path.stem: read_grid(path)["question"] for path in sorted(STUDIES.glob("*.toml"))}


def read_question(name: str) -> dict[str, Any]:
    """A study by name or a .toml file by path, for `Grid.of`. Raises ValueError if there is neither."""
    if Path(name).suffix == ".toml":
        return read_grid(name)
    known = sorted(path.stem for path in STUDIES.glob("*.toml"))
    if name not in known:
        raise ValueError(unknown("study", name, known) + "; remedy: one of these, or a .toml file")
    return read_grid(STUDIES / f"{name}.toml")
