"""The documents tell the truth: pages are fresh, python blocks run, links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITH_CODE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS = [*WITH_CODE, *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_generated_pages_are_fresh():
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_map_has_every_module_with_its_first_line():
    """A module without a docstring, such as an empty `__init__.py`, is left out."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "mixerzoo").glob("*/**/*.py"):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        entry = f"(../{name_of(path)}): {(said or '').partition(chr(10))[0]}\n"
        assert (entry in page) == (said is not None), f"{name_of(path)}; remedy: python docs/generate.py"


def test_a_page_without_a_place_for_a_block_is_an_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from generate import filled

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: by hand -->\nold\n<!-- /x -->\nb\n", encoding="utf-8")
    assert filled(page, {"x": "new\n"}) == "a\n<!-- x: by hand -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="has no place for 'y'; remedy: two lines, <!-- y --> and <!-- /y -->"):
        filled(page, {"x": "new\n", "y": "more\n"})


@pytest.mark.parametrize("document", WITH_CODE, ids=name_of)
def test_python_blocks_run(document, tmp_path):
    """All blocks of a document run in order, in one fresh process, as a reader would copy them."""
    script = python_blocks(document.read_text(encoding="utf-8"))
    file = tmp_path / f"{document.stem.lower()}_blocks.py"
    file.write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_ablation_pages_commands_run_and_draw_its_pictures(tmp_path, monkeypatch):
    """The commands run unchanged, except for the number of steps."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from ablation import commands, pictures, run

    steps = re.compile(r"(train\.steps ?= ?)600")
    blocks = [steps.sub(r"\g<1>3", block) for block in commands()]
    assert sum(block != original for block, original in zip(blocks, commands(), strict=True)) == 2
    printed = run(blocks, tmp_path / "folder")
    assert "finished before" in printed and "10 runs" in printed
    assert len(pictures()) == 2
    assert all((tmp_path / "folder" / file).exists() for file in pictures().values())


def test_the_new_op_of_the_page_holds_the_laws(tmp_path):
    """Its files are written down with their paths, put into a copy of the package, and found there by the laws."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"^```python (mixerzoo/\S+\.py)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(files) == 5
    for folder in ("mixerzoo", "tests/conformance"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/__init__.py", "tests/conftest.py", "tests/tolerances.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, code in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    laws = [
        "tests/conformance/test_ops.py",
        "tests/conformance/test_graphs_of_ops.py",
        "-k",
        "momentum_scan",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-rA",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", *laws]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count("PASSED") > 80
    style = subprocess.run([sys.executable, "-m", "ruff", "check", "mixerzoo/kernels/momentum_scan"], cwd=tmp_path)
    assert style.returncode == 0


def python_blocks(text: str) -> str:
    """Returns the fenced python blocks, each at its own line numbers, so that a traceback points into the document."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.strip() == "```python" if fence and not inside else inside and not fence
    return "\n".join(lines) + "\n"


def test_python_blocks_are_found_and_keep_their_lines():
    text = "a\n```python\nx = 1\n```\nb\n```toml\ny = 2\n```\n```python\nz = 3\n```\n"
    assert python_blocks(text).split("\n")[:10] == ["", "", "x = 1", "", "", "", "", "", "", "z = 3"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = [link for link in targets if "://" not in link and not (document.parent / link).exists()]
    assert not missing
