"""Laws of the command line: light to start, one line for a mistake, and stopping it loses nothing finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mixerzoo.ablation.store import Store
from mixerzoo.cli import main

QUICK = [
    *("--tasks", "mqar", "--mixers", "attention", "--no-plots", "--set", "backbone.dim=16"),
    *("--set", "backbone.depth=1", "--set", "task.valid_sequences=8", "--set", "train.batch_size=2"),
]


def mixerzoo(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    monkeypatch.setattr(sys, "argv", ["mixerzoo", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    output = capsys.readouterr()
    return exit.value.code or 0, output.out, output.err


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", "from mixerzoo.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom mixerzoo.cli import main\nsys.argv = ['mixerzoo', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'rich', 'matplotlib', 'accelerate') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "ablate" in output
    assert output.splitlines()[-1] == "[]"


def test_without_arguments_it_helps(capsys, monkeypatch):
    code, out, _ = mixerzoo(capsys, monkeypatch)
    assert code == 0
    assert all(command in out for command in ("list", "show", "ablate", "report", "train"))


def test_list_and_show(capsys, monkeypatch):
    assert "hgrn2" in mixerzoo(capsys, monkeypatch, "list")[1]
    code, out, _ = mixerzoo(capsys, monkeypatch, "show", "hgrn2")
    assert code == 0
    assert "arXiv:2404.07904" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "hgrn3"], "error: unknown mixer 'hgrn3'; did you mean hgrn2 or hgrn1? known: "),
        (["ablate", "--mixers", "gal"], "error: unknown mixer 'gal'; did you mean gla?"),
        (["ablate", "--tasks", "mqra"], "error: unknown task 'mqra'; did you mean mqar? known: lm, mqar"),
        (["ablate", "--seeds", "0,x"], "error: a seed must be a whole number, got 'x'"),
        (["ablate", "--seeds", "few"], "error: a seed count must be a whole number, got 'few'"),
        (
            ["ablate", "--set", "train.stesp=3"],
            "error: unknown configuration key 'train.stesp'; did you mean train.steps",
        ),
        (["ablate", "--set", "gla:backbone.mixer.heads=3"], "error: unknown keyword of mixer 'gla'"),
        (["ablate", "--set", "train.lr"], "error: a setting must read path=value, got 'train.lr'"),
        (["ablate", "--text", "missing.txt"], "error: cannot read the text 'missing.txt': No such file or directory"),
        (["ablate", "--tasks", "mqar", "--text", "f"], "error: the setting lm:task.path fits no run"),
        (["ablate", "--match", "100"], "error: attention on lm cannot be brought to 100 parameters"),
        (["ablate", "--workers", "0"], "error: Invalid value for '--workers'"),
        (["ablate", "--sede", "0"], "error: No such option: --sede"),
        (["ablate", "--runs-dir", os.devnull], f"error: cannot write to {os.devnull}/default: Not a directory"),
        (["report", "missing"], "error: there are no runs in missing"),
        (["abalte"], "error: No such command 'abalte'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = mixerzoo(capsys, monkeypatch, *arguments)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_the_runs_and_writes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, out, _ = mixerzoo(capsys, monkeypatch, "ablate", "--dry-run")
    assert sum(line.startswith(("lm-", "mqar-")) for line in out.splitlines()) == 20
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seeds", "expected"), [("3", {"s0", "s1", "s2"}), ("3,", {"s3"}), ("3,7", {"s3", "s7"})])
def test_seeds_are_a_count_or_a_list(capsys, monkeypatch, seeds, expected):
    _, out, _ = mixerzoo(capsys, monkeypatch, "ablate", "--dry-run", "--mixers", "gla", "--seeds", seeds)
    assert {line.split("-")[2] for line in out.splitlines() if line.startswith(("lm-", "mqar-"))} == expected


def test_finished_runs_are_skipped_and_reported_again(capsys, monkeypatch, tmp_path):
    arguments = ["ablate", *QUICK, "--set", "train.steps=2", "--seeds", "0,1", "--runs-dir", str(tmp_path)]
    code, out, _ = mixerzoo(capsys, monkeypatch, *arguments)
    assert code == 0
    assert "0 finished before, 2 to do" in out
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, again, _ = mixerzoo(capsys, monkeypatch, *arguments)
    assert code == 0
    assert "2 finished before, nothing to do" in again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    table = [line for line in again.splitlines() if "attention" in line and "│" in line]
    assert len(table) == 1
    assert table[0] in out
    code, report, _ = mixerzoo(capsys, monkeypatch, "report", str(tmp_path / "default"), "--no-plots")
    assert code == 0
    assert table[0] in report


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_stopping_anywhere_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path, how):
    arguments = [
        *("ablate", *QUICK, "--seeds", "0,1,2", "--workers", "1", "--runs-dir", str(tmp_path)),
        *("--set", "train.steps=60", "--set", "train.log_every=1", "--set", "train.evaluate_every=60"),
    ]
    store = Store(tmp_path / "default")
    process = start(*arguments)
    wait_for(lambda: any(row.finished for row in store.rows()), process)
    wait_for(lambda: any(row.curve and not row.finished for row in store.rows()), process)
    process.send_signal(getattr(signal, how))
    _, err = process.communicate()
    kept = {row.run_id: row.result for row in store.rows() if row.finished}
    assert 1 <= len(kept) <= 3
    if how == "SIGINT":
        assert process.returncode == 130
        assert err.startswith(f"stopped: {len(kept)} of 3 runs are finished and kept; to go on: mixerzoo ablate")
        assert "Traceback" not in err
    process = start(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "finished before" in out
    rows = store.rows()
    assert [row.status for row in rows] == ["done"] * 3
    assert {row.run_id: row.result for row in rows if row.run_id in kept} == kept
    assert all([point["step"] for point in row.curve] == list(range(1, 61)) for row in rows)
