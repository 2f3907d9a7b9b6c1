"""Laws of the command line say: it starts fast, a mistake prints one line, and stopping loses nothing finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from mixerzoo.ablation.running.store import Store
from mixerzoo.cli import main
from mixerzoo.mixers.hgrn1 import HGRN1
from mixerzoo.tasks.files import read_json
from mixerzoo.tasks.provenance import provenance

QUICK = [
    *("--tasks", "mqar", "--mixers", "attention", "--no-plots", "--set", "backbone.dim=16"),
    *("--set", "backbone.depth=1", "--set", "task.valid_sequences=8", "--set", "train.batch_size=2"),
]
VISION = ["train", "vision", "--model", "zoo_hgrn2_tiny_patch16_224"]
QUICK_VISION = [*VISION, "--set", "model.embed_dim=32", "--set", "model.depth=1", "--set", "train.batch_size=256"]


def mixerzoo(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a command run in this process."""
    monkeypatch.setattr(sys, "argv", ["mixerzoo", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    output = capsys.readouterr()
    return exit.value.code or 0, output.out, output.err


def start(*arguments: str) -> subprocess.Popen:
    """Starts a command in a process that can be interrupted, whatever the tests were started from."""
    command = [sys.executable, "-c", "from mixerzoo.cli import main; main()", *arguments]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


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
    assert all(command in out for command in ("list", "show", "ablate", "report", "train", "timm-train"))


def test_list_and_show(capsys, monkeypatch):
    assert "hgrn2" in mixerzoo(capsys, monkeypatch, "list")[1]
    code, out, _ = mixerzoo(capsys, monkeypatch, "show", "hgrn2")
    assert code == 0
    for line in (
        "paper arXiv:2404.07904",
        "family matrix state",
        "flops 2*T*params + 5*T*D*e",
        "cannot none",
        "paper_images bias=True, q_activation=sigmoid, v_activation=silu",
    ):
        assert line in [" ".join(printed.split()) for printed in out.splitlines()]
    assert out.splitlines()[-1].endswith("with the defaults D=1024, e=128")


def test_a_mixers_limits_are_shown(capsys, monkeypatch):
    monkeypatch.setattr(HGRN1, "spec", replace(HGRN1.spec, cannot=frozenset({"packing", "backends"})))
    assert "backends, packing" in mixerzoo(capsys, monkeypatch, "show", "hgrn1")[1]


def test_a_filter_lists_mixers_alone_with_their_families(capsys, monkeypatch):
    def listed(*filters: str) -> list[str]:
        code, out, _ = mixerzoo(capsys, monkeypatch, "list", *filters)
        assert code == 0
        return [" ".join(line.split()) for line in out.splitlines()]

    everything = listed()
    assert everything[-2].startswith("tasks: ") and everything[-1].startswith("studies: ")
    matrix = listed("--family", "matrix state")
    assert set(matrix) < set(everything)
    assert {"gla", "hgrn2", "retnet"} <= {line.split()[0] for line in matrix}
    assert all(" matrix state arXiv:" in line for line in matrix)
    both = listed("--can", "depth_shared", "--can", "flip_equivariant")
    assert "hgrn2" in {line.split()[0] for line in both} and not any(line.startswith("hgrn1 ") for line in both)
    assert listed("--family", "attention", "--op", "hgrn2") == []


def test_a_task_of_two_names_is_listed_once(capsys, monkeypatch):
    tasks = next(line for line in mixerzoo(capsys, monkeypatch, "list")[1].splitlines() if line.startswith("tasks: "))
    assert tasks.count("mqar") == 2
    assert ", mqar (diagnostics/mqar), " in tasks
    assert ", lm, " in tasks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "hgrn3"], "error: unknown mixer 'hgrn3'; did you mean hgrn2 or hgrn1? known: "),
        (["list", "--family", "matrix"], "error: unknown family 'matrix'; did you mean matrix state? known: "),
        (["list", "--op", "hgrn"], "error: unknown op 'hgrn'; did you mean hgrn2? known: gated_linear_attention, "),
        (["list", "--can", "casual"], "error: unknown capability 'casual'; did you mean causal? known: "),
        (["ablate", "--mixers", "gal"], "error: unknown mixer 'gal'; did you mean gla?"),
        (
            ["ablate", "--tasks", "mqra"],
            "error: unknown task 'mqra'; did you mean mqar? known: ",
        ),
        (["ablate", "--seeds", "0,x"], "error: a seed must be a whole number, got 'x'"),
        (["ablate", "--seeds", "few"], "error: a seed count must be a whole number, got 'few'"),
        (
            ["ablate", "--set", "train.stesp=3"],
            "error: unknown configuration key 'train.stesp'; did you mean train.steps",
        ),
        (
            ["ablate", "--set", "gla:backbone.mixer.heads=3"],
            "error: unknown setting 'gla:mixer.heads'; did you mean mixer.num_heads",
        ),
        (["ablate", "--set", "train.lr"], "error: a setting must read path=value, got 'train.lr'"),
        (["ablate", "--text", "missing.txt"], "error: cannot read the text 'missing.txt': No such file or directory"),
        (["ablate", "--tasks", "mqar", "--text", "f"], "error: the setting lm:task.path fits no run"),
        (["ablate", "--match", "params:100"], "error: attention on lm cannot be brought to 100 parameters"),
        (["ablate", "--workers", "0"], "error: Invalid value for '--workers'"),
        (["ablate", "--sede", "0"], "error: No such option: --sede"),
        (["ablate", "--runs-dir", os.devnull], f"error: cannot write to {os.devnull}/default: Not a directory"),
        (["report", "missing"], "error: there are no runs in missing"),
        (["abalte"], "error: No such command 'abalte'"),
        (["train", "hgrn2"], "error: unknown task 'hgrn2'; "),
        (["train", "mqar"], "error: training on mqar needs a mixer; remedy: --mixer, for example hgrn2"),
        (["train", "vision"], "error: a vision run needs a model; remedy: --model"),
        (["train", "vision", "--mixer", "gla"], "error: vision trains a model, not a mixer; remedy: --model zoo_"),
        (["train", "vision", "--model", "zoo_gla_tniy"], "error: timm knows no model 'zoo_gla_tniy'; did you mean"),
        ([*VISION, "--data", "cifar10", "--data-dir", "x"], "error: cifar10 is not in 'x'; remedy: --data-dir with"),
        ([*VISION, "--data", "imagefolder", "x"], "error: there is no train folder in 'x'; remedy: DIR/train and"),
        ([*VISION, "--data", "imagefolder:x"], "error: there is no train folder in 'x'; remedy: DIR/train and"),
        ([*VISION, "--recipe", "digit"], "error: unknown recipe 'digit'; did you mean digits?"),
        ([*VISION, "--set", "train.epoch=3"], "error: unknown configuration key 'train.epoch'"),
        (["timm-train"], "error: there is no script 'train.py'; remedy: the path of train.py in a checkout of"),
        (["timm-validate", "x.py", "--y"], "error: there is no script 'x.py'; remedy: the path of validate.py in"),
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
    _, out, _ = mixerzoo(capsys, monkeypatch, "ablate", "--dry-run", "--tasks", "lm,mqar")
    assert sum(line.startswith(("lm-", "mqar-")) for line in out.splitlines()) == 20
    assert "20 runs, about" in out
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
    table = [line for line in again.splitlines() if line.startswith("  attention")]
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


