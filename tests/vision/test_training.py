"""Laws of vision training say: recipes are strict, a kill changes nothing of a run, and timm reads its checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import timm
import torch

from mixerzoo import list_mixers
from mixerzoo.tasks.vision.parts import build_model
from mixerzoo.tasks.vision.recipe import Training, VisionRun, list_recipes, read_recipe, resolve
from mixerzoo.tasks.vision.training import Trainer
from tests.tolerances import assert_close, assert_identical

from .images import image_folder

IMAGENET = [name for name in list_recipes() if "imagenet" in name]
TINY = ("model.depth=1", "model.embed_dim=32", "train.workers=0")


def small_run(folder: Path, *settings: str, model: str = "zoo_hgrn2_tiny_patch16_224") -> VisionRun:
    """Makes a run of two epochs of three updates, with all of DeiT's augmentation, mixup and EMA."""
    image_folder(folder)
    own = ("model.img_size=16", "model.patch_size=8", "train.batch_size=4", "train.epochs=2", "train.cooldown_epochs=0")
    settings = (*TINY, *own, "train.lr=1e-3", "train.warmup_epochs=1", "train.model_ema_decay=0.5", *settings)
    return resolve(model=model, data=f"imagefolder:{folder}", settings=settings)


def finish(run: VisionRun, out: Path) -> Trainer:
    trainer = Trainer(run, out, ["mixerzoo"])
    for _ in trainer.run():
        assert trainer.result is None
    return trainer


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_recipes_are_laid_over_the_defaults_and_options_over_recipes(tmp_path):
    assert Training() == resolve(model="x", data="imagefolder:x").train
    assert resolve(model="x").data.name == "digits"
    digits = resolve(model="x").train
    assert digits == resolve(model="x", data="digits").train != Training()
    run = resolve(recipe="hgrn2_imagenet_tiny", data="cifar10", settings=["train.lr=1", "model.scan_order=both"])
    assert run.model == {"name": "zoo_hgrn2_tiny_patch14_224", "scan_order": "both"}
    assert (run.data.name, run.train.lr, run.train.clip_grad, run.seed) == ("cifar10", 1.0, 5.0, 3407)
    assert resolve(recipe="hgrn2_imagenet_tiny", seed=1).seed == 1
    (tmp_path / "own.toml").write_text('[model]\nname = "x"\n[train]\nepochs = 3\n')
    assert resolve(recipe=tmp_path / "own.toml").train == replace(Training(), epochs=3)
    assert resolve(model="x", settings=["model.depth=null"]).model["depth"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a vision run needs a model; remedy: --model"),
        ({"recipe": "hgrn2_imagenet_tyni"}, "unknown recipe 'hgrn2_imagenet_tyni'; did you mean hgrn2_imagenet_tiny"),
        ({"recipe": "nowhere.toml"}, "cannot read the recipe 'nowhere.toml': No such file"),
        ({"model": "x", "settings": ["train.epoch=3"]}, "unknown configuration key 'train.epoch'; did you mean"),
        ({"model": "x", "settings": ["train.epochs=0"]}, "train.epochs must be at least 1, got 0"),
        ({"model": "x", "settings": ["train.sched=plateau"]}, "must be a schedule over updates, got 'plateau'"),
        ({"model": "x", "settings": ["trian.lr=1"]}, "unknown configuration key 'trian'; did you mean train"),
        ({"model": "x", "settings": ["data.folder=1"]}, "unknown configuration key 'data.folder'"),
    ],
)
def test_mistakes_in_a_run_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        resolve(**options)


@pytest.mark.parametrize("data", ["cifar10", "digits", "fashion_mnist"])
def test_data_come_with_a_recipe_of_their_own(data):
    run = resolve(model="zoo_gla_tiny_patch16_224", data=data)
    assert data in list_recipes() and run.train != Training()
    assert resolve(model="zoo_gla_tiny_patch16_224", recipe=data) == run
    in_chans = 3 if data == "cifar10" else 1
    model = build_model(run, num_classes=10, in_chans=in_chans)
    assert model(torch.zeros(1, in_chans, run.model["img_size"], run.model["img_size"])).shape == (1, 10)


def test_a_recipe_that_is_not_toml_is_explained(tmp_path):
    (tmp_path / "broken.toml").write_text("[model\n")
    with pytest.raises(ValueError, match=r"the recipe '.*broken.toml' is not TOML"):
        read_recipe(tmp_path / "broken.toml")


