"""Counts what a run's model costs before anything is trained: parameters, FLOPs, state, and seconds on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from time import perf_counter

import torch

from mixerzoo.tasks import BackboneConfig, RunConfig, Task
from mixerzoo.tasks.train import EVALUATION_BATCH, parameter_groups

STATE_LENGTH = 1024  # tokens after which states are compared
SMALL = 2**20
TRIAL_FLOPS = {"cpu": 2e11, "cuda": 1e13}  # a training step above this is not tried out, for it takes seconds


@dataclass(frozen=True)
class Cost:
    """Holds the cost of a task's model.

    flops: forward, of one training sequence of `tokens` tokens. state: bytes at T = 1024.
    """

    parameters: int
    tokens: int
    flops: int
    state: int

    def training_flops(self, run: RunConfig) -> int:
        """Returns the FLOPs of all steps: the backward pass counts twice the forward pass."""
        return 3 * self.flops * run.train.batch_size * run.train.steps


class CannotBuild(RuntimeError):
    """Says that a mixer's constructor broke down.

    Its runs will fail in the same way, each as a row; the others go on.
    """


_COSTS: dict[str, Cost] = {}


def model_cost(task: Task, backbone: BackboneConfig) -> Cost:
    """Counts the cost on the model itself, once for equal models.

    Raises CannotBuild, or ValueError for a wrong setting.
    """
    key = json.dumps([task.to_dict(), asdict(backbone)], sort_keys=True, default=str)
    if key not in _COSTS:
        model = _build(task, backbone)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        _COSTS[key] = Cost(parameters, *task.cost(model), 4 * task.state_size(model, STATE_LENGTH))
    return _COSTS[key]


def count_parameters(task: Task, backbone: BackboneConfig) -> int:
    """Returns the number of parameters of a task's model."""
    return sum(parameter.numel() for parameter in _build(task, backbone).parameters())


def estimate_seconds(run: RunConfig) -> float | None:
    """Estimates how long a run takes here; None for a model too large to try.

    It measures training steps and one evaluated batch.
    """
    cost = model_cost(run.task, run.backbone)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if 3 * cost.flops * run.train.batch_size > TRIAL_FLOPS[device]:
        return None
    model = run.task.build_model(run.backbone).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=0.0)
    batches = run.task.batches("train", seed=run.seed, batch_size=run.train.batch_size)

    def step() -> float:
        started = perf_counter()
        batch = {name: tensor.to(device) for name, tensor in next(batches).items()}
        run.task.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started

    step()  # which allocates and, on a GPU, compiles
    seconds = min(step() for _ in range(2)) * run.train.steps
    return seconds + _evaluation_seconds(run, model, device) * -(-run.train.steps // run.train.evaluate_every)


@torch.no_grad()
def _evaluation_seconds(run: RunConfig, model: torch.nn.Module, device: str) -> float:
    model.eval()
    started, first = perf_counter(), 0.0
    for number, batch in enumerate(run.task.batches("valid", seed=0, batch_size=EVALUATION_BATCH), 1):
        if number == 1:
            run.task.score(model, {name: tensor.to(device) for name, tensor in batch.items()})
            first = perf_counter() - started
    return first * number


def _build(task: Task, backbone: BackboneConfig) -> torch.nn.Module:
    """Builds a model, a small one within a millisecond; a large one stays on the meta device, slow at first use."""
    small = backbone.dim**2 * backbone.depth <= SMALL
    try:
        with torch.device("cpu" if small else "meta"):
            return task.build_model(backbone)
    except ValueError:
        raise
    except Exception as error:
        raise CannotBuild(f"{type(error).__name__}: {error}") from error
