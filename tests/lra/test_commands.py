"""`mixerzoo data listops` and `mixerzoo data pathfinder` write files in the released layouts, which the tasks read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixerzoo.cli import app
from mixerzoo.tasks import build_task
from mixerzoo.tasks.lra.recipe import lra_recipe


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


@pytest.mark.parametrize("command", ["listops", "pathfinder"])
def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    arguments = ["data", command, "--out", str(tmp_path / "file"), "--samples", "50", "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "file: Not a directory; remedy: another --out" in result.output


FILES = ("train", "val", "test")


def test_a_recipe_is_laid_under_the_settings_of_the_command(tmp_path: Path) -> None:
    run("listops", "--out", str(tmp_path), "--samples", "50", "--workers", "1")
    arguments = ["train", "lra/listops", "--mixer", "gla", "--recipe", "hgrn2", "--lra-dir", str(tmp_path)]
    for setting in ("train.steps=1", "train.batch_size=2", "backbone.depth=1", "backbone.mixer.num_heads=1"):
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, [*arguments, "--runs-dir", str(tmp_path / "runs")], catch_exceptions=False)
    assert result.exit_code == 0 and "published: accuracy 60.52" in result.output
    (config,) = (tmp_path / "runs" / "train").glob("*/config.json")
    values = json.loads(config.read_text())
    recipe = lra_recipe("lra/listops", "hgrn2", "gla")
    assert (values["seed"], values["task"]["lra_dir"]) == (recipe.seed, str(tmp_path))
    assert (values["backbone"]["mixer"]["name"], values["backbone"]["depth"]) == ("gla", 1)
    assert values["train"]["lr"] == dict(recipe.settings)["train.lr"] and values["train"]["steps"] == 1