def test_the_imagenet_recipes_are_those_of_both_papers():
    peaks = {name: resolve(recipe=name).train.peak_lr for name in IMAGENET}
    assert peaks == {
        "hgrn1_imagenet_small": pytest.approx(2e-3),
        "hgrn1_imagenet_tiny": pytest.approx(2e-3),
        "hgrn2_imagenet_small": pytest.approx(3e-3),
        "hgrn2_imagenet_tiny": pytest.approx(1.5e-3),
    }


@pytest.mark.parametrize("name", IMAGENET)
def test_an_imagenet_recipe_builds_the_published_model(name):
    run = resolve(recipe=name)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(run, num_classes=1000, in_chans=3).parameters())
    assert parameters == run.published["parameters_here"]
    assert abs(parameters / 1e6 - run.published["parameters_in_millions"]) < 0.11  # as exact as the papers print it
    assert 70 < run.published["top1"] < 85


@pytest.mark.parametrize("name", IMAGENET)
def test_an_imagenet_recipe_runs(name, tmp_path):
    folder = image_folder(tmp_path / "images", classes=3)
    sizes = ("model.img_size=28", "train.batch_size=6", "train.epochs=1", "train.cooldown_epochs=0")
    run = resolve(recipe=name, data=f"imagefolder:{folder}", settings=[*TINY, *sizes])
    result = finish(run, tmp_path / "out").result
    assert (result["status"], result["tested_on"], result["epochs"]) == ("done", "validation", 1)
    assert result["config"]["published"]["top1"] == run.published["top1"]


def test_a_run_that_is_stopped_and_goes_on_ends_as_if_nothing_had_happened(tmp_path):
    """The run has DeiT's augmentation, mixup, cutmix and EMA: all that draws random numbers or has a state."""
    run = small_run(tmp_path / "images")
    straight = finish(run, tmp_path / "straight")
    stopped = Trainer(run, tmp_path / "stopped", [])
    assert [progress.epoch for progress in islice(stopped.run(), 1)] == [1]
    torch.rand(7)
    resumed = Trainer(run, tmp_path / "stopped", [])
    assert [progress.epoch for progress in resumed.run()] == [2]
    for name in ("last.pth", "best.pth"):
        assert_identical(weights(tmp_path / "stopped" / name), weights(tmp_path / "straight" / name))
    assert resumed.result["test"] == straight.result["test"]
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in straight.history]
    assert list(Trainer(run, tmp_path / "stopped", []).run()) == []


