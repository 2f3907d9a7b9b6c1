"""The published recipes are complete, of the published size, and their schedules are odd in the published way."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from mixerzoo import list_mixers
from mixerzoo.ablation.question.settings import Setting, configure
from mixerzoo.tasks import RunConfig, TrainConfig, build_task
from mixerzoo.tasks.lra.recipe import lra_recipe, lra_recipes
from mixerzoo.tasks.train import fit, learning_rate
from tests.tolerances import assert_close

SHORT = {
    "lra/listops": {"min_length": 3, "max_length": 14, "max_depth": 3, "max_args": 3, "held_out_samples": 4},
    "lra/pathfinder": {"resolution": 16, "contour_length": 3, "samples": 20},
}
TASKS = ("lra/listops", "lra/text", "lra/retrieval", "lra/image", "lra/pathfinder", "lra/path-x")
IDS = {"lra/listops": 16, "lra/text": 135, "lra/retrieval": 98}
PUBLISHED = {  # the table of accuracies in figures/lra.png of OpenNLPLab/HGRN2
    "hgrn1": (59.95, 88.14, 94.23, 88.69, 92.92, 97.50),
    "hgrn2": (60.52, 88.97, 95.07, 89.33, 93.95, 98.12),
}
each_recipe = pytest.mark.parametrize(("name", "task"), [(name, task) for name in PUBLISHED for task in TASKS])


def run_of(name: str, task: str, mixer: str | None = None) -> RunConfig:
    recipe = lra_recipe(task, name, mixer or name)
    settings = tuple(Setting.of(path, value) for path, value in recipe.settings)
    return configure(mixer or name, build_task(task), recipe.seed, settings)


def test_there_is_one_a_task_and_model() -> None:
    assert len(lra_recipes()) == 12
    assert all(lra_recipes(task) == ["hgrn1", "hgrn2"] for task in TASKS)


@each_recipe
def test_the_published_accuracy_stands_beside_it(name, task) -> None:
    recipe = lra_recipe(task, name, name)
    assert recipe.published["accuracy"] == PUBLISHED[name][TASKS.index(task)]
    assert recipe.seed == 2222


def by_hand(run: RunConfig, ids: int | None, channels: int) -> int:
    """Counts parameters from the equations: maps, norms and bounds, written down anew."""
    d, depth = run.backbone.dim, run.backbone.depth
    classes = {"lra/listops": 10, "lra/image": 10}.get(run.task.name, 2)
    hidden = int(run.backbone.channel_mixer.multiplier * d)
    glu = 2 * (d * hidden + hidden) + hidden * d + d
    if run.backbone.label == "hgrn1":  # forget gate, c, output gate and output map; LayerNorm of 2 d; two thetas
        mixer = (d * d + d) + 2 * (2 * d * d + 2 * d) + (2 * d * d + d) + 4 * d + 2 * d
    else:  # q, forget gate, i and output map; LayerNorm of d
        mixer = 4 * (d * d + d) + 2 * d
    block = mixer + glu + 2 * 2 * d
    embedding = ids * d if ids else channels * d + d
    head = d * classes + classes
    if run.task.name == "lra/retrieval":
        head = (4 * d * d + d) + head
    return embedding + depth * block + depth * d + 2 * d + head


@each_recipe
def test_the_model_has_the_size_that_its_equations_say(name, task) -> None:
    run = run_of(name, task)
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in run.task.build_model(run.backbone).parameters())
    channels = 3 if task == "lra/image" else 1
    assert counted == by_hand(run, IDS.get(task), channels)
    assert counted == lra_recipe(task, name, name).published["parameters_here"]


@each_recipe
def test_every_mixer_takes_every_recipe(name, task) -> None:
    for mixer in list_mixers():
        run = run_of(name, task, mixer)
        assert run.backbone.label == mixer
        assert RunConfig.from_dict(run.to_dict()) == run
        with torch.device("meta"):
            model = run.task.build_model(run.backbone)
        orders = {"hgrn1": "both", "hgrn2": "series" if task == "lra/path-x" else "both"}
        encoder = model.encoder
        assert encoder.scan_order == (orders[name] if task in TASKS[3:] else "row")
        assert all(block.mixer.bidirectional for block in encoder.stack.blocks)


@each_recipe
def test_a_run_counts_epochs_of_full_batches(name, task) -> None:
    train = run_of(name, task).train
    images = {"lra/listops": 96_000, "lra/text": 25_000, "lra/retrieval": 147_086, "lra/image": 45_000}
    assert train.evaluate_every == images.get(task, 160_000) // train.batch_size
    assert train.steps % train.evaluate_every == 0


def rates(name: str, task: str) -> tuple[TrainConfig, list[float]]:
    """Returns the rates at a hundred points of the run, as shares of the peak, the last step's included."""
    train = run_of(name, task).train
    steps = [round(share * (train.steps - 1) / 100) for share in range(101)]
    return train, [learning_rate(step, train) / train.lr for step in steps]


