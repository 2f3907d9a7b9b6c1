"""Laws of the report say: every run is in it, the formats agree, and missing results are reported."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from mixerzoo.ablation.formats import listed, number, size
from mixerzoo.ablation.question.grid import Grid, expand
from mixerzoo.ablation.question.plan import plan
from mixerzoo.ablation.question.settings import Setting
from mixerzoo.ablation.reading.report import print_tables, read_report, write_report
from mixerzoo.ablation.reading.report.latex import escape
from mixerzoo.ablation.running.carry_out import carry_out
from mixerzoo.ablation.running.engines.local import LocalEngine
from mixerzoo.ablation.running.store import Store
from mixerzoo.tasks.train import Point
from tests.ablation.rows import row, search, study, write

QUESTION = {
    "question": "How much state does recall need?",
    "mixers": ["attention", "hgrn2", "hgrn2+attention"],
    "tasks": ["diagnostics/mqar", "lm"],
    "seeds": [0, 1, 2, 3],
    "vary": {"backbone.mixer.expand": [1, 4, 16, 64, 128, 256]},
    "baseline": "attention",
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Returns a report without figures, of a whole study."""
    root = write(tmp_path_factory.mktemp("runs") / "study", study(), QUESTION)
    return write_report(Store(root), plots=False)


def records(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def screen(report, width: int) -> str:
    text = StringIO()
    print_tables(report, Console(file=text, width=width))
    return text.getvalue()


def test_the_report_has_means_failures_and_every_run(tmp_path):
    rows = [row(0.5), row(0.7, seed=1), row(0.9, mixer="retnet"), row(mixer="retnet", seed=1, status="failed")]
    report = write_report(Store(write(tmp_path, rows)), plots=False)
    best, second = report.arms
    assert (best.label, best.values, best.std) == ("retnet", [0.9], None)
    assert (second.mean, second.std) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    markdown = (tmp_path / "results.md").read_text()
    assert "| gla | 0.6000 ± 0.1414 | [0.5000, 0.7000] | 2 | 115,000 | 4 KiB | 250,000 | 30,000 |" in markdown
    assert "| retnet | **0.9000** |  | 1 of 2 |" in markdown
    assert "- mqar retnet seed 1: failed (RuntimeError: no luck)" in markdown
    assert "**Warning:** retnet is ahead of gla on a single seed" in markdown
    assert sorted(run["status"] for run in records(tmp_path / "results.csv")) == ["done", "done", "done", "failed"]
    assert {run["mixer.name"] for run in records(tmp_path / "results.csv")} == {"gla", "retnet"}
    (first, _) = records(tmp_path / "summary.csv")
    assert (first["mean"], first["seeds"], first["runs"], first["split"]) == ("0.9", "1", "2", "test")


def test_what_a_store_has_written_is_read(tmp_path):
    store = Store(tmp_path)
    settings = (Setting.parse("train.steps=4"), Setting.parse("backbone.dim=16"))
    for run in expand(Grid(("gla", "hgrn2+attention"), ("mqar",), (0, 1), settings)):
        store.start(run)
        record = store.record(run.run_id)
        record.append(Point(4, 128, 0.4, 1.0, 0.5))
        record.finish(row(0.5 + run.seed / 10).result)
    report = write_report(store)
    assert [(arm.mixer, arm.values) for arm in report.arms] == [("gla", [0.5, 0.6]), ("hgrn2+attention", [0.5, 0.6])]
    markdown = (tmp_path / "results.md").read_text()
    assert "num_heads=4 short_conv=4 · GLU" in markdown and "![curves-mqar.png](curves-mqar.png)" in markdown


def test_seeds_that_agree_to_the_last_digit_are_reported(tmp_path):
    report = write_report(Store(write(tmp_path, [row(0.0, seed=seed) for seed in (0, 1)])))
    assert "| gla | **0.0000 ± 0.0000** | [0.0000, 0.0000] | 2 |" in (tmp_path / "results.md").read_text()
    assert report.arms[0].interval == (0.0, 0.0)


def test_a_metric_that_is_not_a_number_is_told(tmp_path):
    report = write_report(Store(write(tmp_path, [row(None), row(0.5, seed=1)])), plots=False)
    assert report.sections[0].problems == ["mqar gla seed 0: done (its metric is not a number)"]
    assert "1 of 2 runs have no value (1 without a number)" in report.sections[0].warnings[0]
    assert "| gla | **0.5000** | 1 of 2 |" in (tmp_path / "results.md").read_text()


def test_every_variant_of_a_task_has_its_best(tmp_path):
    rows = [row(value, mixer=mixer) for value, mixer in ((0.9, "gla"), (0.8, "retnet"))]
    for value, mixer in ((0.3, "gla"), (0.3, "retnet"), (0.2, "hgrn1")):
        rows.append(row(value, mixer=mixer))
        rows[-1].config["task"]["length"] = 128
    report = read_report(Store(write(tmp_path, [*rows[:2], *(replace(r, run_id=r.run_id + "x") for r in rows[2:])])))
    assert report.sections[0].best == {"gla, task.length=64", "gla, task.length=128", "retnet, task.length=128"}


def test_old_rows_without_the_newer_keys_still_report(tmp_path):
    newer = ("split", "valid", "flops_per_token", "peak_memory_bytes", "energy_joules", "measurements", "provenance")
    old = row(0.5)
    result = {key: value for key, value in old.result.items() if key not in newer}
    root = write(tmp_path, [type(old)(old.run_id, old.config, old.curve, result)])
    write_report(Store(root), plots=False)
    assert (
        "| mixer | accuracy ↑ | seeds | parameters | state at T=1024 | tokens/s |" in (root / "results.md").read_text()
    )


def test_the_formats_tell_the_same(studied):
    root = studied.directory
    best = records(root / "summary.csv")[0]
    mean, low, high = (float(best[key]) for key in ("mean", "low", "high"))
    assert f"**{mean:.4f} ± {float(best['std']):.4f}** | [{low:.4f}, {high:.4f}]" in (root / "results.md").read_text()
    side = max(high - mean, mean - low)
    tex = (root / "results.tex").read_text()
    assert "& $-0.0344$ & not told apart &" in tex
    assert rf"attention & $\mathbf{{{mean:.4f}}} \pm {side:.4f}$" in tex
    page = (root / "report.html").read_text()
    assert f'<td class="number best" data-value="{mean}">{mean:.4f} ±' in page
    verdicts = {(arm["mixer"], arm["mixer.expand"]): arm["verdict"] for arm in records(root / "summary.csv")}
    assert verdicts["hgrn1", ""] == "worse" and verdicts["attention", ""] == ""
    assert len(records(root / "results.csv")) == len(studied.rows) == 72


def test_parquet_holds_what_csv_holds(studied):
    from pyarrow import parquet

    table = parquet.read_table(studied.directory / "results.parquet").to_pylist()
    lines = records(studied.directory / "results.csv")
    assert [run["run_id"] for run in table] == [run["run_id"] for run in lines]
    assert list(table[0]) == list(lines[0])
    assert [run["value"] for run in table] == [float(run["value"]) if run["value"] else None for run in lines]


def test_what_the_question_asks_for_and_is_not_there_is_told(studied):
    told = "\n".join(problem for section in studied.sections for problem in section.problems)
    for missing in (
        "mqar attention seed 3: missing (not started)",
        "mqar hgrn2, mixer.expand=256: missing (not started)",
        "mqar hgrn2+attention: missing (not started)",
        "lm hgrn2 seed 3: missing (not started)",
    ):
        assert missing in told
    assert "| hgrn2+attention |  | missing |" in (studied.directory / "results.md").read_text()
    assert "diagnostics/parity" not in told, "which the question doesn't ask for"


def test_nothing_is_a_value_and_not_missing(tmp_path):
    rows = [row(0.5, window=window) for window in (None, 500)]
    asked = {"mixers": ["gla"], "tasks": ["mqar"], "seeds": [0], "vary": {"backbone.mixer.window": [None, 500, 900]}}
    (section,) = read_report(Store(write(tmp_path, rows, asked))).sections
    assert section.problems == ["mqar gla, mixer.window=900: missing (not started)"]


def test_what_was_left_out_is_told_with_its_reason_and_is_not_missing(tmp_path):
    """From the plan to the page: a mixer that cannot be matched, a value that is refused, and a run not yet started."""
    grid = Grid.of(
        mixers=["gla", "hgrn2", "retnet"],
        tasks=[{"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}],
        match="params:66000",
        vary={"mixer.expand": [16, 128]},
        seeds=1,
        set={"train.steps": 1, "train.batch_size": 2},
    )
    planned, store = plan(grid), Store(tmp_path)
    assert carry_out(planned, store, LocalEngine(1), lambda event: None)
    assert not carry_out(planned, store, LocalEngine(1), lambda event: None), "nothing has changed"
    shutil.rmtree(tmp_path / next(run.run_id for run in planned.runs if run.backbone.label == "gla"))
    report = write_report(store, plots=False)
    (section,) = report.sections
    refused, unmatched, absent = section.problems
    assert refused == "mqar hgrn2, mixer.expand=128: left out (expand must divide dim=64, got 128)"
    assert unmatched.startswith("mqar retnet: left out (retnet on mqar cannot be brought to 66,000 parameters: ")
    assert absent == "mqar gla: missing (not started)"
    text = (tmp_path / "results.md").read_text()
    assert re.search(r"\| retnet \|.* left out \|", text) and re.search(r"\| gla \|.* missing \|", text)
    assert "<b>2</b><span>left out</span>" in (tmp_path / "report.html").read_text()
    (tmp_path / "left_out.json").unlink()
    assert "mqar retnet: missing (not started)" in read_report(store).sections[0].problems


@pytest.mark.parametrize(
    ("rows", "asked", "told"),
    [
        (
            [{"lr": lr, "expand": e} for lr, e in ((1, 8), (1, 16), (2, 8))],
            {},
            ["mqar hgrn2, train.lr=2, mixer.expand=16"],
        ),
        ([{"lr": lr, "expand": e} for lr in (1.0, 2.0) for e in (8, 16)], {}, []),
        ([{"lr": lr, "expand": 8} for lr in (1, 2)], {}, ["mqar hgrn2, mixer.expand=16"]),
        (
            [{"lr": 1, "expand": 8, "seed": s} for s in (0, 1)] + [{"lr": 1, "expand": 16}],
            {"seeds": [0, 1], "vary": {"mixer.expand": [8, 16]}},
            ["mqar hgrn2, mixer.expand=16 seed 1"],
        ),
        (
            [{"mixer": "hgrn2+gla", "expand": 8}],
            {"mixers": ["hgrn2+gla"]},
            ["train.lr=1", "train.lr=2", "mixer.expand=16"],
        ),
        ([{"expand": 8}], {"vary": {"gla:mixer.expand": [8, 16]}}, []),
        ([{"expand": 8}], {"vary": {"backbone.dim": [32, 96]}, "solve": "width"}, []),
        (
            [{"lr": 1, "expand": 8}, {"lr": 2, "expand": 8}],
            {"vary": {"train.lr,mixer.expand,gla:mixer.num_heads": [[1, 8, 1], [2, 16, 2], [3, 8, 3]]}},
            ["mqar hgrn2, train.lr=2", "mqar hgrn2, train.lr=3"],
        ),
    ],
)
def test_missing_are_cells_and_seeds_and_nothing_that_was_not_asked_for(rows, asked, told, tmp_path):
    question = {
        "mixers": ["hgrn2"],
        "tasks": ["mqar"],
        "seeds": [0],
        "vary": {"train.lr": [1, 2], "mixer.expand": [8, 16]},
    }
    written = write(tmp_path, [row(0.5, **{"mixer": "hgrn2", **own}) for own in rows], question | asked)
    (section,) = read_report(Store(written)).sections
    assert len(section.problems) == len(told)
    assert all(what in problem for what, problem in zip(told, section.problems, strict=True))


def test_settings_that_go_together_are_told_by_the_first(tmp_path):
    rows = [row(0.5, mixer="hgrn2", lr=lr, expand=expand) for lr, expand in ((1, 8), (2, 16))]
    asked = {"mixers": ["hgrn2"], "tasks": ["mqar"], "seeds": [0], "vary": {"train.lr,mixer.expand": [[1, 8], [2, 16]]}}
    (section,) = read_report(Store(write(tmp_path, rows, asked))).sections
    assert {arm.label for arm in section.arms} == {"hgrn2, train.lr=1", "hgrn2, train.lr=2"}
    assert not section.problems


@pytest.mark.parametrize("width", [100, 120, 160, 260])
def test_tables_fit_the_terminal(studied, width):
    text = screen(studied, width)
    tables = [line for line in text.splitlines() if re.match(r" {1,3}\S|.*─", line)]
    assert max(map(len, tables)) <= width
    assert "0.9655 ± 0.0144" in text and "not told apart" in text
    assert ("hgrn2+attention   " in text) and ("FLOPs/token" in text) == (width == 260)


def test_a_long_table_is_cut_on_the_terminal_alone(tmp_path):
    rows = [row(0.5, lr=0.001 + i / 10_000, status="done" if i < 60 else "failed", seed=i % 2) for i in range(90)]
    report = write_report(Store(write(tmp_path, rows)), plots=False)
    text = screen(report, 120)
    assert "and 50 more, in summary.csv and report.html" in text and "and 10 more, in results.md" in text
    assert (tmp_path / "results.md").read_text().count("| gla |") == 90
    assert (tmp_path / "results.md").read_text().count(": failed (") == 30


def test_a_filter_and_a_regrouping_are_told(tmp_path):
    root = write(tmp_path / "runs", study())
    report = write_report(Store(root), where=["task=mqar", "seed<2"], by=["mixer"], plots=False)
    assert [(arm.label, len(arm.rows)) for arm in report.arms if arm.mixer == "hgrn2"] == [("hgrn2", 10)]
    assert {row.config["seed"] for row in report.rows} == {0, 1}
    assert "| 10 runs, 2 seeds |" in (root / "selection" / "results.md").read_text()
    told = "seed\\<2; what is missing is not counted; grouped by mixer alone, pooling whatever else differs."
    assert told in (root / "selection" / "results.md").read_text()
    for mistake, message in ((["train.rl=3"], "did you mean train.lr"), (["seed>9"], "none of 72 runs has seed>9")):
        with pytest.raises(ValueError, match=message):
            read_report(Store(root), where=mistake)
    with pytest.raises(ValueError, match=r"unknown path 'mixer.expnad'; did you mean mixer.expand"):
        read_report(Store(root), by=["mixer.expnad"])
    with pytest.raises(ValueError, match="unknown baseline 'atention'; did you mean attention"):
        read_report(Store(root), baseline="atention")


def test_directories_are_compared_with_the_folder_as_a_column(tmp_path):
    first = write(tmp_path / "a" / "runs", [row(0.5, seed=seed) for seed in (0, 1)])
    second = write(tmp_path / "b" / "runs", [row(0.6, seed=seed) for seed in (0, 1)])
    report = write_report(Store(first), Store(second), plots=False, baseline="gla, folder=a/runs")
    assert [arm.label for arm in report.arms] == ["gla, folder=b/runs", "gla, folder=a/runs"]
    assert report.directory == tmp_path / "a" / "a_runs-vs-b_runs"
    assert "| gla | b/runs | **0.6000 ± 0.0000** |" in (report.directory / "results.md").read_text()
    (better, _) = records(report.directory / "summary.csv")
    assert (better["verdict"], better["common seeds"], float(better["difference"])) == (
        "better",
        "2",
        pytest.approx(0.1),
    )
    write(second, [row(0.4, mixer="retnet")])
    assert read_report(Store(first), Store(second)).arms[-1].label == "retnet, folder=b/runs", "also where it is alone"
    assert read_report(Store(first), Store(second), where=["folder=a/runs"]).arms[0].values == [0.5, 0.5]
    with pytest.raises(ValueError, match="a directory cannot be compared with itself"):
        read_report(Store(first), Store(first))


def test_a_search_shows_what_it_chose(tmp_path):
    question = {"mixers": ["hgrn2", "gla", "attention"], "tasks": ["mqar"], "seeds": [0, 1, 2]}
    question |= {"tune": {"train.lr": [1e-3, 3e-3, 1e-2, 3e-2]}}
    report = write_report(Store(write(tmp_path, search(), question)), plots=False)
    assert {arm.label: arm.chosen["train.lr"] for arm in report.arms} == {"attention": 1e-3, "hgrn2": 1e-2, "gla": 3e-3}
    assert all(len(arm.values) == 3 for arm in report.arms)
    markdown = (tmp_path / "results.md").read_text()
    assert "| mixer | train.lr (chosen) | accuracy, test ↑ |" in markdown
    assert "mqar gla, train.lr=0.03 seed 0: diverged (step 400)" in markdown
    assert len(records(tmp_path / "results.csv")) == len(search())


def test_an_empty_directory_is_explained(tmp_path):
    with pytest.raises(ValueError, match="there are no runs in"):
        write_report(Store(tmp_path))


def test_latex_is_well_formed_whatever_the_names(tmp_path):
    nasty = row(0.5, mixer="a_b&c%d#{e}~^\\f", result_measurements={"values": {"$x_1$": 1.0}})
    write_report(Store(write(tmp_path, [nasty, row(0.4, task="lm")])), plots=False)
    tex = (tmp_path / "results.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == tex.count(r"\toprule") == 3
    assert escape("a_b&c%d#{e}~^\\f") in tex and escape("\u2603 95 %") == r"? 95 \%"
    for table in re.findall(r"\\begin{tabular}{([lr]+)}(.*?)\\end{tabular}", tex, re.DOTALL):
        lines = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(table[0])}


@pytest.mark.slow
def test_latex_compiles(studied, tmp_path):
    source = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}\input{{{studied.directory}/results}}"
    (tmp_path / "paper.tex").write_text(source + r"\end{document}")
    assert shutil.which("pdflatex"), "this test needs pdflatex on the path"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers_read_well():
    assert [number(x) for x in (0.5, 12.345, 23456.7, -0.02)] == ["0.5000", "12.35", "23,457", "-0.0200"]
    assert [size(x) for x in (256, 4096, 1.5 * 2**20, 3 * 2**30)] == ["256 B", "4 KiB", "1.5 MiB", "3 GiB"]
    assert listed(["a", "b"]) == "a, b" and listed(["a, x=1", "b"]) == "a, x=1; b"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