@pytest.mark.parametrize("moment", ["best.pth", "last.pth"])
def test_a_kill_at_any_moment_leaves_a_run_that_goes_on(tmp_path, moment):
    """The process is killed as soon as a file of its first epoch appears, whole or half-written."""
    run, out = small_run(tmp_path / "images", "train.epochs=40"), tmp_path / "out"
    code = f"""
import torch
from mixerzoo.tasks.vision.parts import build_model
from mixerzoo.tasks.vision.recipe import VisionRun, from_dict
from mixerzoo.tasks.vision.training import Trainer
torch.set_num_threads(1)
for _ in Trainer(from_dict(VisionRun, {run.to_dict()!r}), {str(out)!r}, []).run():
    pass
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not list(out.glob(f"*{moment}*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    trainer = Trainer(run, out, [])
    assert trainer.result is None
    before = len(trainer.history)
    progress = next(p for p in trainer.run() if p.valid is not None)
    assert progress.epoch == before + 1
    assert [entry["epoch"] for entry in json.loads((out / "history.json").read_text())] == list(range(1, before + 2))


def test_checkpoints_are_timms_and_the_result_is_the_best_epochs(tmp_path):
    run = small_run(tmp_path / "images", "train.mixup=0.0", "train.cutmix=0.0", "train.model_ema_decay=0.0")
    trainer = finish(run, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "done" and result["seconds"] > 0
    assert result["images"] == {"train": 12, "valid": 6, "test": 6}
    assert result["config"] == json.loads((tmp_path / "out" / "config.json").read_text()) == run.to_dict()
    assert {"torch", "timm", "cpu", "git", "threads"} <= set(result["provenance"])
    assert result["valid"] == trainer.history[result["best_epoch"] - 1]["valid"]
    assert result["valid"]["top1"] == max(entry["valid"]["top1"] for entry in trainer.history)
    keywords = {key: value for key, value in run.model.items() if key != "name"}
    path = str(tmp_path / "out" / "best.pth")
    model = timm.create_model(run.model["name"], num_classes=2, checkpoint_path=path, **keywords)
    assert trainer.evaluate(model, trainer.test_loader) == result["test"]
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]


def test_the_metric_that_is_asked_for_chooses_the_epoch(tmp_path):
    trainer = Trainer(small_run(tmp_path / "images"), tmp_path / "out", [])
    values = [(0.5, 90.0, 95.0), (0.3, 80.0, 99.0), (0.4, 90.0, 98.0)]
    trainer.history = [
        {"epoch": epoch, "loss": 1.0, "valid": {"loss": loss, "top1": top1, "top5": top5}}
        for epoch, (loss, top1, top5) in enumerate(values, 1)
    ]
    assert trainer.best["epoch"] == 3
    for metric, epoch in (("loss", 2), ("top5", 2)):
        trainer.config = replace(trainer.config, train=replace(trainer.config.train, eval_metric=metric))
        assert trainer.best["epoch"] == epoch


def test_the_moving_average_is_what_is_judged_and_kept(tmp_path):
    trainer = finish(small_run(tmp_path / "images", "train.model_ema_decay=0.99"), tmp_path / "out")
    saved = torch.load(tmp_path / "out" / "last.pth", weights_only=True)
    best = trainer.best["epoch"] == 2
    assert best == torch.equal(
        saved["state_dict_ema"]["head.weight"], weights(tmp_path / "out" / "best.pth")["head.weight"]
    )
    assert not torch.equal(saved["state_dict"]["head.weight"], saved["state_dict_ema"]["head.weight"])


def test_another_runs_directory_is_left_alone(tmp_path):
    run = small_run(tmp_path / "images")
    Trainer(run, tmp_path / "out", [])
    with pytest.raises(ValueError, match=r"out holds another run; remedy: another --out, or delete it"):
        Trainer(replace(run, seed=1), tmp_path / "out", [])
    with pytest.raises(ValueError, match=rf"cannot write to {os.devnull}/x: Not a directory"):
        Trainer(run, Path(os.devnull) / "x", [])


def test_a_run_that_diverges_says_so(tmp_path):
    run = small_run(tmp_path / "images", "train.lr=1e30", "train.warmup_epochs=0", "train.epochs=9")
    trainer = finish(run, tmp_path / "out")
    assert trainer.result["status"] == "diverged"
    assert trainer.result["epochs"] < 9 and "test" not in trainer.result
    assert list(Trainer(run, tmp_path / "out", []).run()) == []


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    plain = ("train.mixup=0.0", "train.cutmix=0.0", "train.aa=", "train.reprob=0.0", "train.hflip=0.0")
    still = ("train.scale=(1.0, 1.0)", "train.ratio=(1.0, 1.0)", "train.color_jitter=0.0", "train.clip_grad=1.0")
    run = small_run(tmp_path / "images", *plain, *still, "train.opt=sgd", "train.batch_size=4", "train.drop_path=0.0")
    finish(run, tmp_path / "whole")
    finish(replace(run, train=replace(run.train, grad_accum_steps=2)), tmp_path / "parts")
    assert_close(weights(tmp_path / "parts" / "last.pth"), weights(tmp_path / "whole" / "last.pth"))


def test_what_a_model_exempts_is_not_decayed(tmp_path):
    trainer = Trainer(small_run(tmp_path / "images", model="zoo_hgrn1_tiny_patch16_224"), tmp_path / "out", [])
    decayed = {id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in decayed}
    assert names and all(name.endswith("weight") for name in names)
    assert not {name for name in names if "theta" in name or "lower_bounds" in name or "pos_embed" in name}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=zoo_hgrn2_tny_patch16_224", "timm knows no model .*did you mean zoo_hgrn2_tiny_patch16_224"),
        ("model.heads=3", r"cannot be built .*'heads'; remedy: --set model.KEYWORD=null leaves one out"),
    ],
)
def test_models_that_cannot_be_built_are_explained(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        Trainer(small_run(tmp_path / "images", setting), tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path):
    """torchrun launches them: rows are shared, one process writes, and the sum is a run like any other."""
    run = small_run(tmp_path / "images", "train.aug_repeats=3")
    command = ["train", "vision", "--out", str(tmp_path / "out"), "--data", run.data.name, "--model", run.model["name"]]
    given = [f"--set={part}.{key}={value}" for part in ("model", "train") for key, value in run.to_dict()[part].items()]
    given = [setting for setting in given if not setting.endswith("None") and "model.name" not in setting]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mixerzoo.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, *command, *given], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["epochs"], result["images"]["test"]) == ("done", 2, 6)
    assert done.stdout.count("epoch 2/2") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list_mixers())
def test_every_mixer_reads_handwritten_digits(mixer, tmp_path):
    result = finish(resolve(model=f"zoo_{mixer}_tiny_patch16_224", data="digits"), tmp_path).result
    assert result["test"]["top1"] >= 97.0
