"""This trains a timm model: timm's optimizers, schedules, losses, mixup and EMA, on Hugging Face Accelerate.

    OUT/config.json    the run                       OUT/best.pth   weights, as timm reads them (`checkpoint_path=`)
        history.json   one entry an epoch, percent       last.pth   everything needed to resume
        result.json    written at the end: its being there means that the run is finished

Every epoch draws its random numbers from a seed of its own. So a killed run that resumes from its last epoch ends like
an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, accuracy, random_seed
from torch import nn
from torch.utils.data import DataLoader

from mixerzoo.tasks.files import read_json, replacing, to_json, write_atomically
from mixerzoo.tasks.provenance import provenance

from .image_data import load_data, test_loader, train_loader, transforms
from .parts import build_model, make_criterion, make_mixup, make_optimizer
from .recipe import VisionRun

REPORT_EVERY = 20  # updates


@dataclass(frozen=True)
class Progress:
    """Reports a run's progress. The end of an epoch sets `valid` (loss, top1, top5); accuracies are in percent."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    images_per_second: float
    valid: Mapping[str, float] | None = None


class Trainer:
    """Trains one run in one directory. The constructor makes every check; `run` trains, or resumes the run in `out`.

    Several processes (torchrun, accelerate launch) share each batch by rows; the first one writes.
    Raises ValueError if `out` holds another run, and whatever `build_model` and `load_data` raise.
    """

    def __init__(self, run: VisionRun, out: str | Path, argv: list[str]) -> None:
        self.config, self.out, self.argv = run, Path(out), argv
        train = run.train
        AcceleratorState._reset_state()  # a process that trains several models may change the precision between them
        self.accelerator = Accelerator(
            mixed_precision=train.precision,
            gradient_accumulation_steps=train.grad_accum_steps,
            log_with="tensorboard" if is_tensorboard_available() else None,
            project_dir=self.out,
            cpu=not torch.accelerator.is_available(),  # explicit, because several processes on CPUs find each other so
        )
        self.data = data = load_data(run.data, run.model.get("in_chans"))
        random_seed(run.seed)
        model = build_model(run, data.num_classes, data.in_chans).to(self.accelerator.device)
        if train.grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        shard = {"rank": self.accelerator.process_index, "processes": self.accelerator.num_processes}
        augmented, plain = transforms(model, data.in_chans, run.model.get("img_size"), train)
        data.train.transform, data.valid.transform, data.test.transform = augmented, plain, plain
        self.loader = train_loader(data.train, train, seed=run.seed, **shard)
        self.valid_loader = test_loader(data.valid, train, **shard)
        self.test_loader = test_loader(data.test, train, **shard)
        self.updates = len(self.loader) // train.grad_accum_steps
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.ema = None
        if train.model_ema_decay:
            self.ema = ModelEmaV3(model, train.model_ema_decay, use_warmup=train.model_ema_warmup)
        optimizer = make_optimizer(model, train)
        self.schedule, self.epochs = create_scheduler_v2(
            optimizer,
            sched=train.sched,
            num_epochs=train.epochs,
            warmup_epochs=train.warmup_epochs,
            warmup_lr=train.warmup_lr,
            min_lr=train.min_lr,
            cooldown_epochs=train.cooldown_epochs,
            step_on_epochs=False,
            updates_per_epoch=self.updates,
        )
        self.mixup = make_mixup(train, data.num_classes)
        self.criterion = make_criterion(train)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.history: list[dict[str, Any]] = []
        self._open()

    def run(self) -> Iterator[Progress]:
        """Trains, chooses the epoch with the best validation, and tests it. A finished run has nothing left to do."""
        while len(self.history) < self.epochs and not self._diverged and self.result is None:
            yield from self._epoch(len(self.history))
        if self.result is None:
            self._finish()
        self.accelerator.end_training()

    @property
    def result(self) -> dict[str, Any] | None:
        """Returns the content of result.json; None until the run is finished."""
        return read_json(self.out / "result.json")

    @property
    def best(self) -> dict[str, Any]:
        """Returns the entry of the best epoch, the later of equals."""
        metric = self.config.train.eval_metric
        sign = -1 if metric == "loss" else 1
        judged = (entry for entry in self.history if entry["valid"] is not None)
        return max(judged, key=lambda entry: (sign * entry["valid"][metric], entry["epoch"]))

    @property
    def _raw_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    @property
    def _diverged(self) -> bool:
        return bool(self.history) and not math.isfinite(self.history[-1]["loss"])

    def _epoch(self, epoch: int) -> Iterator[Progress]:
        train, device = self.config.train, self.accelerator.device
        random_seed((self.config.seed * 1_000_003 + epoch * 1009 + self.accelerator.process_index) % 2**31)
        self.loader.sampler.set_epoch(self.config.seed * 1009 + epoch)  # type: ignore[attr-defined]
        self.model.train()
        update, loss_sum, started = epoch * self.updates, torch.zeros((), device=device), perf_counter()
        for images, labels in islice(self.loader, self.updates * train.grad_accum_steps):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            with self.accelerator.accumulate(self.model):
                loss = self.criterion(self.model(images), labels)
                self.accelerator.backward(loss)
                if train.clip_grad and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), train.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            loss_sum += loss.detach() / train.grad_accum_steps
            if not self.accelerator.sync_gradients:
                continue
            update += 1
            lr = self.optimizer.param_groups[0]["lr"]
            self.schedule.step_update(update)
            if self.ema is not None:
                self.ema.update(self._raw_model, step=update)
            step = update - epoch * self.updates
            if step % REPORT_EVERY == 0 or step == self.updates:
                mean = self.accelerator.reduce(loss_sum, "mean").item() / step
                rate = step * train.batch_size / (perf_counter() - started)
                progress = Progress(epoch + 1, self.epochs, step, self.updates, mean, lr, rate)
                if step < self.updates:
                    yield progress
                if not math.isfinite(mean):
                    break
        valid = self.evaluate(self._judged, self.valid_loader) if math.isfinite(mean) else None
        entry = {"epoch": epoch + 1, "loss": mean, "lr": lr, "valid": valid, "images_per_second": rate}
        self._record({**entry, "seconds": perf_counter() - started})
        yield Progress(epoch + 1, self.epochs, step, self.updates, mean, lr, rate, valid)

    @property
    def _judged(self) -> nn.Module:
        """Returns the model that is evaluated and saved as best: the moving average if there is one."""
        return self._raw_model if self.ema is None else self.ema.module

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: DataLoader) -> dict[str, float]:
        """Returns mean loss, and top-1 and top-5 accuracy in percent, over all images of a loader."""
        model.eval()
        device = self.accelerator.device
        sums = torch.zeros(4, device=device, dtype=torch.float64 if device.type != "mps" else torch.float32)
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with self.accelerator.autocast():
                logits = model(images).float()
            mean = torch.stack([nn.functional.cross_entropy(logits, labels), *accuracy(logits, labels, (1, 5))])
            sums += torch.cat([mean, torch.ones_like(mean[:1])]).to(sums) * len(labels)
        loss, top1, top5, count = self.accelerator.reduce(sums, "sum").tolist()
        return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}

    def _open(self) -> None:
        """Claims the directory, or resumes the run in it."""
        config = self.config.to_dict()
        found = read_json(self.out / "config.json")
        if found is not None and found != config:
            raise ValueError(f"{self.out} holds another run; remedy: another --out, or delete it")
        if self.accelerator.is_main_process:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cannot write to {self.out}: {error.strerror}") from error
            write_atomically(self.out / "config.json", to_json(config))
        self.accelerator.wait_for_everyone()
        if (self.out / "last.pth").exists():
            saved = torch.load(self.out / "last.pth", map_location="cpu", weights_only=True)
            self._raw_model.load_state_dict(saved["state_dict"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.history = saved["history"]
            if self.ema is not None:
                self.ema.module.load_state_dict(saved["state_dict_ema"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.accelerator.init_trackers("tensorboard")

    def _record(self, entry: dict[str, Any]) -> None:
        """Saves an epoch.

        `best.pth` comes first: if only it was written, the epoch is repeated with the same result.
        """
        self.history.append(entry)
        valid = {f"valid/{name}": value for name, value in (entry["valid"] or {}).items()}
        self.accelerator.log({"train/loss": entry["loss"], "train/lr": entry["lr"], **valid}, step=entry["epoch"])
        if not self.accelerator.is_main_process:
            return
        arch = {"arch": self.config.model["name"], "epoch": entry["epoch"]}
        if entry["valid"] is not None and self.best is entry:
            _save(
                self.out / "best.pth",
                {**arch, "metric": entry["valid"][self.config.train.eval_metric], "state_dict": _weights(self._judged)},
            )
        state = {**arch, "state_dict": _weights(self._raw_model), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["state_dict_ema"] = _weights(self.ema.module)
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        _save(self.out / "last.pth", {**state, "history": self.history})
        write_atomically(self.out / "history.json", to_json(self.history))

    def _finish(self) -> None:
        seconds = sum(entry["seconds"] for entry in self.history)
        result: dict[str, Any] = {"status": "diverged" if self._diverged else "done"}
        if not self._diverged:
            last = self.evaluate(self._judged, self.test_loader)
            self.accelerator.wait_for_everyone()
            self._judged.load_state_dict(torch.load(self.out / "best.pth", weights_only=True)["state_dict"])
            result["test"] = self.evaluate(self._judged, self.test_loader)
            result |= {"test_last_epoch": last, "valid": self.best["valid"], "best_epoch": self.best["epoch"]}
        splits = {"train": self.data.train, "valid": self.data.valid, "test": self.data.test}
        result |= {
            "tested_on": self.data.tested_on,
            "epochs": len(self.history),
            "seconds": seconds,
            "images_per_second": self.updates * self.config.train.batch_size * len(self.history) / seconds,
            "parameters": self.parameters,
            "images": {name: len(images) for name, images in splits.items()},
            "config": self.config.to_dict(),
            "provenance": {**provenance(self.argv), "threads": torch.get_num_threads()},
        }
        if self.accelerator.is_main_process:
            write_atomically(self.out / "result.json", to_json(result))
        self.accelerator.wait_for_everyone()


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _save(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        torch.save(content, file)
