"""The training loop: AdamW, warm-up and cosine, clipping, on Hugging Face Accelerate. It knows no task and no mixer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from .base import Batch, Task
from .config import TrainConfig

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Point:
    """One point of a learning curve. `tokens` and `seconds` count training only; `metric` is set where evaluated."""

    step: int
    tokens: int
    seconds: float
    loss: float
    metric: float | None = None

    @property
    def diverged(self) -> bool:
        return not (math.isfinite(self.loss) and (self.metric is None or math.isfinite(self.metric)))


def fit(model: nn.Module, task: Task, config: TrainConfig, *, seed: int) -> Iterator[Point]:
    """Train, and yield a point every `log_every` steps and at each evaluation, the last step's among them.

    The batches depend on `seed` alone. A loss or gradient that is not finite ends the run with a diverged point:
    that is a result, not an error. Several processes share each batch by rows.
    """
    AcceleratorState._reset_state()  # a process that trains several models may change the precision between them
    accelerator = Accelerator(mixed_precision=config.precision)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, config) / config.lr)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = task.batches("train", seed=seed, batch_size=config.batch_size)
    loss_sum, unlogged, tokens, seconds = torch.zeros((), device=accelerator.device), 0, 0, 0.0
    model.train()
    started = perf_counter()
    for step in range(1, config.steps + 1):
        batch = next(batches)
        loss = task.loss(model, _share(batch, accelerator))
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip or math.inf)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss_sum += torch.where(norm.isfinite(), loss.detach(), torch.nan)
        unlogged += 1
        tokens += task.count_tokens(batch)
        evaluate_now = step % config.evaluate_every == 0 or step == config.steps
        if not (evaluate_now or step % config.log_every == 0):
            continue
        mean_loss = accelerator.reduce(loss_sum, "mean").item() / unlogged
        seconds += perf_counter() - started
        metric = evaluate(model, task, accelerator) if evaluate_now and math.isfinite(mean_loss) else None
        point = Point(step, tokens, seconds, mean_loss, metric)
        yield point
        if point.diverged:
            return
        loss_sum, unlogged = torch.zeros_like(loss_sum), 0
        started = perf_counter()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, accelerator: Accelerator, split: str = "valid") -> float:
    """The task's metric over a whole split."""
    model.eval()
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float32)
    for batch in task.batches(split, seed=0, batch_size=EVALUATION_BATCH):
        total += torch.stack([part.float() for part in task.score(model, _share(batch, accelerator))])
    model.train()
    numerator, count = accelerator.reduce(total, "sum").tolist()
    return numerator / count


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of step 0, 1, ...: linear from 0 over the warm-up, then a cosine down to `final_lr * lr` at the last step.

    With a horizon, step for step what transformers' schedule gives, whose first rate is 0.
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
    """Weight decay for matrices only: not norms, biases, other 1-D parameters, embeddings, nor `_no_weight_decay`."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "_no_weight_decay", False)
        groups[not exempt].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def _share(batch: Batch, accelerator: Accelerator) -> Batch:
    """This process's rows of a batch, on its device."""
    rows = slice(accelerator.process_index, None, accelerator.num_processes)
    return {name: tensor[rows].to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
