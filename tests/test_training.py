"""Laws of the training loop say: an interrupted run ends like an undisturbed one, and micro-batches change nothing."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixerzoo.tasks import BackboneConfig, TrainConfig, build_task
from mixerzoo.tasks.base import Task
from mixerzoo.tasks.checkpoint import Checkpoint
from mixerzoo.tasks.files import replacing
from mixerzoo.tasks.meter import Meter
from mixerzoo.tasks.train import IGNORED, Point, evaluate, fit
from tests.tolerances import assert_close, assert_identical

CONFIG = TrainConfig(steps=10, batch_size=4, log_every=1, evaluate_every=3)
BACKBONE = BackboneConfig({"name": "hgrn2", "expand": 4}, dim=16, depth=2, dropout=0.2)


@pytest.fixture
def task() -> Task:
    return build_task({"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8})


def build(task: Task, backbone: BackboneConfig = BACKBONE) -> nn.Module:
    torch.manual_seed(0)
    return task.build_model(backbone)


def curve(points: list[Point]) -> list[tuple]:
    return [(point.step, point.tokens, point.loss, point.metric) for point in points]


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, accumulate=2), replace(CONFIG, precision="bf16")])
def test_interrupted_anywhere_it_ends_bit_for_bit_as_if_it_had_not_been(task, tmp_path, monkeypatch, config):
    monkeypatch.setattr("mixerzoo.tasks.checkpoint.LARGEST_SHARE", math.inf)  # after every point
    undisturbed = build(task)
    expected = curve(list(fit(undisturbed, task, config, seed=3)))
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", every=0)
    for stop in (2, 3, 7):
        for point in fit(build(task), task, config, seed=3, checkpoint=checkpoint):
            if point.step == stop:  # the training is dropped before it saves this point
                break
        for generator in (torch.manual_seed, random.seed, np.random.seed):
            generator(stop)
    model, forwards = build(task), []
    model.register_forward_hook(lambda module, *_: forwards.append(1) if module.training else None)
    found = curve(list(fit(model, task, config, seed=3, checkpoint=checkpoint)))
    assert found == expected
    assert len(forwards) == config.accumulate * (10 - 6)
    assert_identical(dict(model.state_dict()), dict(undisturbed.state_dict()))


def test_a_checkpoint_is_seldom_enough(task, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    list(fit(build(task), task, CONFIG, seed=0, checkpoint=Checkpoint(path, every=3600)))
    assert not path.exists()
    now, saved = [0.0], []
    monkeypatch.setattr("mixerzoo.tasks.checkpoint.perf_counter", lambda: now[0])

    def slow(content, file) -> None:
        saved.append(now[0])
        now[0] += 2

    monkeypatch.setattr(torch, "save", slow)
    checkpoint = Checkpoint(path, every=10)
    for _ in fit(build(task), task, replace(CONFIG, steps=100), seed=0, checkpoint=checkpoint):
        now[0] += 1
    assert saved == [10.0, 52.0, 94.0]  # two seconds each, a twentieth of the time


def test_a_checkpoint_of_another_training_is_refused(task, tmp_path):
    path = tmp_path / "checkpoint.pt"
    list(fit(build(task), task, CONFIG, seed=0, checkpoint=Checkpoint(path, every=0)))
    other = build(task, replace(BACKBONE, dim=32))
    with pytest.raises(RuntimeError, match=r"cannot go on from .*checkpoint.pt; remedy: delete it, to start again"):
        list(fit(other, task, CONFIG, seed=0, checkpoint=Checkpoint(path)))
    path.write_bytes(b"torn")
    with pytest.raises(RuntimeError, match=r"cannot go on from"):
        list(fit(build(task), task, CONFIG, seed=0, checkpoint=Checkpoint(path)))


class Uneven:
    """Makes a task's batch with rows of one to many targets."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def batches(self, split: str, *, seed: int, batch_size: int):
        for batch in self.task.batches(split, seed=seed, batch_size=batch_size):
            labels = batch["inputs"].clone()
            for row, targets in enumerate(labels):
                targets[1 + row :] = IGNORED
            labels[-1] = IGNORED
            yield {**batch, "labels": labels}


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_micro_batches_have_the_whole_batchs_loss_and_gradients(task, parts):
    backbone = replace(BACKBONE, dropout=0.0)
    config = replace(CONFIG, steps=2, precision="no", log_every=1, evaluate_every=5)
    whole, cut = build(task, backbone).double(), build(task, backbone).double()
    expected = list(fit(whole, Uneven(task), config, seed=0))
    found = list(fit(cut, Uneven(task), replace(config, accumulate=parts), seed=0))
    assert_close(*(torch.tensor([point.loss for point in points]) for points in (found, expected)))
    assert_close(dict(cut.state_dict()), dict(whole.state_dict()))


def test_the_metric_of_a_split_does_not_depend_on_how_it_is_cut(task):
    model = build(task)
    assert evaluate(model, task, CONFIG, "test") == evaluate(model, task, replace(CONFIG, accumulate=4), "test")
    assert model.training


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_meter_counts_on_after_an_interruption(no_gpu):
    memory = torch.ones(20_000_000)
    meter = Meter()
    assert meter.read()["peak_memory_bytes"] >= memory.numel() * 4
    meter.load_state_dict({"seconds": 1000.0, "energy_joules": 5.0, "peak_memory_bytes": 2**60})
    read = meter.read()
    assert 1000 <= read["seconds"] < 2000
    assert read["peak_memory_bytes"] == 2**60


def test_a_meter_begins_with_the_peak_forgotten(no_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("mixerzoo.tasks.meter.PROCESS", tmp_path)
    (tmp_path / "status").write_text("VmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\n")
    (tmp_path / "clear_refs").touch()
    assert Meter().read()["peak_memory_bytes"] == 2048 * 1024
    assert (tmp_path / "clear_refs").read_text() == "5"  # proc(5): the peak becomes what is resident now
    (tmp_path / "status").unlink()
    assert Meter().read()["peak_memory_bytes"] is None


def test_energy_is_the_processors_counters_which_start_again_at_their_end(no_gpu, tmp_path, monkeypatch):
    for name, energy in (("intel-rapl:0", 9_000_000), ("intel-rapl:1", 1_000_000), ("intel-rapl:0:0", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(energy))
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
    monkeypatch.setattr("mixerzoo.tasks.meter.POWERCAP", tmp_path)
    meter = Meter()
    meter.load_state_dict({"seconds": 1.0, "energy_joules": 20.0, "peak_memory_bytes": None})
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1500000")
    assert meter.read()["energy_joules"] == pytest.approx(20 + 3 + 0.5)
    monkeypatch.setattr("mixerzoo.tasks.meter.POWERCAP", tmp_path / "nothing")
    assert Meter().read()["energy_joules"] is None


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_no_rest(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        file.write(b"ne")
        raise OSError("full")
    assert (path.read_text(), [found.name for found in tmp_path.iterdir()]) == ("old", ["file"])
