"""The training loop has AdamW, warm-up, cosine and clipping, on Hugging Face Accelerate.

It knows no task and no mixer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from .base import Batch, Task
from .checkpoint import Checkpoint, Stateful
from .config import TrainConfig

EVALUATION_BATCH = 64
IGNORED = -100  # torch's own mark of a label that doesn't count


@dataclass(frozen=True)
class Point:
    """Holds one point of a learning curve. `tokens` and `seconds` count training only; evaluations set `metric`."""

    step: int
    tokens: int
    seconds: float
    loss: float
    metric: float | None = None

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.loss) and (self.metric is None or math.isfinite(self.metric)))


def fit(
    model: nn.Module, task: Task, config: TrainConfig, *, seed: int, checkpoint: Checkpoint | None = None
) -> Iterator[Point]:
    """Trains a model. Yields a point every `log_every` steps and at each evaluation, the last step's included.

    The batches depend on `seed` alone. A loss or gradient that is not finite ends the run with a diverged point:
    that is a result, not an error. Several processes share each batch by rows.

    checkpoint: saves the training now and then, after a point. If one exists, the training resumes and yields the saved
    points again. Weights and further points are then bit for bit those of an uninterrupted run. The batches already
    used are drawn again and skipped.
    """
    AcceleratorState._reset_state()  # a process that trains several models may change the precision between them
    no_gpu = not torch.accelerator.is_available()  # explicit, because several processes on CPUs find each other so
    accelerator = Accelerator(mixed_precision=config.precision, cpu=no_gpu)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, config) / config.lr)
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    model, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    points = [Point(**point) for point in checkpoint.load(accelerator, parts)] if checkpoint else []
    yield from points
    last = points[-1] if points else Point(0, 0, 0.0, math.nan)
    batches = islice(task.batches("train", seed=seed, batch_size=config.batch_size), last.step, None)
    loss_sum, unlogged, tokens, seconds = torch.zeros((), device=accelerator.device), 0, last.tokens, last.seconds
    model.train()
    started = perf_counter()
    for step in range(last.step + 1, config.steps + 1):
        batch = next(batches)
        loss = _backward(model, task, batch, accelerator, config.accumulate)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip or math.inf)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss_sum += torch.where(norm.isfinite(), loss, torch.nan)
        unlogged += 1
        tokens += task.count_tokens(batch)
        evaluate_now = step % config.evaluate_every == 0 or step == config.steps
        if not (evaluate_now or step % config.log_every == 0):
            continue
        mean_loss = accelerator.reduce(loss_sum, "mean").item() / unlogged
        seconds += perf_counter() - started
        metric = evaluate(model, task, config) if evaluate_now and math.isfinite(mean_loss) else None
        points.append(Point(step, tokens, seconds, mean_loss, metric))
        yield points[-1]
        if points[-1].diverged:
            return
        if checkpoint:
            checkpoint.save_if_due(accelerator, parts, points)
        loss_sum, unlogged = torch.zeros_like(loss_sum), 0
        started = perf_counter()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, config: TrainConfig, split: str = "valid") -> float:
    """Returns the task's metric over a whole split. The model is one that `fit` is training or has trained."""
    state = PartialState()
    total = torch.zeros(2, device=state.device, dtype=torch.float32)
    model.eval()
    for batch in task.batches(split, seed=0, batch_size=max(1, EVALUATION_BATCH // config.accumulate)):
        rows = _rows(batch, state.process_index, state.num_processes)
        total += torch.stack([part.float() for part in task.score(model, _moved(rows, state.device))])
    model.train()
    numerator, count = reduce(total, "sum").tolist()
    return numerator / count


def learning_rate(step: int, config: TrainConfig) -> float:
    """Returns the rate of step 0, 1, ...: linear warm-up from 0, then a cosine to `final_lr * lr` at the last step.

    With a horizon, every step has the rate of transformers' schedule, whose first rate is 0.
    """
    if config.horizon is None:
        warmup, end, first = max(1, round(config.warmup * config.steps)), config.steps - 1, 1
    else:
        warmup, end, first = round(config.warmup * config.horizon), config.horizon, 0
    if step < warmup:
        return config.lr * (step + first) / warmup
    progress = (step - warmup) / max(1, end - warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Returns groups with weight decay for matrices alone.

    Norms, biases, other 1-D parameters, embeddings and parameters marked `_no_weight_decay` have none.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "_no_weight_decay", False)
        groups[not exempt].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def _backward(model: nn.Module, task: Task, batch: Batch, accelerator: Accelerator, accumulate: int) -> Tensor:
    """Computes gradients of the whole batch's loss from micro-batches.

    Returns this process's share of that loss, to average.

    Each part is weighted by its number of targets. So for a loss that is a mean over the labels that count, the sum
    equals it up to rounding. Operations across rows (batch norm) see one micro-batch alone, and dropout draws other
    masks.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    parts = [_rows(batch, number * processes + rank, accumulate * processes) for number in range(accumulate)]
    parts = [part for part in parts if _targets(part)]
    targets, total = _targets(batch), torch.zeros((), device=accelerator.device)
    for number, part in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else accelerator.no_sync(model):
            loss = task.loss(model, _moved(part, accelerator.device)) * (_targets(part) * processes / targets)
            accelerator.backward(loss)
        total += loss.detach()
    return total


def _targets(batch: Batch) -> int:
    """Returns the number of labels that count; that of the rows if a batch has no labels."""
    if "labels" in batch:
        return int((batch["labels"] != IGNORED).sum())
    return len(next(iter(batch.values())))


def _rows(batch: Batch, first: int, stride: int) -> Batch:
    return {name: tensor[first::stride] for name, tensor in batch.items()}


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