def test_a_task_of_the_grid_is_named_with_its_slash(capsys, monkeypatch):
    _, out, _ = mixerzoo(capsys, monkeypatch, "ablate", "--dry-run", "--task", "vision/digits", "--seeds", "1")
    assert sum(line.startswith("vision_digits-") for line in out.splitlines()) == 5
    assert "vision/digits: parameters matched to" in out


def test_one_mixer_is_trained_on_a_task(capsys, monkeypatch, tmp_path):
    arguments = ["train", "mqar", "--mixer", "attention", *QUICK[5:], "--set", "train.steps=2"]
    code, out, _ = mixerzoo(capsys, monkeypatch, *arguments, "--runs-dir", str(tmp_path))
    assert code == 0
    assert "1 run in" in out and "accuracy" in out


def test_a_timm_model_is_trained_and_a_second_call_only_tells(capsys, monkeypatch, tmp_path):
    arguments = [*QUICK_VISION, "--set", "train.epochs=2", "--out", str(tmp_path / "out")]
    code, out, _ = mixerzoo(capsys, monkeypatch, *arguments)
    assert code == 0
    assert "zoo_hgrn2_tiny_patch16_224 on digits" in out and "0 epochs finished before" in out
    assert "epoch 1/2: loss" in out and "epoch 2/2: loss" in out
    result = read_json(tmp_path / "out" / "result.json")
    told = f"top-1 {result['test']['top1']:.2f} % on the 360 test images (epoch {result['best_epoch']}"
    assert told in out
    assert result["provenance"]["argv"] == ["mixerzoo", *arguments]
    code, again, _ = mixerzoo(capsys, monkeypatch, *arguments)
    assert (code, "2 epochs finished before" in again, "epoch 1/2" in again, told in again) == (0, True, False, True)
    code, _, err = mixerzoo(capsys, monkeypatch, *arguments, "--seed", "1")
    assert (code, err.startswith(f"error: {tmp_path / 'out'} holds another run")) == (2, True)


