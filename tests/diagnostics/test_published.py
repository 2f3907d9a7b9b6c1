"""Published grids: every cell is a run that can be built."""

from __future__ import annotations

import json

import pytest
import torch

from mixerzoo import list_mixers
from mixerzoo.ablation.settings import Setting, configure
from mixerzoo.tasks import build_task
from mixerzoo.tasks.diagnostics.published import list_grids, read_grid


@pytest.mark.parametrize("grid", list_grids())
@pytest.mark.parametrize("mixer", list_mixers())
def test_every_cell_is_a_run(grid, mixer) -> None:
    task = build_task(grid.partition("_")[0])
    runs = [configure(mixer, task, 0, tuple(Setting.of(*item) for item in cell.items())) for cell in read_grid(grid)]
    assert len({json.dumps(run.to_dict()) for run in runs}) == len(runs)
    for run in {run.backbone.dim: run for run in runs}.values():
        with torch.device("meta"):
            run.task.build_model(run.backbone)


def test_zoologys_grid_is_the_published_one() -> None:
    cells = read_grid("mqar_zoology")
    assert len(cells) == 4 * 4 * 4
    assert {(cell["task.length"], cell["task.num_pairs"]) for cell in cells} == {
        (64, 4),
        (128, 8),
        (256, 16),
        (512, 64),
    }
    assert {cell["backbone.dim"] for cell in cells} == {64, 128, 256, 512}
    assert len({cell["train.lr"] for cell in cells}) == 4
    assert all(cell["train.steps"] * cell["train.batch_size"] == 64 * 100_000 for cell in cells)
    assert all(cell["backbone.channel_mixer"] is None for cell in cells)
    assert all(cell["hgrn2:backbone.mixer.expand"] == min(cell["backbone.dim"], 128) for cell in cells)


def test_unknown_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'mqar_zoo'; did you mean mqar_zoology"):
        read_grid("mqar_zoo")
