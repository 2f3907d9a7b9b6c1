"""Lists the package's modules for docs/architecture.md, each with the first line of its docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mixerzoo"


def modules() -> dict[str, str]:
    """Returns a block for every floor of the package: a nested list of its folders and modules."""
    floors = (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
    return {f"modules of {floor.name}": "\n".join(_entries(floor, "")) + "\n" for floor in floors}


def _entries(folder: Path, indent: str) -> Iterator[str]:
    """Yields the lines of a folder, files before folders; a file without a docstring has none."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir():
            inside = list(_entries(path, indent + "  "))
            yield from [f"{indent}- `{path.name}/`", *inside] if inside else []
        elif path.suffix == ".py" and (text := ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))):
            link = f"[{path.name}](../{path.relative_to(PACKAGE.parent).as_posix()})"
            yield f"{indent}- {link}: {text.splitlines()[0]}"
