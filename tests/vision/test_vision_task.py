"""Vision in the grid has laws: the digits are real, the backbones are the zoo's, measurements reach the table."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from mixerzoo import list_mixers
from mixerzoo.ablation.question.grid import Grid, expand
from mixerzoo.ablation.question.settings import Setting, mixer_config
from mixerzoo.ablation.reading.report import write_report
from mixerzoo.ablation.running.execute import execute
from mixerzoo.ablation.running.store import Store
from mixerzoo.tasks import BackboneConfig, RunConfig, TrainConfig
from mixerzoo.tasks.vision import classification
from mixerzoo.tasks.vision.classification import Digits, _shifted, enlarged
from mixerzoo.tasks.vision.image_data import digit_arrays
from mixerzoo.tasks.vision.receptive_field import receptive_field
from mixerzoo.tasks.vision.throughput import forward_peak_bytes, images_per_second
from tests.tolerances import assert_identical

QUICK = TrainConfig(steps=2, batch_size=4, log_every=1, evaluate_every=2)


def backbone(mixer: str) -> BackboneConfig:
    return BackboneConfig(mixer_config(mixer, Digits()), dim=32, depth=1, norm="layer")


def test_the_task_trains_and_validates_on_the_training_part_and_is_judged_on_the_test_part():
    task, arrays = Digits(), digit_arrays()
    labels = torch.cat([batch["labels"] for batch in task.batches("test", seed=0, batch_size=50)])
    assert labels.tolist() == arrays["test"][1].tolist()
    parts = {split: [image.tobytes() for image in images] for split, (images, _) in task._parts.items()}
    assert {split: len(images) for split, images in parts.items()} == {"train": 1293, "valid": 144, "test": 360}
    assert sorted(parts["train"] + parts["valid"]) == sorted(image.tobytes() for image in enlarged(arrays["train"][0]))
    batch = next(Digits(shift=0).batches("train", seed=0, batch_size=64))
    assert (batch["inputs"].shape, batch["labels"].dtype) == ((64, 1, 16, 16), torch.int64)
    images = ((batch["inputs"][:, 0] * classification.STD + classification.MEAN) * 255).round().to(torch.uint8)
    train_images, train_labels = arrays["train"]
    known = {image.tobytes(): int(label) for image, label in zip(enlarged(train_images), train_labels, strict=True)}
    assert [known[image.numpy().tobytes()] for image in images] == batch["labels"].tolist()
    assert abs(float(batch["inputs"].mean())) < 0.3 and 0.7 < float(batch["inputs"].std()) < 1.3


def test_a_shift_moves_an_image_and_lets_paper_in():
    images = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8).repeat(200, 0)
    shifted = _shifted(images, 1, np.random.default_rng(0))
    expected = set()
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            moved = np.roll(images[0], (rows, columns), (0, 1))
            if rows:
                moved[0 if rows == 1 else -1] = 0
            if columns:
                moved[:, 0 if columns == 1 else -1] = 0
            expected.add(moved.tobytes())
    assert {image.tobytes() for image in shifted} == expected


@pytest.mark.parametrize("mixer", list_mixers())
def test_every_mixer_makes_a_model_of_its_configuration(mixer):
    task = Digits(scan_order="snake")
    model = task.build_model(replace(backbone(mixer), gradient_checkpointing=True))
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert {block.mixer.config["name"] for block in model.blocks} == {mixer}
    assert model.grad_checkpointing
    assert task.state_size(model, 16) == model.blocks[0].mixer.state_size(16)
    assert task.count_tokens({"inputs": torch.zeros(3, 1, 16, 16)}) == 3 * 16


@pytest.mark.parametrize(
    "broken", [replace(backbone("gla"), mixer=["gla", "attention"]), replace(backbone("gla"), channel_mixer=None)]
)
def test_what_the_image_model_does_not_take_is_explained(broken):
    with pytest.raises(ValueError, match=r"vision/digits takes one mixer and a channel mixer, got backbone.mixer=gla"):
        Digits().build_model(broken)


def test_scores_count_images():
    batch = {"inputs": torch.zeros(3, 1, 16, 16), "labels": torch.tensor([0, 1, 1])}
    total, count = Digits().score(lambda images: torch.eye(10)[[0, 1, 2]], batch)
    assert (int(total), int(count)) == (2, 3)


def test_a_grids_files_have_names_without_slashes_and_the_table_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(classification, "MEASURED_SIZES", (32, 64))
    settings = ("train.steps=2", "train.evaluate_every=2", "backbone.depth=1", "vision/digits:train.batch_size=4")
    store = Store(tmp_path)
    for run in expand(Grid(("gla", "attention"), ("vision/digits",), (0,), tuple(map(Setting.parse, settings)))):
        assert run.run_id.startswith("vision_digits-") and run.train.batch_size == 4
        assert RunConfig.from_dict(run.to_dict()).run_id == run.run_id
        store.start(run)
        record = store.record(run.run_id)
        record.finish(execute(run, record, lambda progress: None, []))
    first, second = write_report(store).arms
    headings = ["images/s at 32", "peak MiB at 32", "images/s at 64", "peak MiB at 64"]
    for arm in (first, second):
        assert list(arm.measurements) == headings
        assert all(value > 0 for value in arm.measurements.values())
        assert arm.measurements["peak MiB at 64"] > arm.measurements["peak MiB at 32"]
    markdown = (tmp_path / "results.md").read_text()
    assert f"| mixer | {' | '.join(headings)} |" in markdown
    assert markdown.count("images/s and peak memory: forward of zoo_\\*_tiny_patch16_224 with 4 images") == 1
    assert all((tmp_path / f"{kind}-vision_digits.png").exists() for kind in ("curves", "maps"))
    assert "![maps-vision_digits.png]" in markdown
    for pictures in (first.maps, second.maps):
        assert list(pictures) == ["trained on digits", "untrained, 32 pixels"]
        assert [np.asarray(picture).shape for picture in pictures.values()] == [(16, 16), (8, 8)]
        assert all(np.max(picture) == 1 and np.min(picture) >= 0 for picture in pictures.values())
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert all(float(row[heading]) > 0 for row in rows for heading in headings)


@pytest.mark.parametrize("mixer", ["hgrn2", "attention"])
@pytest.mark.parametrize("family", ["zoo_{}_tiny_patch16_224", "zoo_{}_pyramid_tiny"])
def test_a_receptive_field_ends_where_a_model_cannot_look(mixer: str, family: str):
    """If a model reads row by row and only ahead, patches after the middle one don't count; both ways, all count."""
    isotropic = "patch" in family
    options = {"img_size": 48, "depth": 2} if isotropic else {"depths": (1, 1, 1, 1), "embed_dims": (64, 64, 64, 64)}
    for bidirectional in (False, True):
        keywords = {**({} if mixer == "attention" else {"lower_bound": 0.9}), "bidirectional": bidirectional}
        model = timm.create_model(family.format(mixer), mixer_kwargs=keywords, **options).train()
        size = 48 if isotropic else 96
        field = receptive_field(model, torch.randn(2, 3, size, size))
        assert field.shape == (size, size) and field.max() == 1 and model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        if isotropic:
            patches = field.unflatten(0, (3, 16)).unflatten(2, (3, 16)).amax((1, 3)).flatten()
            assert (patches[:5] > 0).all() and bool((patches[5:] > 0).all()) == bidirectional


def test_peak_memory_is_the_most_that_lives_at_once():
    """The model is x -> 2x -> sum of rows: while doubling, one copy of x lives; nothing else is as large."""

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                y = (x * 2).sum(1)
            return y

    images = torch.zeros(1000, 500)
    assert images.numel() * 4 <= forward_peak_bytes(Twice(), images) < 1.1 * images.numel() * 4
    assert images_per_second(Twice(), images) > 0


def test_the_same_seed_shows_the_same_digits():
    first, second = (next(Digits().batches("train", seed=3, batch_size=8)) for _ in range(2))
    assert_identical(first, second)
    assert Digits().fingerprint == Digits(shift=0).fingerprint
