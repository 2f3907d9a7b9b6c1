"""Defines a training of a language model (model, data, training, seed) and reads the recipe files that hold it.

A recipe is a TOML file with the tables of `LMRun`: [model], [data], [train], [published]. Later ones override earlier
ones: the defaults here, the recipe, the command line's options, its `--set`. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from mixerzoo.registry.pattern import label_of, pattern_of
from mixerzoo.tasks import recipes
from mixerzoo.tasks.config import check_at_least, from_dict, parse_setting
from mixerzoo.tasks.recipes import lay

LONGEST_LABEL = 4  # mixers; of a longer pattern a label has each name once

list_recipes = partial(recipes.list_recipes, "lm")
read_recipe = partial(recipes.read_recipe, "lm")


@dataclass(frozen=True)
class DataConfig:
    """Says where text comes from, and how it becomes rows of tokens.

    name: embedded | text:FILES | jsonl:FILES | parquet:FILES | hfds:NAME[@SPLIT] | tokens:FILE, see `data/sources.py`.
    valid: the text to validate on, named likewise; None: the last `valid_fraction` of the tokens.
    text_key: the field or column of jsonl, parquet and hfds that holds the text.
    subset: the configuration of a Hugging Face data set, in its own words.
    tokenizer: bytes, or a tokenizer's name on the Hugging Face hub, or its folder; None: a token file's own, or bytes.
    end_documents: put the tokenizer's end-of-text token after every document.
    length: tokens in a row, T.
    packing: concat | documents. Rows are cut from all documents one after the other, without padding; with
        `documents`, no state and no attention crosses from one into the next.
    streaming: read a Hugging Face data set as it arrives, without preparing it on disk first.
    shuffle_rows: when streaming, rows are shuffled among so many.
    """

    name: str = "embedded"
    valid: str | None = None
    valid_fraction: float = 0.05
    text_key: str = "text"
    subset: str | None = None
    tokenizer: str | None = None
    end_documents: bool = True
    length: int = 512
    packing: Literal["concat", "documents"] = "concat"
    streaming: bool = False
    shuffle_rows: int = 256

    def __post_init__(self) -> None:
        check_at_least(1, self, "data", "length", "shuffle_rows")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"data.valid_fraction must lie between 0 and 1, got {self.valid_fraction}")
        if self.streaming and (not self.name.startswith("hfds:") or self.valid is None):
            raise ValueError(
                f"data.streaming needs hfds:NAME, and a data.valid of its own, got {self.name} and {self.valid}"
            )
        if self.packing == "documents" and not self.end_documents:
            raise ValueError("data.packing='documents' finds them by their ends; remedy: data.end_documents=true")


@dataclass(frozen=True)
class Training:
    """Configures AdamW, a warm-up and a schedule, in updates of `batch_size` rows.

    `batch_size` counts the rows of all processes together, so that a recipe means the same on any number of them;
    `grad_accum_steps` cuts it into what memory holds. `schedule`, from `warmup_lr` through `lr` at update `warmup` to
    `final_lr` (a fraction of `lr`) at the last one: cosine; wsd, constant until the last `decay` (a fraction of the
    updates), then linear; inverse_sqrt, `lr` times sqrt(warmup / update), without `final_lr`; constant.
    `eval_rows`: how many rows of the validation text are evaluated every `eval_every` updates; 0: all.
    `keep`: how many checkpoints stay.
    """

    steps: int = 1000
    batch_size: int = 16
    grad_accum_steps: int = 1
    lr: float = 3e-3
    warmup: int = 100
    warmup_lr: float = 0.0
    schedule: Literal["cosine", "wsd", "inverse_sqrt", "constant"] = "cosine"
    final_lr: float = 0.1
    decay: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    grad_checkpointing: bool = False
    log_every: int = 10
    eval_every: int = 250
    eval_rows: int = 0
    save_every: int = 250
    keep: int = 2
    wandb: str | None = None

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "grad_accum_steps", "log_every", "eval_every", "save_every", "keep")
        check_at_least(1, self, "train", *counts)
        check_at_least(0, self, "train", "warmup", "weight_decay", "clip", "eval_rows")
        if not 0 < self.decay <= 1:
            raise ValueError(f"train.decay must lie above 0 and at most at 1, got {self.decay}")

    def learning_rate(self, step: int) -> float:
        """Returns the rate of update `step`, the first being 1."""
        if step < self.warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup
        if self.schedule == "inverse_sqrt":
            return self.lr * math.sqrt(max(1, self.warmup) / step)
        if self.schedule == "constant":
            return self.lr
        start = self.warmup
        if self.schedule == "wsd":
            start = max(start, round(self.steps * (1 - self.decay)))
        left = 1 - min(1.0, max(0, step - start) / max(1, self.steps - start))
        shape = left if self.schedule == "wsd" else 0.5 * (1 - math.cos(math.pi * left))
        return self.lr * (self.final_lr + (1 - self.final_lr) * shape)


@dataclass(frozen=True)
class LMRun:
    """Describes one training of one language model.

    model: keywords of `MixerConfig`, of which `vocab_size` defaults to the tokenizer's; or `{"pretrained": NAME}`, a
        checkpoint to start from.
    published: what the recipe's source reports, for comparison; nothing reads it.
    """

    model: dict[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    train: Training = field(default_factory=Training)
    published: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model.keys() & {"mixer", "pretrained"}:
            raise ValueError(
                "a language model run needs a model; remedy: --recipe NAME, or "
                '--model \'{"mixer": "hgrn2", "hidden_size": 256, "num_hidden_layers": 4}\'; '
                "--mixer NAME trains the grids' small task"
            )
        if "pretrained" in self.model and len(self.model) > 1:
            others = sorted(self.model.keys() - {"pretrained"})
            raise ValueError(
                f"a pretrained model brings its configuration, got model.{', model.'.join(others)} besides"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_dict` reads them back."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def label(self) -> str:
        """Returns `hgrn2`, or `hgrn2+attention` for a pattern; a checkpoint's own name."""
        if "pretrained" in self.model:
            return Path(self.model["pretrained"]).name
        pattern = pattern_of(self.model["mixer"], "model.mixer")
        if len(pattern) > LONGEST_LABEL:
            pattern = list({mixer["name"]: mixer for mixer in pattern}.values())
        return label_of(pattern)

    @cached_property
    def run_id(self) -> str:
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
        return f"{self.label}-s{self.seed}-{digest[:10]}"


def resolve(
    *,
    model: str | None = None,
    data: str | None = None,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
) -> LMRun:
    """Builds a run from a command line.

    `model` is JSON, an object of `MixerConfig`'s keywords, or a checkpoint.
    """
    values = {"model": {}, **(read_recipe(recipe) if recipe is not None else {})}
    options = {"model": _model(model) if model is not None else None, "data.name": data, "seed": seed}
    given = [(path, value) for path, value in options.items() if value is not None]
    return from_dict(LMRun, lay(values, [*given, *map(parse_setting, settings)]))


def _model(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"pretrained": text}
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"--model must be JSON or a checkpoint, got {text!r}: {error}") from error