def test_a_missing_dependency_is_named_with_its_extra(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "timm" or name.startswith("mixerzoo.tasks.vis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    code, _, err = mixerzoo(capsys, monkeypatch, *VISION)
    assert (code, err) == (2, "error: this needs timm; remedy: pip install 'mixerzoo[vision]'\n")


def test_a_vision_run_that_diverges_makes_exit_code_1(capsys, monkeypatch, tmp_path):
    settings = ["--set", "train.lr=1e30", "--set", "train.warmup_epochs=0", "--runs-dir", str(tmp_path)]
    code, out, _ = mixerzoo(capsys, monkeypatch, *QUICK_VISION, *settings)
    assert code == 1
    assert "diverged in epoch" in out


def test_a_stopped_vision_run_goes_on_with_the_same_command(capsys, monkeypatch, tmp_path):
    arguments = [*QUICK_VISION, "--set", "train.epochs=8", "--out", str(tmp_path)]
    process = start(*arguments)
    wait_for(lambda: (tmp_path / "history.json").exists(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "of 8 epochs are finished and kept; to go on: mixerzoo train vision" in err
    kept = len(json.loads((tmp_path / "history.json").read_text()))
    assert 1 <= kept < 8
    code, out, _ = mixerzoo(capsys, monkeypatch, *arguments)
    assert code == 0
    assert f"epoch {kept}/8:" not in out and "epoch 8/8:" in out


SCRIPT = """
import sys, timm
if __name__ == "__main__":
    import beside
    print(sys.argv, timm.create_model(sys.argv[-1]).num_classes, beside.name, __file__)
    sys.exit(int(sys.argv[-2]))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Makes a folder with scripts like timm's: they look a model up by its name, and import what lies beside."""
    for name in ("train.py", "validate.py"):
        (tmp_path / name).write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("name = 'beside'")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("beside", None)


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize("where", ["script", "folder", "here"])
def test_timms_scripts_find_the_zoos_models(capsys, monkeypatch, checkout, command, where):
    script = {"script": checkout / f"{command}.py", "folder": checkout, "here": None}[where]
    if where == "here":
        monkeypatch.chdir(checkout)
    arguments = ["--epochs", "3", "--help", "0", "zoo_gla_pyramid_tiny"]
    code, out, _ = mixerzoo(capsys, monkeypatch, f"timm-{command}", *([str(script)] if script else []), *arguments)
    assert code == 0
    path = f"{command}.py" if where == "here" else str(checkout / f"{command}.py")
    assert out.strip() == f"{[path, *arguments]} 1000 beside {path}"


def test_a_scripts_exit_code_is_the_commands_also_as_a_module(checkout):
    """torchrun's -m runs `python -m mixerzoo.cli` in every process."""
    command = [
        sys.executable,
        "-m",
        "mixerzoo.cli",
        "timm-train",
        str(checkout),
        "--",
        "5",
        "zoo_hgrn1_tiny_patch16_224",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "beside" in done.stdout


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/bin/mixerzoo", "mixerzoo"),
        ("/site-packages/mixerzoo/cli/__main__.py", "mixerzoo"),
        ("benchmarks/learning.py", "learning.py"),
    ],
)
def test_provenance_has_the_command_as_one_would_give_it(path, name):
    assert provenance([path, "train", "lm"])["argv"] == [name, "train", "lm"]


def test_a_mixer_that_is_left_out_takes_along_what_the_file_sets_for_it_alone(capsys, monkeypatch, tmp_path):
    file = tmp_path / "question.toml"
    file.write_text(
        'mixers = ["hgrn2", "gla"]\ntasks = ["mqar"]\nseeds = 1\n[set]\n"hgrn2:train.lr" = 1e-3\n'
        '[vary]\n"backbone.dim, hgrn2:mixer.expand" = [[16, 2], [16, 4], [32, 4]]\n"hgrn2:train.betas" = [[0.9, 0.9]]\n'
    )
    for mixers, runs in (("gla", 2), ("hgrn2", 3), ("gla,hgrn2", 5)):
        code, out, err = mixerzoo(
            capsys, monkeypatch, "ablate", str(file), "--mixers", mixers, "--match", "none", "--dry-run"
        )
        assert code == 0, err
        assert sum(line.startswith("mqar-") for line in out.splitlines()) == runs
    code, _, err = mixerzoo(capsys, monkeypatch, "ablate", str(file), "--mixers", "gla", "--set", "hgrn2:train.lr=1")
    assert code == 2 and "hgrn2:train.lr fits no run" in err
