"""Finds Long Range Arena's archive: its folders are in lra_release, or in another lra_release inside it."""

from __future__ import annotations

from pathlib import Path


def archive_roots(lra_dir: str) -> list[Path]:
    """Returns where the archive's folders may be: in `lra_dir` itself, or where the archive puts them there."""
    root = Path(lra_dir).expanduser()
    return [root, root / "lra_release", root / "lra_release" / "lra_release"]
