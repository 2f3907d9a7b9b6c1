"""`mixerzoo data listops` and `mixerzoo data pathfinder`: files in the released layouts, which the tasks read."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixerzoo.cli import app
from mixerzoo.tasks import build_task


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_listops_files_are_what_the_task_reads(tmp_path: Path) -> None:
    assert "basic_train.tsv" in run(
        "listops", "--out", str(tmp_path), "--samples", "50", "--seed", "3", "--workers", "1"
    )
    lines = {name: (tmp_path / "listops-1000" / f"basic_{name}.tsv").read_text().splitlines() for name in FILES}
    assert {name: len(text) - 1 for name, text in lines.items()} == {"train": 48, "val": 1, "test": 1}
    task = build_task({"name": "lra/listops", "lra_dir": str(tmp_path)})
    (batch,) = task.batches("valid", seed=0, batch_size=8)
    assert batch["labels"].tolist() == [int(lines["val"][1].split("\t")[1])]


def test_pathfinder_files_are_what_the_task_reads(tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path), "--samples", "20", "--workers", "1", "--contour-length", "6")
    assert "curv_baseline" in run("pathfinder", *arguments)
    folder = tmp_path / "pathfinder32" / "curv_baseline"
    assert len(list(folder.glob("imgs/*/*.png"))) == 20
    task = build_task({"name": "lra/pathfinder", "lra_dir": str(tmp_path), "resolution": 32, "contour_length": 6})
    batch = next(iter(task.batches("valid", seed=0, batch_size=8)))
    assert batch["inputs"].shape == (2, 32 * 32, 1)


@pytest.mark.parametrize("command", ["listops", "pathfinder"])
def test_a_seed_decides_the_files(tmp_path: Path, command: str) -> None:
    contents = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(command, "--out", str(tmp_path / name), "--samples", "50", "--seed", seed, "--workers", "1")
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1] != contents[2]


FILES = ("train", "val", "test")
