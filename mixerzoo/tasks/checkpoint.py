"""A checkpoint saves an unfinished training in one file. The resumed training ends as if it had never stopped.

The file is whole or absent: no interruption leaves half of one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from .files import replacing

EVERY = 30.0
LARGEST_SHARE = 0.05


class Stateful(Protocol):
    """Stateful parts return their state and take it back: model, optimizer, schedule, scaler, meter."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoint:
    """Saves a training in a file while it lasts. It is asked after each point of the curve and saves when that is due.

    path: the file. every: the least seconds between two saves. If saving is slow, saves become rarer, so that they cost
    at most 5 % of the time. beside: further parts in the same file: a meter of what the run has cost.
    """

    def __init__(self, path: Path, every: float = EVERY, beside: Mapping[str, Stateful] | None = None) -> None:
        self.path, self.every, self.beside = path, every, dict(beside or {})
        self._due = perf_counter() + every

    def load(self, accelerator: Accelerator, parts: Mapping[str, Stateful]) -> list[dict[str, Any]]:
        """Restores the parts and the random generators, and returns the curve so far; an empty one if there is no file.

        Raises RuntimeError if the file holds another training or cannot be read.
        """
        if not self.path.exists():
            return []
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, part in {**parts, **self.beside}.items():
                part.load_state_dict(saved["parts"][name])
            if len(saved["random"]) != accelerator.num_processes:
                raise ValueError(f"it is of {len(saved['random'])} processes, here are {accelerator.num_processes}")
        except Exception as error:  # what a damaged file raises is not to be told beforehand
            raise RuntimeError(f"cannot go on from {self.path}; remedy: delete it, to start again ({error})") from error
        set_random_state(saved["random"][accelerator.process_index], accelerator.device)
        return saved["points"]

    def save_if_due(self, accelerator: Accelerator, parts: Mapping[str, Stateful], points: Sequence[Any]) -> None:
        """Saves if it is time to. points: the curve so far, dataclasses."""
        started = perf_counter()
        if not _agreed(started >= self._due, accelerator):
            return
        random_states = gather_object([random_state(accelerator.device)])
        if accelerator.is_main_process:
            states = {name: part.state_dict() for name, part in {**parts, **self.beside}.items()}
            curve = [asdict(point) for point in points]
            buffer = BytesIO()  # torch itself, writing to a full disk, would not say what is wrong
            torch.save({"parts": states, "points": curve, "random": random_states}, buffer)
            with replacing(self.path) as file:
                file.write(buffer.getbuffer())
        now = perf_counter()
        self._due = now + max(self.every, (now - started) / LARGEST_SHARE)


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the state of Python's, NumPy's and torch's generators, as plain values and tensors."""
    name, key, *rest = np.random.get_state()
    numbers = np.asarray(key).tolist()  # arrays would not be loaded with weights_only
    state = {"python": random.getstate(), "numpy": (name, numbers, *rest), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])


def _agreed(due: bool, accelerator: Accelerator) -> bool:
    """Returns the first process's decision to all, because clocks differ between processes."""
    if accelerator.num_processes == 1:
        return due
    return broadcast_object_list([due])[0]
