"""Laws of language model training say: runs are strict, and kills, cuts and shared work leave one loss curve."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixerzoo.cli import main
from mixerzoo.tasks.lm.build import build_model
from mixerzoo.tasks.lm.data.text_data import load_data
from mixerzoo.tasks.lm.recipe import LMRun, Training, resolve
from mixerzoo.tasks.lm.training import Trainer, checkpoints, read_history
from tests.tolerances import assert_close, assert_identical

TINY = {"mixer": {"name": "hgrn2", "expand": 8}, "hidden_size": 16, "num_hidden_layers": 2, "tie_word_embeddings": True}
SHORT = (
    *("data.length=24", "train.steps=12", "train.batch_size=4", "train.warmup=3", "train.log_every=3"),
    *("train.eval_every=6", "train.eval_rows=6", "train.save_every=4"),
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def small_run(*settings: str, **model: object) -> LMRun:
    return resolve(model=json.dumps({**TINY, **model}), settings=[*SHORT, *settings])


def finish(run: LMRun, out: Path) -> Trainer:
    trainer = Trainer(run, out, ["mixerzoo"])
    for _ in trainer.run():
        assert trainer.result is None
    return trainer


def curve(out: Path) -> list[dict[str, object]]:
    """Returns all of the history except times."""
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in read_history(out)]


def weights(out: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(out / "model").state_dict()


def command(run: LMRun, out: Path) -> list[str]:
    given = {f"{part}.{key}": value for part in ("data", "train") for key, value in run.to_dict()[part].items()}
    settings = [f"--set={key}={value}" for key, value in given.items() if value is not None]
    return ["-m", "mixerzoo.cli", "train", "lm", "--model", json.dumps(run.model), "--out", str(out), *settings]


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a language model run needs a model; remedy: --recipe NAME, or --model"),
        ({"model": "{mixer}"}, "--model must be JSON or a checkpoint, got '{mixer}'"),
        ({"recipe": "hgrn9"}, "unknown recipe 'hgrn9'"),
        ({"settings": ["train.step=3"]}, "unknown configuration key 'train.step'; did you mean train.steps"),
        ({"settings": ["train.steps=0"]}, "train.steps must be at least 1, got 0"),
        ({"settings": ["train.clip=-1.0"]}, "train.clip must be at least 0, got -1.0"),
        ({"settings": ["train.decay=0.0"]}, "train.decay must lie above 0"),
        ({"settings": ["train.schedule=linear"]}, "train.schedule must be 'cosine' or 'wsd' or"),
        ({"settings": ["data.valid_fraction=1.0"]}, "data.valid_fraction must lie between 0 and 1"),
        ({"settings": ["data.streaming=true"]}, "data.streaming needs hfds:NAME, and a data.valid of its own"),
        ({"settings": ["data.packing=documents", "data.end_documents=false"]}, "finds them by their ends; remedy:"),
        ({"settings": ["model.pretrained=x"]}, "a pretrained model brings its configuration, got model.hidden_size"),
    ],
)
def test_mistakes_in_a_run_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        resolve(**{**({"model": json.dumps(TINY)} if "settings" in options else {}), **options})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.hiden_size=3"], "unknown configuration key 'model.hiden_size'; did you mean model.hidden_size"),
        (["model.mixer.name=hgrn3"], "unknown mixer 'hgrn3'"),
        (["model.mixer.expand=7"], "expand must divide dim"),
        (["model.dropout=a"], "the model cannot be built with .*'dropout': 'a'"),
        (["model.vocab_size=100"], "the model's vocabulary is 100, the data's tokens are 257"),
        (["train.batch_size=3", "train.grad_accum_steps=2"], "train.batch_size must be a multiple of .* = 2, got 3"),
        (["data.name=txt:x"], "unknown data 'txt:x'; did you mean text"),
        (["data.length=100000"], "the validation text has .* tokens, a row needs 100001; remedy: a longer text"),
        (["train.wandb=project"], "train.wandb needs the package wandb; remedy: pip install wandb"),
    ],
)
def test_runs_that_cannot_start_are_explained(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(small_run(*settings), tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        Trainer(resolve(model=str(tmp_path), settings=SHORT), tmp_path / "out", [])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {1: 0.25, 4: 1.0, 12: 0.55, 20: 0.1}),
        ("wsd", {2: 0.5, 4: 1.0, 10: 1.0, 12: 1.0, 16: 0.55, 20: 0.1}),
        ("inverse_sqrt", {3: 0.75, 4: 1.0, 16: 0.5}),
        ("constant", {2: 0.5, 4: 1.0, 20: 1.0}),
    ],
)
def test_schedules_are_what_their_names_say(schedule, expected):
    train = Training(steps=20, warmup=4, lr=2.0, schedule=schedule, decay=0.4)
    assert {step: train.learning_rate(step) / 2 for step in expected} == pytest.approx(expected)
    assert replace(train, warmup_lr=1.0).learning_rate(2) == 1.5


def test_a_run_learns_and_leaves_a_model_that_transformers_reads(tmp_path):
    run = small_run("train.steps=60", "train.lr=1e-2", "train.eval_every=60")
    trainer = finish(run, tmp_path)
    result, history = json.loads((tmp_path / "result.json").read_text()), read_history(tmp_path)
    assert result["status"] == "done" and result["steps"] == 60 and result["tokens"] == 60 * 4 * 24
    assert result["config"] == json.loads((tmp_path / "config.json").read_text()) == run.to_dict()
    assert [entry["step"] for entry in history] == list(range(3, 61, 3))
    assert history[0]["loss"] > math.log(200) > 5 > history[-1]["loss"] > history[-1]["valid"]["bits_per_byte"] / 8
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))  # every token is a byte
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000056", "step-00000060"]
    assert list((tmp_path / "tensorboard").glob("events.*"))

    model, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.num_parameters() == result["parameters"]
    valid = load_data(run.data, seed=0).valid
    rows = torch.stack([torch.from_numpy(valid.ids[24 * i : 24 * i + 25].astype("int64")) for i in range(6)])
    loss = model.eval()(rows[:, :-1], shift_labels=rows[:, 1:].contiguous()).loss
    assert_close(loss, torch.tensor(trainer.history[-1]["valid"]["loss"]))
    prompt = tokenizer("The", return_tensors="pt")
    assert prompt["input_ids"].tolist() == [list(b"The")]
    assert tokenizer.decode(model.generate(**prompt, max_new_tokens=4)[0]).startswith("The")
    assert list(Trainer(run, tmp_path, []).run()) == []


def test_a_run_that_is_stopped_and_goes_on_ends_as_if_nothing_had_happened(tmp_path):
    """The run has dropout, which draws random numbers, and a report between two checkpoints."""
    run = small_run(dropout=0.1, mixer=["hgrn1", {"name": "attention", "num_heads": 2}])
    finish(run, tmp_path / "straight")
    stopped = Trainer(run, tmp_path / "stopped", [])
    assert [progress.step for progress in islice(stopped.run(), 2)] == [3, 6]
    torch.rand(7)
    resumed = Trainer(run, tmp_path / "stopped", [])
    assert resumed.step == 4
    assert [progress.step for progress in resumed.run()] == [6, 9, 12]
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    assert_identical(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))


def test_a_run_that_is_killed_and_started_again_has_the_same_loss_curve(tmp_path):
    """SIGKILL comes in the middle of writing its second checkpoint or a later one."""
    run = small_run("train.steps=40", "train.eval_every=20")
    finish(run, tmp_path / "straight")
    out = tmp_path / "killed"
    process = start(*command(run, out))
    while not ((out / "checkpoints" / "step-00000004").exists() and (out / "checkpoints" / ".unfinished").exists()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "result.json").exists()
    killed = Trainer(run, out, [])
    assert 4 <= killed.step < 40
    assert [progress.step for progress in killed.run()][-1] == 40
    assert curve(out) == curve(tmp_path / "straight")
    assert_identical(weights(out), weights(tmp_path / "straight"))


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, packing):
    """The same holds if parts have different numbers of targets."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "so it goes " * (1 + i % 7)}) + "\n" for i in range(300)))
    run = small_run(f"data.name=jsonl:{text}", f"data.packing={packing}")
    finish(run, tmp_path / "whole")
    finish(replace(run, train=replace(run.train, grad_accum_steps=2)), tmp_path / "parts")
    for parts, whole in zip(curve(tmp_path / "parts"), curve(tmp_path / "whole"), strict=True):
        assert_close(torch.tensor(parts["loss"]), torch.tensor(whole["loss"]))
    assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_two_processes_have_the_loss_of_one(tmp_path):
    """torchrun launches them, over gloo; documents make their parts of a batch unequal."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "so it goes " * (1 + i % 7)}) + "\n" for i in range(300)))
    run = small_run(f"data.name=jsonl:{text}", "data.packing=documents", "train.grad_accum_steps=2")
    finish(run, tmp_path / "one")
    process = start("-m", "torch.distributed.run", "--nproc-per-node", "2", *command(run, tmp_path / "two"))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("update 12/12") == 1
    assert json.loads((tmp_path / "two" / "result.json").read_text())["processes"] == 2
    for two, one in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert (two["step"], two["lr"], two["tokens"]) == (one["step"], one["lr"], one["tokens"])
        assert_close(torch.tensor(two["loss"]), torch.tensor(one["loss"]))
    assert_close(torch.tensor(two["valid"]["loss"]), torch.tensor(one["valid"]["loss"]))
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"))


@pytest.mark.parametrize("setting", ["train.grad_checkpointing=true", "model.fused_loss=false"])
def test_what_saves_memory_changes_nothing(tmp_path, setting):
    finish(small_run(), tmp_path / "plain")
    finish(small_run(setting), tmp_path / "other")
    assert_close(weights(tmp_path / "other"), weights(tmp_path / "plain"))


def test_bf16_is_close_to_fp32(tmp_path):
    curves = {}
    for precision in ("no", "bf16"):
        finish(small_run(f"train.precision={precision}"), tmp_path / precision)
        curves[precision] = torch.tensor([entry["loss"] for entry in curve(tmp_path / precision)])
    assert not torch.equal(curves["bf16"], curves["no"])
    assert_close(curves["bf16"].bfloat16(), curves["no"].bfloat16())
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "bf16").values())


@pytest.mark.slow
def test_a_compiled_run_has_the_same_loss_curve(tmp_path):
    finish(small_run(), tmp_path / "plain")
    finish(small_run("train.compile=true"), tmp_path / "compiled")
    assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "plain"))
    assert list(Trainer(small_run("train.compile=true"), tmp_path / "compiled", []).run()) == []


def test_a_run_goes_on_from_a_pretrained_model(tmp_path):
    finish(small_run(), tmp_path / "first")
    run = resolve(model=str(tmp_path / "first" / "model"), settings=SHORT)
    assert_identical(build_model(run, load_data(run.data, seed=0)).state_dict(), weights(tmp_path / "first"))
    assert finish(run, tmp_path / "second").result["loss"] < read_history(tmp_path / "first")[-1]["valid"]["loss"]


def test_vectors_and_embeddings_are_not_decayed(tmp_path):
    trainer = Trainer(small_run(mixer="hgrn1"), tmp_path, [])
    decayed = {id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in decayed}
    assert all(name.endswith(("proj.weight", "lower_bounds.logits")) for name in names)
    assert {name.split(".")[-2] for name in names} >= {"f_proj", "c_proj", "o_proj", "down_proj"}


def test_another_runs_directory_is_left_alone(tmp_path):
    Trainer(small_run(), tmp_path / "out", [])
    with pytest.raises(ValueError, match=r"out holds another run; remedy: another --out, or delete it"):
        Trainer(small_run("seed=1"), tmp_path / "out", [])
    with pytest.raises(ValueError, match=rf"cannot write to {os.devnull}/x: Not a directory"):
        Trainer(small_run(), Path(os.devnull) / "x", [])


def test_a_run_that_diverges_says_so(tmp_path):
    run = small_run("train.lr=1e30", "train.warmup=0", "train.clip=0.0")
    assert finish(run, tmp_path).result["status"] == "diverged"
    assert not (tmp_path / "model").exists()
    assert list(Trainer(run, tmp_path, []).run()) == []


def test_every_row_of_the_validation_text_counts_once(tmp_path):
    """There are more rows than fit evenly into batches."""
    run = small_run("train.eval_rows=0", "data.valid_fraction=0.001", "train.steps=1")
    trainer = finish(run, tmp_path)
    rows = (len(trainer.data.valid) - 1) // 24
    assert rows % 4 != 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.from_numpy(trainer.data.valid.ids[: rows * 24 + 1].astype("int64"))
    nats = model(ids[:-1].view(rows, 24), shift_labels=ids[1:].view(rows, 24)).loss
    assert_close(torch.tensor(trainer.history[-1]["valid"]["loss"]), nats.detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: a language model run needs a model; remedy: --recipe NAME, or --model"),
        (["--recipe", "wikitext103"], "error: unknown recipe 'wikitext103'; did you mean wikitext103_hgrn"),
        (["--model", '{"mixer": "gla"', "--seed", "1"], "error: --model must be JSON or a checkpoint, got"),
        (["--model", '{"mixer": "gal"}'], "error: unknown mixer 'gal'; did you mean gla?"),
        (["--model", '{"mixer": "gla"}', "--text", "missing.txt"], "error: there is no file 'missing.txt'"),
        (["--model", '{"mixer": "gla"}', "folder"], "error: --data-dir and --download are vision's; remedy: --data"),
        (["--mixer", "gla", "--recipe", "x"], "error: lm has no recipes, got 'x'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixerzoo", "train", "lm", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_with_a_mixer_lm_is_still_the_small_task_of_the_grids(capsys, monkeypatch, tmp_path):
    sizes = ("backbone.dim=16", "backbone.depth=1", "task.length=16", "task.valid_windows=2", "train.steps=2")
    settings = [part for setting in (*sizes, "train.batch_size=2") for part in ("--set", setting)]
    arguments = ["train", "lm", "--mixer", "attention", *settings, "--runs-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["mixerzoo", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code and "bits per byte" in capsys.readouterr().out
    assert (tmp_path / "train" / "results.md").exists()


def test_a_streamed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stream").mkdir()
    lines = [json.dumps({"text": f"{i} green bottles hanging on the wall"}) + "\n" for i in range(60)]
    Path("stream/train.jsonl").write_text("".join(lines))
    source = ("data.name=hfds:stream", "data.valid=hfds:stream", "data.streaming=true", "data.shuffle_rows=5")
    run = small_run(*source, "data.packing=documents")
    finish(run, tmp_path / "straight")
    list(islice(Trainer(run, tmp_path / "stopped", []).run(), 3))
    resumed = finish(run, tmp_path / "stopped")
    assert resumed.history[2]["step"] == 9 and resumed._data_state["block"] > 0
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    assert_identical(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))
