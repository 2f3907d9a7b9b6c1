"""Arrow pointing has labels that a walk along the arrow confirms, and pictures that agree with the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mixerzoo.tasks import BackboneConfig, build_task
from mixerzoo.tasks.diagnostics.arrows import ArrowPointing, Scene, draw
from tests.tolerances import assert_statistic


def walk(scene: Scene, size: int) -> bool:
    """Takes small steps from the tip on, in the arrow's direction, until the disc or the end of the image."""
    (tail_x, tail_y), (x, y) = scene.tail, scene.tip
    length = math.hypot(x - tail_x, y - tail_y)
    dx, dy = (x - tail_x) / length / 4, (y - tail_y) / length / 4
    while 0 <= x < size and 0 <= y < size:
        if math.hypot(x - scene.centre[0], y - scene.centre[1]) <= scene.radius:
            return True
        x, y = x + dx, y + dy
    return False


@pytest.mark.parametrize("split", ["train", "trained", "valid", "test"])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_hits_are_where_a_walk_along_the_arrow_ends_in_the_disc(split, scale) -> None:
    task = ArrowPointing(size=round(192 * scale), valid_size=round(384 * scale), patch_size=8, scale=scale)
    size = task.size if split in ("train", "trained") else task.valid_size
    hits = []
    for index in range(400):
        scene = task.scene(split, index)
        assert walk(scene, size) == bool(scene.hit)
        assert all(0 <= value < size for value in (*scene.tail, *scene.tip, *scene.centre))
        assert math.dist(scene.centre, scene.tip) > scene.radius
        hits.append(scene.hit)
    assert_statistic("hits", np.mean(hits), 0.5, deviation=0.5, count=400)


def test_pictures_show_the_disc_and_the_arrow_and_nothing_else() -> None:
    task = ArrowPointing(size=192, valid_size=384, patch_size=16, scale=1.0)
    y, x = np.mgrid[:192, :192]
    for index in range(50):
        scene = task.scene("train", index)
        black = draw(scene, 192) == 0
        from_centre = np.hypot(x - scene.centre[0], y - scene.centre[1])
        assert black[from_centre < scene.radius - 1].all()
        middle = np.add(scene.tail, scene.tip) / 2
        length = math.dist(scene.tail, scene.tip)
        near_arrow = np.hypot(x - middle[0], y - middle[1]) < length / 2 + scene.width + 1
        assert not black[(from_centre > scene.radius + 2) & ~near_arrow].any()
        for end in (scene.tail, scene.tip):
            assert black[round(end[1]) - 1 : round(end[1]) + 2, round(end[0]) - 1 : round(end[0]) + 2].any()


def test_an_image_depends_on_its_number_alone() -> None:
    task = ArrowPointing(valid_images=6)
    inputs = torch.cat([batch["inputs"] for batch in task.batches("valid", seed=0, batch_size=4)])
    assert inputs.shape == (6, 1, 192, 192)
    assert np.array_equal(1 - draw(task.scene("valid", 5), 192) / np.float32(255), inputs[5, 0].numpy())
    trained = next(task.batches("trained", seed=0, batch_size=4))["inputs"]
    assert trained.shape == (4, 1, 96, 96)
    first = [next(task.batches("train", seed=seed, batch_size=4)) for seed in (1, 1, 2)]
    assert torch.equal(first[0]["inputs"], first[1]["inputs"])
    assert not torch.equal(first[0]["inputs"], first[2]["inputs"])


def test_one_model_takes_both_sizes_and_is_measured_on_both() -> None:
    task = ArrowPointing(size=80, valid_size=160, patch_size=16, valid_images=3)
    model = task.build_model(BackboneConfig("gla", dim=32, depth=1))
    for split in ("train", "valid"):
        batch = next(task.batches(split, seed=0, batch_size=2))
        assert model(batch["inputs"]).shape == (2, 2)
    assert set(task.measure(model, BackboneConfig()).values) == {"at 80 pixels"}


@pytest.mark.parametrize("field", ["patch_size", "train_images", "valid_images"])
def test_nothing_to_see_is_refused(field) -> None:
    with pytest.raises(ValueError, match=f"task.{field} must be at least 1, got 0"):
        build_task({"name": "diagnostics/arrow-pointing", field: 0})


@pytest.mark.parametrize("settings", [{"size": 100}, {"size": 64}, {"valid_size": 97}])
def test_impossible_sizes_are_refused(settings) -> None:
    with pytest.raises(ValueError, match=r"must be a multiple of patch_size = 8 and at least 75 at scale = 0\.5, got"):
        build_task({"name": "diagnostics/arrow-pointing", **settings})
