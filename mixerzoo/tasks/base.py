"""A task is data + head + metric; with a backbone, a training recipe and a seed it makes one run.

Nothing here or in `train.py` knows any task or mixer by name. A new task is one class and one line in `TASKS`; a third
party's is an entry point in the group `mixerzoo.tasks`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from mixerzoo.registry.registry import Registry

from .config import BackboneConfig, TrainConfig, from_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Metric:
    """Names the number that judges a task, and says which direction is good.

    `unit` is empty if the name includes it.
    """

    name: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Series:
    """Holds a line of `y` against `x`, the names of the axes.

    `mark` is a place on the x axis: the length in training.
    """

    x: str
    y: str
    points: Sequence[tuple[float, float]]
    mark: float | None = None


@dataclass(frozen=True)
class Measurements:
    """Holds further results of a run, under their headings in a report, and a sentence on how they were measured.

    values: numbers, columns of the table. maps: pictures, rows of numbers from 0 to 1. series: lines of a figure.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    maps: Mapping[str, list[list[float]]] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Task(ABC):
    """A task is data, head and metric. Its fields are its whole configuration.

    Choices between runs are made on the split "valid". `test_split` names the split of the reported results; None if
    there is no further data. A task that is `alone` measures time, so nothing else runs beside its runs.

    `recipe` holds the dotted settings that suit it (`{"train.steps": 500, "gla:train.lr": 0.01}`). `mixer_keywords`
    holds keywords for every mixer that accepts them (`{"short_conv": 4}`). Both are only the grid's defaults and are
    resolved into every run's configuration.
    """

    name: ClassVar[str]
    metric: ClassVar[Metric]
    recipe: ClassVar[Mapping[str, Any]] = {}
    mixer_keywords: ClassVar[Mapping[str, Any]] = {}
    test_split: ClassVar[str | None] = "test"
    alone: ClassVar[bool] = False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a short hash of the data: equal fingerprints mean that two runs saw the same data."""

    @abstractmethod
    def build_model(self, backbone: BackboneConfig) -> nn.Module:
        """Builds the backbone with this task's embedding and head."""

    @abstractmethod
    def batches(self, split: str, *, seed: int, batch_size: int) -> Iterator[Batch]:
        """Yields batches of rows. "train" never ends and depends on `seed` alone; other splits are finite and fixed."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the scalar to minimise."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (total, count) of the metric on a batch; its value on a split is sum(total) / sum(count)."""

    @abstractmethod
    def state_size(self, model: nn.Module, length: int) -> int:
        """Returns how many numbers (4 bytes each) one sequence's state or cache holds after `length` tokens."""

    def count_tokens(self, batch: Batch) -> int:
        """Returns the number of tokens that the mixers see in this batch."""
        return batch["inputs"].numel()

    def cost(self, model: nn.Module) -> tuple[int, int]:
        """Returns (tokens, forward FLOPs) of one training sequence.

        A multiply-add is two FLOPs; norms and gates don't count.

        The model may be on the meta device: only shapes decide.
        """
        from .flops import counting_flops

        batch = next(self.batches("train", seed=0, batch_size=1))
        device = next(model.parameters()).device
        with counting_flops(model) as flops:
            self.score(model, {name: tensor.to(device) for name, tensor in batch.items()})
        return self.count_tokens(batch), flops()

    def measure(self, model: nn.Module, backbone: BackboneConfig) -> Measurements:
        """Returns what a report shows beside metric and size.

        It is called once a run, after the training, in its process.
        """
        return Measurements()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


def file_name(task: str) -> str:
    """Returns a task's name as file names have it: `vision_digits` for `vision/digits`."""
    return task.replace("/", "_")


TASKS = Registry(
    "task",
    {
        "lm": "mixerzoo.tasks.lm.text:TextLM",
        "speed": "mixerzoo.tasks.speed:Speed",
        "mqar": "mixerzoo.tasks.diagnostics.mqar:MQAR",
        "diagnostics/mqar": "mixerzoo.tasks.diagnostics.mqar:MQAR",
        "diagnostics/induction": "mixerzoo.tasks.diagnostics.recall:Induction",
        "diagnostics/in-context-recall": "mixerzoo.tasks.diagnostics.recall:InContextRecall",
        "diagnostics/noisy-recall": "mixerzoo.tasks.diagnostics.recall:NoisyRecall",
        "diagnostics/fuzzy-recall": "mixerzoo.tasks.diagnostics.recall:FuzzyRecall",
        "diagnostics/selective-copy": "mixerzoo.tasks.diagnostics.memory:SelectiveCopy",
        "diagnostics/memorization": "mixerzoo.tasks.diagnostics.memory:Memorization",
        "diagnostics/compression": "mixerzoo.tasks.diagnostics.memory:Compression",
        "diagnostics/parity": "mixerzoo.tasks.diagnostics.languages:Parity",
        "diagnostics/even-pairs": "mixerzoo.tasks.diagnostics.languages:EvenPairs",
        "diagnostics/modular-arithmetic": "mixerzoo.tasks.diagnostics.languages:ModularArithmetic",
        "diagnostics/modular-arithmetic-brackets": "mixerzoo.tasks.diagnostics.languages:BracketedArithmetic",
        "diagnostics/arrow-pointing": "mixerzoo.tasks.diagnostics.arrows:ArrowPointing",
        "diagnostics/digits": "mixerzoo.tasks.diagnostics.digits:SequentialDigits",
        "lra/image": "mixerzoo.tasks.lra.image:Image",
        "lra/listops": "mixerzoo.tasks.lra.listops:ListOps",
        "lra/path-x": "mixerzoo.tasks.lra.pathfinder.tasks:PathX",
        "lra/pathfinder": "mixerzoo.tasks.lra.pathfinder.tasks:Pathfinder",
        "lra/retrieval": "mixerzoo.tasks.lra.retrieval:Retrieval",
        "lra/retrieval-proxy": "mixerzoo.tasks.lra.retrieval_proxy:RetrievalProxy",
        "lra/text": "mixerzoo.tasks.lra.text:Text",
        "vision/digits": "mixerzoo.tasks.vision.classification:Digits",
    },
    entry_point_group="mixerzoo.tasks",
)

list_tasks = TASKS.names


def build_task(task: str | Mapping[str, Any]) -> Task:
    """Builds a task from a name or a configuration, `{"name": "mqar", "num_pairs": 8}`.

    Raises ValueError with a suggestion.
    """
    config = {"name": task} if isinstance(task, str) else dict(task)
    if "name" not in config:
        raise ValueError(f"a task configuration needs a 'name', got the keys {sorted(config)}; known: {list_tasks()}")
    return from_dict(TASKS.get(config.pop("name")), config, "task")


@dataclass(frozen=True)
class RunConfig:
    """Describes one training run completely: equal configurations on equal data have equal ids."""

    task: Task
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        return from_dict(cls, {**values, "task": build_task(values.get("task", {}))})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_dict` reads them back."""
        parts = {
            "task": self.task.to_dict(),
            "backbone": asdict(self.backbone),
            "train": asdict(self.train),
            "seed": self.seed,
        }
        return json.loads(json.dumps(parts))

    @cached_property
    def run_id(self) -> str:
        resolved = {**self.to_dict(), "data": self.task.fingerprint}
        digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
        return f"{file_name(self.task.name)}-{self.backbone.label}-s{self.seed}-{digest[:10]}"
