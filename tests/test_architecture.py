"""The house stands as it was drawn: imports go one way, importing is light, files are short, nothing is skipped."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixerzoo.registry.catalog import MIXERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mixerzoo"
FLOORS = ("registry", "kernels", "mixers", "blocks", "tasks", "ablation", "cli")
HOME = {"transformers": "mixerzoo/tasks/lm/", "timm": "mixerzoo/tasks/vision/"}
HEAVY = ("triton", "timm", "transformers", "matplotlib", "ray", "accelerate", "typer", "rich")
MODULES = sorted(PACKAGE.rglob("*.py"))
WINGS = ("question", "running", "reading")  # of mixerzoo/ablation: each may import those before it
MOST_FILES = 15


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yields (absolute name, whether it runs) of a file's imports, also inside functions; type checkers' do not run."""
    package = list(path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text())
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        runs = id(node) not in for_checkers
        if isinstance(node, ast.Import):
            yield from ((alias.name, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", runs) for alias in node.names)


def floor(name: str) -> int | None:
    """Returns the height of a module of ours, None for other packages. The front door opens onto the mixers' floor."""
    top, _, rest = name.partition(".")
    folder = rest.split(".")[0]
    if top != "mixerzoo":
        return None
    return FLOORS.index(folder if folder in FLOORS else "mixers")


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
    above = {name for name, runs in imports(path) if runs and (floor(name) or 0) > own}
    assert path.name == "__init__.py" or not above


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_large_libraries_have_one_home(path: Path) -> None:
    for name, _ in imports(path):
        home = HOME.get(name.split(".")[0])
        assert home is None or relative(path).startswith(home), f"only {home} may import {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "ablation").rglob("*.py")), ids=relative)
def test_the_wings_of_an_ablation_stand_one_behind_the_other(path: Path) -> None:
    """A question knows nothing of its runs, and the runs know nothing of who reads them."""
    wing = path.relative_to(PACKAGE / "ablation").parts[0]
    if wing in WINGS:
        later = tuple(f"mixerzoo.ablation.{other}" for other in WINGS[WINGS.index(wing) + 1 :])
        assert not [name for name, runs in imports(path) if runs and name.startswith(later)]


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=relative)
def test_a_folder_is_seen_at_a_glance(folder: Path) -> None:
    """An op's folder is one thing, whatever it is made of; any other has rooms before it is full."""
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES or "op.py" in files, f"{len(files)} files, at most {MOST_FILES}; remedy: a room"


def test_files_of_one_name_play_one_part() -> None:
    """Two files share a name only in folders side by side, such as two ops or two families of tasks."""
    houses = defaultdict(set)
    for path in MODULES:
        if path.name != "__init__.py":
            houses[path.name].add(path.parent.parent)
    twins = {name: sorted(map(relative, found)) for name, found in houses.items() if len(found) > 1}
    assert not twins, f"they mean different things: {twins}; remedy: a name that says which"


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(FLOORS)


def fresh_process(code: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_importing_is_light() -> None:
    """Building and running a mixer doesn't load what only other parts of the package need, either."""
    fresh_process(f"""
import sys, torch
before = set(sys.modules)
import mixerzoo
for name in mixerzoo.list_mixers():
    mixerzoo.build_mixer(name, dim=128)(torch.randn(1, 3, 128))
import mixerzoo.blocks.stack
loaded = (set(sys.modules) - before) & {set(HEAVY)}
assert not loaded, f"imported {{loaded}}"
""")


def test_importing_reads_no_environment() -> None:
    fresh_process("import mixerzoo, mixerzoo.blocks.stack", MIXERZOO_BACKEND="nonsense")


def limit(path: Path) -> int | None:
    """Returns the lines that a file may have: one screen, one idea."""
    name = relative(path)
    if name.startswith("mixerzoo/kernels/"):
        return 120 if path.name == "op.py" else 300
    module = name.removesuffix(".py").replace("/", ".")
    return 150 if module in {str(target).split(":")[0] for target in CATALOG.values()} else None


CATALOG = {name: target for name, target in MIXERS._targets.items() if isinstance(target, str)} | {
    name: f"{target.__module__}:" for name, target in MIXERS._targets.items() if isinstance(target, type)
}


@pytest.mark.parametrize("path", [path for path in MODULES if limit(path)], ids=relative)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= limit(path), f"{lines} lines, at most {limit(path)}"


def test_no_file_has_a_name_without_meaning() -> None:
    """A `triton.py` shadows the package when it runs as a script; drawers named utils fill up."""
    forbidden = {"triton.py", "utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [relative(path) for path in [*MODULES, *(ROOT / "tests").rglob("*.py")] if path.name in forbidden]


@pytest.mark.parametrize("folder", sorted(path.parent for path in PACKAGE.glob("kernels/*/op.py")), ids=relative)
def test_an_op_has_its_specification_and_its_cases(folder: Path) -> None:
    for name in ("reference.py", "cases.py"):
        assert (folder / name).is_file(), f"{relative(folder)} lacks {name}"
    for kernel in folder.glob("triton_*.py"):
        assert not [name for name, _ in imports(kernel) if name.endswith(".reference") or ".reference." in name]


@pytest.mark.parametrize("path", [*MODULES, *(ROOT / "tests").rglob("*.py")], ids=relative)
def test_no_error_is_swallowed(path: Path) -> None:
    """There is no bare `except`, and no handler whose whole body is `pass`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            assert not all(isinstance(line, ast.Pass) for line in node.body), f"swallowed error in line {node.lineno}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "conformance").rglob("*.py")), ids=relative)
def test_the_conformance_suite_skips_nothing(path: Path) -> None:
    """`zoo.each_mixer` reads from a mixer's spec what it can't do; no test decides for itself."""
    forbidden = {"skip", "skipif", "xfail", "importorskip", "skipTest"}
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        assert name not in forbidden, f"{name} in line {node.lineno}"


def test_tolerances_have_one_home() -> None:
    """No test compares with a tolerance of its own, and none is read from the environment."""
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name == "tolerances.py":
            assert not {name for name, _ in imports(path)} & {"os", "sys"}
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            keywords = [keyword.arg for keyword in node.keywords] if isinstance(node, ast.Call) else []
            assert not {"rtol", "atol"} & set(keywords), f"{relative(path)} line {node.lineno}"
