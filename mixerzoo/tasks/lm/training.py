"""Trains a language model on Hugging Face Accelerate, in one process or many (DDP, FSDP2), and resumes after a kill.

    OUT/config.json     the run                     OUT/checkpoints/step-N   everything needed to resume; the last few
        history.jsonl   one line a logged update        model                the model and its tokenizer, at the end
        result.json     written at the end: if it exists, the run is finished

A checkpoint decides everything after it, so a run that was killed and resumed ends as if nothing had happened. Several
machines need OUT on a file system that they share.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor

from mixerzoo.tasks.files import read_json, to_json, write_atomically
from mixerzoo.tasks.lm.data.text_data import IGNORED, ahead, load_data, make_batch
from mixerzoo.tasks.lm.data.token_files import count_bytes
from mixerzoo.tasks.provenance import provenance
from mixerzoo.tasks.train import parameter_groups

from .build import build_model
from .recipe import LMRun


@dataclass(frozen=True)
class Progress:
    """Says where a run stands. `loss`, in nats, is the mean since the last report; `valid` is set where evaluated."""

    step: int
    steps: int
    loss: float
    lr: float
    tokens: int
    tokens_per_second: float
    valid: dict[str, float] | None = None


class Trainer:
    """Trains one run in one directory. The constructor makes every check, `run` resumes where `out` left off.

    Several processes (torchrun, accelerate launch) share each batch by rows; the first one writes. Raises ValueError
    if `out` holds another run and for a batch that can't be shared, and whatever `build_model` and `load_data` raise.
    """

    def __init__(self, run: LMRun, out: str | Path, argv: list[str]) -> None:
        self.config, self.out, self.argv = run, Path(out), argv
        train = run.train
        AcceleratorState._reset_state()  # a process that trains several models may change the precision between them
        self.accelerator = Accelerator(
            mixed_precision=train.precision,
            dynamo_backend="inductor" if train.compile else None,
            log_with=_trackers(train.wandb),
            project_dir=self.out,
            cpu=not torch.accelerator.is_available(),  # said aloud, for several processes on CPUs find each other so
        )
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if train.batch_size % (self.processes * train.grad_accum_steps):
            raise ValueError(
                "train.batch_size must be a multiple of processes * grad_accum_steps = "
                f"{self.processes * train.grad_accum_steps}, got {train.batch_size}"
            )
        with self.accelerator.local_main_process_first():  # which tokenizes
            self.data = load_data(run.data, seed=run.seed, rank=self.rank, processes=self.processes)
        set_seed(run.seed)
        model = build_model(run, self.data)
        if train.grad_checkpointing:
            # The older name is deprecated where there is a newer one.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        self.parameters = model.num_parameters()
        groups = parameter_groups(model, train.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        set_seed(run.seed, device_specific=True)  # dropout differs between processes, weights don't
        self.step, self.seconds, self.history = 0, 0.0, list[dict[str, Any]]()
        self._loss, self._unlogged, self._data_state = torch.zeros((), device=self.accelerator.device), 0, None
        self._open()

    def run(self) -> Iterator[Progress]:
        """Trains, evaluates and saves the model. A finished run has nothing left to do."""
        if self.result is None:
            if not self._diverged:
                yield from self._updates()
            self._finish()
        self.accelerator.end_training()

    @property
    def result(self) -> dict[str, Any] | None:
        """Returns what result.json holds; None until the run is finished."""
        return read_json(self.out / "result.json")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Scores the validation text's rows: loss in nats and perplexity a token, and bits per byte of the text."""
        valid, length, train = self.data.valid, self.config.data.length, self.config.train
        rows = min((len(valid) - 1) // length, train.eval_rows or len(valid))
        share = max(1, train.batch_size // (self.processes * train.grad_accum_steps))
        device = self.accelerator.device
        sums = torch.zeros(2, device=device, dtype=torch.float64 if device.type != "mps" else torch.float32)
        self.model.eval()
        for first in range(self.rank * share, rows + self.rank * share, self.processes * share):
            # As many calls in every process, for they may share the weights: rows beyond the last one don't count.
            places = np.arange(first, first + share)
            starts = np.minimum(places, rows - 1)[:, None] * length
            batch = self._batch(np.asarray(valid.ids[starts + np.arange(length + 1)]))
            batch["shift_labels"][torch.from_numpy(places >= rows)] = IGNORED
            loss = self.model(**batch, num_items_in_batch=1, use_cache=False, skip_logits=True).loss
            sums += torch.stack([loss, (batch["shift_labels"] != IGNORED).sum()]).to(sums)
        self.model.train()
        nats, tokens = self.accelerator.reduce(sums, "sum").tolist()
        scores = {"loss": nats / tokens, "perplexity": math.exp(min(nats / tokens, 700.0))}
        if self.data.tokenizer is not None:
            targets = valid.ids[1 : rows * length + 1]
            if self.config.data.packing == "documents":
                targets = targets[valid.ids[: rows * length] != self.data.end]
            scores["bits_per_byte"] = nats / math.log(2) / count_bytes(self.data.tokenizer, targets)
        return scores

    @property
    def _diverged(self) -> bool:
        return bool(self.history) and not math.isfinite(_number(self.history[-1]["loss"]))

    def _updates(self) -> Iterator[Progress]:
        train, data = self.config.train, self.config.data
        self.model.train()
        supply = self.data.train.batches(self.step, train.batch_size, self.rank, self.processes, self._data_state)
        started, logged = perf_counter(), self.step
        for rows, self._data_state in ahead(supply):
            if self.step == train.steps:
                return
            self.step += 1
            lr = train.learning_rate(self.step)
            self._loss += self._update(rows, lr)
            self._unlogged += 1
            evaluated = self.step % train.eval_every == 0 or self.step == train.steps
            if evaluated or self.step % train.log_every == 0:
                loss = self.accelerator.reduce(self._loss, "sum").item() / self._unlogged
                seconds, fresh = perf_counter() - started, self.step - logged
                self.seconds += seconds
                valid = self.evaluate() if evaluated and math.isfinite(loss) else None
                rate = fresh * train.batch_size * data.length / seconds
                tokens = self.step * train.batch_size * data.length
                progress = Progress(self.step, train.steps, loss, lr, tokens, rate, valid)
                self._record(progress)
                yield progress
                if not math.isfinite(loss):
                    return
                self._loss, self._unlogged = torch.zeros_like(self._loss), 0
                started, logged = perf_counter(), self.step
            if self.step % train.save_every == 0 or self.step == train.steps:
                self._save()

    def _update(self, rows: np.ndarray, lr: float) -> Tensor:
        """Does one step of the optimizer on this process's rows.

        Returns this process's part of the whole batch's mean loss.
        """
        train = self.config.train
        batches = [self._batch(part) for part in np.split(rows, train.grad_accum_steps)]
        targets = torch.stack([(batch["shift_labels"] != IGNORED).sum() for batch in batches]).sum()
        targets = self.accelerator.reduce(targets, "sum")
        total = torch.zeros_like(self._loss)
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(**batch, num_items_in_batch=targets, use_cache=False).loss
                self.accelerator.backward(loss * self.processes)  # gradients are averaged, and parts add up to a mean
            total += loss.detach()
        if train.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), train.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        batch = make_batch(rows, self.config.data.packing, self.data.end)
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def _open(self) -> None:
        """Claims the directory, or resumes the run that it holds."""
        config = self.config.to_dict()
        found = read_json(self.out / "config.json")
        if found is not None and found != config:
            raise ValueError(f"{self.out} holds another run; remedy: another --out, or delete it")
        if self.accelerator.is_main_process:
            try:
                (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cannot write to {self.out}: {error.strerror}") from error
            write_atomically(self.out / "config.json", to_json(config))
        self.accelerator.wait_for_everyone()
        if saved := checkpoints(self.out):
            self.accelerator.load_state(str(saved[-1]))
            state = read_json(saved[-1] / "trainer.json") or {}
            self.step, self.seconds, self._unlogged = state["step"], state["seconds"], state["unlogged"]
            mine = read_json(saved[-1] / f"process-{self.rank}.json") or {"data": None, "loss": 0.0}
            self._data_state, self._loss = mine["data"], self._loss + _number(mine["loss"])
        self.history = [entry for entry in read_history(self.out) if entry["step"] <= self.step]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            lines = (to_json(entry, indent=None) + "\n" for entry in self.history)
            write_atomically(self.out / "history.jsonl", "".join(lines))
        self.accelerator.init_trackers(self.config.train.wandb or "tensorboard", config={"run": self.config.run_id})

    def _record(self, progress: Progress) -> None:
        entry = {name: getattr(progress, name) for name in ("step", "loss", "lr", "tokens", "valid")}
        entry["seconds"] = self.seconds
        self.history.append(entry)
        if self.accelerator.is_main_process:
            with open(self.out / "history.jsonl", "a", encoding="utf-8") as file:
                file.write(to_json(entry, indent=None) + "\n")
        values = {"loss": progress.loss, "lr": progress.lr, "tokens_per_second": progress.tokens_per_second}
        scores = {f"valid/{name}": value for name, value in (progress.valid or {}).items()}
        self.accelerator.log({f"train/{name}": value for name, value in values.items()} | scores, step=progress.step)

    def _save(self) -> None:
        """Saves a checkpoint, which gets its name when it is whole; of the older ones the last few stay."""
        unfinished = self.out / "checkpoints" / ".unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished), safe_serialization=False)  # which would split tied weights
        mine = {"data": self._data_state, "loss": self._loss.item()}
        write_atomically(unfinished / f"process-{self.rank}.json", to_json(mine, indent=None))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {"step": self.step, "seconds": self.seconds, "unlogged": self._unlogged}
            write_atomically(unfinished / "trainer.json", to_json(state))
            unfinished.rename(unfinished.with_name(f"step-{self.step:08d}"))
            for old in checkpoints(self.out)[: -self.config.train.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        result: dict[str, Any] = {"status": "diverged" if self._diverged else "done", "steps": self.step}
        if not self._diverged:
            self._save_model()
            result |= self.history[-1]["valid"]
        tokens = self.step * self.config.train.batch_size * self.config.data.length
        result |= {
            "tokens": tokens,
            "seconds": self.seconds,
            "tokens_per_second": tokens / self.seconds if self.seconds else None,
            "parameters": self.parameters,
            "processes": self.processes,
            "config": self.config.to_dict(),
            "provenance": {**provenance(self.argv), "threads": torch.get_num_threads()},
        }
        if self.accelerator.is_main_process:
            write_atomically(self.out / "result.json", to_json(result))
        self.accelerator.wait_for_everyone()

    def _save_model(self) -> None:
        weights = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:
            return
        unfinished, final = self.out / ".model", self.out / "model"
        for folder in (unfinished, final):
            shutil.rmtree(folder, ignore_errors=True)
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(
            unfinished, state_dict={name.removeprefix("_orig_mod."): weight for name, weight in weights.items()}
        )
        if self.data.tokenizer is not None:
            self.data.tokenizer.save_pretrained(unfinished)
        os.rename(unfinished, final)


def checkpoints(out: Path) -> list[Path]:
    """Returns the whole checkpoints, the newest last."""
    return sorted((out / "checkpoints").glob("step-*"))


def read_history(out: Path) -> list[dict[str, Any]]:
    """Returns the logged updates; a line that a kill cut short is left out."""
    path = out / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _number(value: float | None) -> float:
    """Returns a number from JSON, which writes what is not finite as null."""
    return math.nan if value is None else value


def _trackers(wandb: str | None) -> list[str]:
    if wandb is not None and find_spec("wandb") is None:
        raise ValueError("train.wandb needs the package wandb; remedy: pip install wandb")
    installed = find_spec("tensorboard") is not None or find_spec("tensorboardX") is not None
    return ["tensorboard"] * installed + ["wandb"] * (wandb is not None)
