"""Lists the studies that come with the package: each a paper's central figure, as a question file for `ablate`.

They are sized for minutes on a laptop, except `mqar-zoology`, a published grid in full. Any of their settings can be
changed on the command line. The files, in `mixerzoo/studies`, are examples of how a question is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixerzoo
from mixerzoo.registry.registry import unknown

from .grid import read_grid

STUDIES = Path(mixerzoo.__file__).parent / "studies"


def list_studies() -> dict[str, str]:
    """Returns their names, and what each asks."""
    return {path.stem: read_grid(path)["question"] for path in sorted(STUDIES.glob("*.toml"))}


def read_question(name: str) -> dict[str, Any]:
    """Reads a study by name or a .toml file by path, for `Grid.of`. Raises ValueError if there is neither."""
    if Path(name).suffix == ".toml":
        return read_grid(name)
    known = sorted(path.stem for path in STUDIES.glob("*.toml"))
    if name not in known:
        raise ValueError(unknown("study", name, known) + "; remedy: one of these, or a .toml file")
    return read_grid(STUDIES / f"{name}.toml")