@pytest.mark.parametrize(
    ("name", "task", "last"),
    [
        ("hgrn1", "lra/listops", 0.18),
        ("hgrn1", "lra/text", 0.69),
        ("hgrn1", "lra/retrieval", 0.02),
        ("hgrn1", "lra/image", 0.0),
        ("hgrn1", "lra/pathfinder", 0.59),
        ("hgrn1", "lra/path-x", 0.61),
        ("hgrn2", "lra/listops", 0.18),
        ("hgrn2", "lra/text", 0.95),
        ("hgrn2", "lra/retrieval", 0.57),
        ("hgrn2", "lra/image", 0.05),
        ("hgrn2", "lra/pathfinder", 0.93),
        ("hgrn2", "lra/path-x", 0.83),
    ],
)
def test_a_run_ends_where_the_published_schedule_does(name, task, last) -> None:
    assert round(rates(name, task)[1][-1], 2) == last


def test_path_x_never_ends_its_warm_up() -> None:
    train, found = rates("hgrn2", "lra/path-x")
    assert train.warmup * train.horizon == 150_000 > train.steps
    assert found == sorted(found)


@pytest.mark.parametrize(("task", "floor", "peak"), [("lra/image", 50_000, 70_000), ("lra/path-x", 500_000, 850_000)])
def test_hgrn1s_cosine_climbs_back_to_the_peak(task, floor, peak) -> None:
    train = run_of("hgrn1", task).train
    assert floor < peak < train.steps
    assert learning_rate(floor, train) < 1e-9 * train.lr
    assert_close(torch.tensor(learning_rate(peak, train)), torch.tensor(train.lr))


@pytest.mark.parametrize(("steps", "warmup", "horizon"), [(90, 0.6, 50), (125, 0.3, 500), (64, 0.1, 50), (9, 0.0, 5)])
def test_a_horizon_is_the_published_schedule_step_for_step(steps, warmup, horizon) -> None:
    """The comparison is transformers' get_cosine_schedule_with_warmup, written down from its definition."""
    config = TrainConfig(steps=steps, warmup=warmup, horizon=horizon, final_lr=0.0, lr=2.0)
    ramp = round(warmup * horizon)
    for step in range(steps):
        share = step / ramp if step < ramp else 0.5 * (1 + math.cos(math.pi * (step - ramp) / (horizon - ramp)))
        assert_close(torch.tensor(learning_rate(step, config)), torch.tensor(2.0 * share))


def test_no_clipping_is_no_clipping() -> None:
    """A clip of 0 leaves the gradient as it is, as one that is never reached does."""

    def losses(clip: float) -> list[float]:
        task = build_task({"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8})
        config = TrainConfig(steps=4, batch_size=4, log_every=1, evaluate_every=4, clip=clip)
        torch.manual_seed(0)
        model = task.build_model(replace(run_of("hgrn2", "lra/text").backbone, dim=16, depth=1))
        return [point.loss for point in fit(model, task, config, seed=0)]

    assert losses(0.0) == losses(1e6)
    assert losses(0.0) != losses(1e-6)


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in PUBLISHED for task in SHORT])
def test_a_recipe_trains(name, task) -> None:
    """It is shortened: less width, less data; learning rate, norm and scans are its own."""
    run = run_of(name, task)
    task_ = build_task({**run.task.to_dict(), **SHORT[task]})
    backbone = replace(run.backbone, dim=8, depth=2)
    train = replace(run.train, steps=2, batch_size=4, horizon=4, precision="no", evaluate_every=2)
    torch.manual_seed(0)
    model = task_.build_model(backbone)
    (point,) = fit(model, task_, train, seed=run.seed)
    assert not point.diverged


@pytest.mark.parametrize(
    ("task", "recipe", "message"),
    [
        (
            "lra/text",
            "hgrn3",
            r"unknown recipe for lra/text 'hgrn3'; did you mean hgrn2 or hgrn1.*remedy: one of these",
        ),
        ("diagnostics/parity", "hgrn2", r"diagnostics/parity has no recipes, got 'hgrn2'; remedy: leave it out"),
        ("lra/text", "none.toml", r"cannot read the recipe 'none.toml'"),
    ],
)
def test_unknown_recipes_are_explained(task, recipe, message) -> None:
    with pytest.raises(ValueError, match=message):
        lra_recipe(task, recipe, "hgrn2")


def test_a_file_of_ones_own_is_a_recipe(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[task]\nname = "lra/text"\n[backbone]\nmixer = { name = "gla", num_heads = 2 }\ndim = 32\n')
    assert lra_recipe("lra/text", file, "gla").settings == (("backbone.dim", 32), ("backbone.mixer.num_heads", 2))
    assert lra_recipe("lra/text", file, "hgrn2").settings == (("backbone.dim", 32),)
    with pytest.raises(ValueError, match=re.escape("is for lra/text, not for lra/image")):
        lra_recipe("lra/image", file, "gla")
    file.write_text("[model]\ndim = 3\n")
    with pytest.raises(ValueError, match="unknown table of the recipe 'model'"):
        lra_recipe("lra/text", file, "gla")
