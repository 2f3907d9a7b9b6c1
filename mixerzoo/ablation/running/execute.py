"""Trains, tests and measures one run in this process, or in this one of several that share its batches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mixerzoo.tasks import RunConfig

from .events import Progress, Started
from .store import RunRecord

Report = Callable[["Started | Progress"], None]


@dataclass(frozen=True)
class Options:
    """Says how runs are carried out, whatever the engine.

    argv: the command line that asked for them. retry_out_of_memory: halve the micro-batches and resume, as often as it
    takes. checkpoint_every: seconds, at the least. trackers: of `trackers.py`, besides TensorBoard. processes: how many
    share the batches of a run; memory and energy in its row are the first one's.
    """

    argv: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    retry_out_of_memory: bool = False
    checkpoint_every: float = 30.0
    trackers: tuple[str, ...] = ()
    processes: int = 1


def execute(run: RunConfig, record: RunRecord, report: Report, options: Options | None = None) -> dict[str, Any]:
    """Trains one run in this process and returns its result.

    The seed decides the weights; data have their own stream.
    """
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import broadcast_object_list

    from mixerzoo.ablation.question.cost import STATE_LENGTH
    from mixerzoo.tasks.base import Measurements
    from mixerzoo.tasks.checkpoint import Checkpoint
    from mixerzoo.tasks.meter import Meter
    from mixerzoo.tasks.provenance import provenance
    from mixerzoo.tasks.train import evaluate, fit

    from .trackers import tracking

    meter, task, options = Meter(), run.task, options or Options()
    state = PartialState(cpu=not torch.accelerator.is_available())
    torch.manual_seed(run.seed)
    model = task.build_model(run.backbone)
    if state.process_index:
        torch.manual_seed(run.seed + state.process_index)  # dropout differs between processes, weights don't
    checkpoint = Checkpoint(record.directory / "checkpoint.pt", options.checkpoint_every, {"meter": meter})
    points, status = [], "done"
    with tracking(options.trackers, run, record) as track:
        for point in fit(model, task, run.train, seed=run.seed, checkpoint=checkpoint):
            points.append(point)
            if state.is_main_process:
                record.append(point)
                track(point)
                report(Progress.of(record.run_id, asdict(point)))
            if point.step < run.train.steps and broadcast_object_list([record.stopped])[0]:
                status = "stopped"
                break
    last = points[-1]
    status = "diverged" if last.diverged else status
    split = task.test_split or "valid"
    valid = next((point.metric for point in reversed(points) if point.metric is not None), None)
    value, measured = None, Measurements()
    if status == "done":
        value = evaluate(model, task, run.train, split) if split != "valid" else valid
        measured = task.measure(model, run.backbone)
    tokens, flops = task.cost(model)
    return {
        "status": status,
        "metric": asdict(task.metric),
        "value": value,
        "split": split,
        "valid": None if last.diverged else valid,
        "loss": last.loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": 4 * task.state_size(model, STATE_LENGTH),
        "flops_per_token": flops / tokens,
        "steps": last.step,
        "tokens": last.tokens,
        "tokens_per_second": last.tokens / last.seconds,
        **meter.read(),
        "measurements": asdict(measured),
        "provenance": provenance(options.argv),
    }
