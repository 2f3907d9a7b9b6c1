"""Speed is a task of the grid without learning: tokens a second and memory against the length of the sequence.

Every run times its own model, of the configured width, depth and mixer. It runs in fp32 on a CPU and in the run's
precision on a GPU. Times mean something only on an otherwise idle machine, so these runs go one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mixerzoo.tasks.models.language_model import LanguageModel, token_loss

from .base import Batch, Measurements, Metric, Series, Task
from .config import BackboneConfig
from .timing import median_seconds, peak_bytes

VOCABULARY = 256
LENGTH = "sequence length"


@dataclass(frozen=True)
class Speed(Task):
    """Runs one sequence of random bytes through a language model. Lengths double from `shortest` to `longest` tokens.

    training: forward and backward. prefill: forward that returns the state. decoding: one token after a prompt of that
    length. The metric is the forward pass's rate at `longest`.
    """

    shortest: int = 256
    longest: int = 8192
    decoded: int = 16
    tie_embeddings: bool = True

    name: ClassVar[str] = "speed"
    metric: ClassVar[Metric] = Metric("tokens/s", "forward, longest sequence", higher_is_better=True)
    test_split: ClassVar[str | None] = None
    alone: ClassVar[bool] = True
    recipe: ClassVar[Mapping[str, Any]] = {"train.steps": 1, "train.batch_size": 1, "train.evaluate_every": 1}

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest or self.decoded < 1:
            raise ValueError(
                "1 <= task.shortest <= task.longest and task.decoded >= 1 must hold, got "
                f"{self.shortest}, {self.longest} and {self.decoded}"
            )

    @property
    def fingerprint(self) -> str:
        return "random-bytes"

    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        return LanguageModel.from_backbone(VOCABULARY, backbone, tie_embeddings=self.tie_embeddings)

    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        """Yields random bytes: "train" has the shortest length, other splits are one sequence of the longest."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            shape = (batch_size, self.shortest) if split == "train" else (1, self.longest)
            yield {"inputs": torch.randint(VOCABULARY, shape, generator=generator)}
            if split != "train":
                return

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model(batch["inputs"]), batch["inputs"])

    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (tokens, seconds) of a forward pass."""
        started = perf_counter()
        model(batch["inputs"]).sum().item()
        return torch.tensor(batch["inputs"].numel()), torch.tensor(perf_counter() - started)

    def state_size(self, model: nn.Module, length: int) -> int:
        return cast(LanguageModel, model).state_size(length)

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns the rates at every length, and the memory of a training step."""
        device = next(model.parameters()).device
        points: dict[str, list[tuple[float, float]]] = {}
        length = self.shortest
        while length <= self.longest:
            ids = torch.randint(VOCABULARY, (1, length), device=device)
            train, prefill, decode = self._works(cast(LanguageModel, model), ids)
            for name, value in (
                ("training tokens/s", length / median_seconds(train, device)),
                ("prefill tokens/s", length / median_seconds(prefill, device)),
                ("decoding tokens/s", self.decoded / median_seconds(decode, device)),
                ("training peak MiB", peak_bytes(train, device) / 2**20),
            ):
                points.setdefault(name, []).append((length, value))
            length *= 2
        values = {f"{name} at {self.longest:,}": line[-1][1] for name, line in points.items()}
        note = "One sequence; medians of three calls; memory as torch's allocator gives it out, weights not counted."
        return Measurements(values, note, series={name: Series(LENGTH, name, line) for name, line in points.items()})

    def _works(self, model: LanguageModel, ids: Tensor) -> tuple[Callable[[], object], ...]:
        with torch.no_grad():
            _, after = model.stack.prefill(model.embedding(ids))

        def train() -> None:
            self.loss(model, {"inputs": ids}).backward()
            model.zero_grad()

        @torch.no_grad()
        def prefill() -> None:
            model.stack.prefill(model.embedding(ids))

        @torch.no_grad()
        def decode() -> None:
            state: Any = after
            for _ in range(self.decoded):
                y, state = model.stack.step(model.embedding(ids[:, 0]), state)
                model.head(y)

        return train, prefill, decode
