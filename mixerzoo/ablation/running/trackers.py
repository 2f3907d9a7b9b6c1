"""Sends curves to TensorBoard, Weights & Biases, Trackio and MLflow while a run lasts, by Accelerate's trackers.

TensorBoard's events stand in the run's directory, so `tensorboard --logdir runs/NAME` shows the runs in one figure.
The others have a project of the grid's name, and in it a run for each of its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mixerzoo.tasks import RunConfig
from mixerzoo.tasks.config import flatten

from .store import RunRecord

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from mixerzoo.tasks.train import Point

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that is unknown or isn't installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise ValueError(f"the tracker {name} isn't installed; remedy: pip install {name}")


@contextmanager
def tracking(names: Sequence[str], run: RunConfig, record: RunRecord) -> Iterator[Callable[[Point], None]]:
    """Yields a function that takes the points of a run's curve while the block lasts.

    TensorBoard has them wherever it is installed.
    """
    always = ["tensorboard"] if find_spec("tensorboard") else []
    with ExitStack() as stack:
        trackers = [_open(name, run, record) for name in dict.fromkeys([*always, *names])]
        for tracker in trackers:
            stack.callback(tracker.finish)

        def track(point: Point) -> None:
            values = {"train/loss": point.loss, "train/tokens_per_second": point.tokens / point.seconds}
            if point.metric is not None:
                values[f"valid/{run.task.metric.name}"] = point.metric
            for tracker in trackers:
                tracker.log(values, step=point.step)

        yield track


def _open(name: str, run: RunConfig, record: RunRecord) -> GeneralTracker:
    from accelerate import tracking as classes

    root, run_id = record.directory.parent, record.run_id
    if name == "tensorboard":
        tracker: GeneralTracker = classes.TensorBoardTracker(run_id, root)
        tracker.start()
        return tracker
    if name == "wandb":
        tracker = classes.WandBTracker(root.name, name=run_id, id=run_id, resume="allow", dir=str(record.directory))
    elif name == "trackio":
        tracker = classes.TrackioTracker(root.name, name=run_id, resume="allow")
    else:
        tracker = classes.MLflowTracker(experiment_name=root.name, run_name=run_id)
    tracker.start()
    tracker.store_init_configuration({path: _plain(value) for path, value in flatten(run.to_dict()).items()})
    return tracker


def _plain(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
