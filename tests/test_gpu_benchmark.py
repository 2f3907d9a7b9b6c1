"""The GPU benchmark runs from end to end without a GPU, tiny; its results and goals reach the page about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"
TIMED = {
    "mixer",
    "hgrn2",
    "hgrn2 step",
    "mixer step",
    "language model step",
    "gated_linear_attention",
    "gated_linear_attention with a gate per head",
    "gated_scan",
}


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("gpu")
    assert "| hgrn2 |" in run("--smoke", "--out", str(out))
    return json.loads((out / "smoke.json").read_text())


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = spec_from_file_location("performance", ROOT / "docs" / "performance.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    assert all(len(row) == len(header) for row in rows)
    return "\n".join(" | ".join(line) for line in (header, *rows)) + "\n"


def test_results_say_where_they_come_from(smoke: dict) -> None:
    assert smoke["smoke"] and smoke["complete"] and smoke["date"] and not smoke["claims"]
    assert {"cpu", "torch", "git", "argv"} <= set(smoke["provenance"])
    assert all(value > 0 for value in smoke["ceilings"].values())


def test_ours_is_timed_everywhere_and_a_peer_is_a_time_or_an_error(smoke: dict) -> None:
    assert {row["what"] for row in smoke["rows"]} == TIMED
    for row in smoke["rows"]:
        assert (row["seconds"] is None) == (row["error"] is not None)
        assert row["error"] is None or not row["who"].startswith("mixerzoo"), row
    peers = {row["what"] for row in smoke["rows"] if row["who"].startswith("flash-linear-attention")}
    assert peers == TIMED


def test_every_op_is_checked_in_every_precision(smoke: dict) -> None:
    checked = {(row["op"], row["dtype"]) for row in smoke["correctness"]}
    assert len(checked) == 9
    assert all(row["ok"] and row["error"] is None for row in smoke["correctness"])


def test_an_op_that_errs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It errs by a hundredth, in nothing but the gradient of one input."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    correctness, measure = import_module("correctness"), import_module("measure")

    def wrong(v: Tensor, **inputs: Any) -> Any:
        return correctness.hgrn2(v=v if inputs["backend"] == "reference" else 0.99 * v + 0.01 * v.detach(), **inputs)

    monkeypatch.setattr(correctness, "OPS", {"hgrn2": wrong})
    meter = measure.Meter(torch.device("cpu"), 60.0, smoke=True)
    todo = [check for check in correctness.checks(smoke=True) if check.dtype == torch.float32]
    rows = list(correctness.check(meter, "torch", todo))
    assert rows and all(row["tensor"] == "d v" and not row["ok"] for row in rows)


def test_compulsory_bytes_are_those_of_the_tensors(smoke: dict) -> None:
    rows = {row["pass"]: row["bytes"] for row in smoke["rows"] if (row["what"], row["who"]) == ("hgrn2", "mixerzoo")}
    tensor, bound = 4 * 2 * 40 * 2 * 16, 4 * 2 * 16  # fp32 in a smoke run
    assert rows == {"forward": 4 * tensor + bound, "forward + backward": 11 * tensor + 3 * bound}


def test_time_that_is_up_still_leaves_a_whole_file(tmp_path: Path) -> None:
    run("--smoke", "--out", str(tmp_path), "--minutes", "0", "--only", "correctness,hgrn2")
    record = json.loads((tmp_path / "smoke.json").read_text())
    rows = record["rows"] + record["correctness"]
    assert {row["error"] for row in rows} == {"not run: the minutes were used up"}
    assert {row["what"] for row in record["rows"]} == {"hgrn2"}


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(tmp_path), "--only", "mixers"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "unknown part mixers; known: correctness, mixer, hgrn2" in done.stderr


def test_goals_are_measured_against_their_bounds(page: ModuleType) -> None:
    shape = [8, 2048, 16, 128]
    common = {"what": "mixer", "shape": shape, "pass": "forward + backward", "bytes": None, "peak_bytes": None}
    op = {"what": "hgrn2", "shape": shape, "who": "mixerzoo", "pass": "forward", "bytes": 100.0, "seconds": 3.0}
    rows = [
        {**common, "who": "mixerzoo", "seconds": 1.0},
        {**common, "who": "flash-linear-attention", "seconds": 4.0},
        {**common, "who": "flash-linear-attention, compiled", "seconds": 1.5},
        op,
    ]
    claims = page.claims(rows, 100.0)
    here = {claim["claim"]: (claim["measured"], claim["holds"]) for claim in claims if list(claim["shape"]) == shape}
    assert here["mixer, both passes: time of flash-linear-attention / ours"] == (4.0, True)
    assert here["mixer, both passes: time of flash-linear-attention, compiled / ours"] == (1.5, False)
    assert here["mixer, both passes: peak memory of flash-linear-attention / ours"] == (None, None)
    assert here["hgrn2, forward: time / memory floor"] == (3.0, False)
    assert {claim["holds"] for claim in claims if list(claim["shape"]) != shape} == {None}


def test_the_page_shows_a_run_and_says_when_there_is_none(
    page: ModuleType, smoke: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    empty = page.performance(table)
    assert "Not yet measured on a GPU" in empty and "Not yet counted" in empty and "not yet measured" in empty
    (tmp_path / "gpu").mkdir()
    gpu = {"name": "A Chip", "memory": 2**37}
    record = smoke | {"gpu": gpu, "claims": page.claims(smoke["rows"], 1.0)}
    (tmp_path / "gpu" / "a-chip.json").write_text(json.dumps(record))
    row = {"op": "hgrn2", "who": "mixerzoo", "width": 128, "launches": "2 + 0, 3 + 0", "forward": 1500.0}
    row |= {"backward": 3500.0, "bytes": 5000.0, "compulsory": 2500.0}
    counted = {"sizes": {"B": 1, "T": 512, "H": 1}, "rows": [row, row | {"who": "a peer", "bytes": None}]}
    (tmp_path / "bytes.json").write_text(json.dumps(counted))
    full = page.performance(table)
    assert "### A Chip" in full and "128 GiB" in full and "Not yet measured on a GPU" not in full
    assert "hgrn2 | 128 | mixerzoo | 2 + 0, 3 + 0 | 1,500 | 3,500 | 5,000 | 2.00" in full
    assert "hgrn2 | 128 | a peer | absent" in full
