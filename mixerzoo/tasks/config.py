"""Configuration is frozen dataclasses, read strictly, and one language of dotted paths for every value in them.

`train.lr=3e-3` means the same as an argument of `--set` and `--vary`, as a task's recipe entry, as a filter and as a
column of the results. Three short forms stand for parts with long names: `mixer` for `backbone.mixer`, `model` for
`backbone` and `optimizer` for `train`. This module needs the standard library only, so that a command line can be
checked before torch is imported.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mixerzoo.registry.pattern import label_of, resolved
from mixerzoo.registry.registry import unknown

T = TypeVar("T")
SHORT_FORMS = {"mixer": "backbone.mixer", "model": "backbone", "optimizer": "train"}


@dataclass(frozen=True)
class ChannelMixerConfig:
    """Configures the GLU of every block.

    `hidden` fixes its width; without it, the width is `multiplier` times the model's.
    """

    multiplier: float = 8 / 3
    activation: Literal["none", "silu"] = "silu"
    hidden: int | None = None
    bias: bool = False


@dataclass(frozen=True)
class BackboneConfig:
    """Configures everything between a task's embedding and its head.

    `mixer` is a mixer's configuration, `{"name": "hgrn2", "expand": 16}`, or a list of them tiled over the depth.
    """

    mixer: Any = "attention"
    dim: int = 64
    depth: int = 2
    channel_mixer: ChannelMixerConfig | None = field(default_factory=ChannelMixerConfig)
    norm: str = "rms"
    lower_bounds: str | None = "skip_first"
    dropout: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixer", resolved(self.mixer, "backbone.mixer"))

    @property
    def label(self) -> str:
        """Returns `hgrn2`, or `hgrn2+attention` for a pattern."""
        return label_of(self.mixer)


@dataclass(frozen=True)
class TrainConfig:
    """Configures AdamW with linear warm-up and cosine decay. `warmup` is a fraction of the steps, `final_lr` of `lr`.

    horizon: the step at which the cosine reaches its floor; None: the last one. `warmup` is a fraction of it.
        If it lies beyond the end, the run stops on the way down, or even up. If the run continues after it, the cosine
        climbs back to `lr`, as in transformers' `get_cosine_schedule_with_warmup`.
    accumulate: the number of micro-batches of a batch, run one after the other to save memory.
    clip: the largest norm of the gradient; 0: any.
    """

    steps: int = 400
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 3e-3
    final_lr: float = 0.1
    warmup: float = 0.1
    horizon: int | None = None
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    log_every: int = 10
    evaluate_every: int = 50
    precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        check_at_least(1, self, "train", "steps", "batch_size", "accumulate", "log_every", "evaluate_every")
        check_at_least(0, self, "train", "lr", "final_lr", "warmup", "weight_decay", "clip")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"train.accumulate must be at most train.batch_size = {self.batch_size}, got {self.accumulate}"
            )
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"train.horizon must be at least 1, got {self.horizon}")


def check_at_least(least: int, config: Any, table: str, *names: str) -> None:
    """Raises ValueError for a field below `least`; `table` is the beginning of its path."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{table}.{name} must be at least {least}, got {getattr(config, name)}")


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Builds a dataclass from plain values.

    Unknown keys and wrong types raise ValueError, with `path` naming the place.
    """
    hints, prefix = get_type_hints(cls), f"{path}." if path else ""
    known = [prefix + f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if prefix + key not in known:
            raise ValueError(unknown("configuration key", prefix + key, known))
    return cls(**{key: _typed(value, hints[key], prefix + key) for key, value in values.items()})


def assign(values: Any, path: str, value: Any) -> Any:
    """Returns a copy of nested `values` with the value at a dotted path replaced.

    A number in the path indexes a list.
    """
    return _assign(values, path.split("."), value, path)


def canonical(path: str) -> str:
    """Returns the long form of a path: `backbone.mixer.expand` for `mixer.expand`, `train.lr` for `optimizer.lr`."""
    first, dot, rest = path.partition(".")
    return SHORT_FORMS.get(first, first) + dot + rest


def readable(path: str) -> str:
    """Returns a path's name in tables: `mixer.expand` for `backbone.mixer.expand`; other paths stay unchanged."""
    mixer = SHORT_FORMS["mixer"]
    return "mixer" + path.removeprefix(mixer) if path.startswith(f"{mixer}.") else path


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """Returns nested values as `{"train.lr": 0.003}`: the inverse of `assign` over all leaves."""
    if isinstance(values, Mapping):
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        items = [(str(index), value) for index, value in enumerate(values)]
    else:
        return {path: values}
    return {k: v for key, value in items for k, v in flatten(value, f"{path}.{key}" if path else key).items()}


def parse_setting(text: str) -> tuple[str, Any]:
    """Reads `"train.lr=3e-3"` as `("train.lr", 0.003)`.

    Values are Python literals, `true`, `false`, `null`, or words.
    """
    path, equals, value = text.partition("=")
    if not (equals and path.strip()):
        raise ValueError(f"a setting must read path=value, got {text!r}; example: train.lr=3e-3")
    return path.strip(), parse_value(value.strip())


def parse_values(text: str) -> list[Any]:
    """Reads `"16,64,128"` as `[16, 64, 128]`. Commas inside brackets and quotes don't separate."""
    try:
        whole = ast.literal_eval(f"[{text}]")
    except (ValueError, SyntaxError):  # words among them
        return [parse_value(part.strip()) for part in text.split(",")]
    return whole


def parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "null": None}
    try:
        return words[text] if text in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _assign(values: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if values is None or isinstance(values, Mapping):
        values = dict(values or {})
        return {**values, key: _assign(values.get(key), rest, value, path)}
    if isinstance(values, list) and key.isdigit() and int(key) < len(values):
        return [_assign(v, rest, value, path) if i == int(key) else v for i, v in enumerate(values)]
    raise ValueError(f"cannot set {path}: there is no {key!r} in {values!r}")


def _typed(value: Any, hint: Any, path: str) -> Any:
    """Returns `value` as the type `hint`, with int -> float and list -> tuple, and builds nested dataclasses."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(value, next(arg for arg in args if arg is not type(None)), path)
    if hasattr(hint, "__dataclass_fields__") and isinstance(value, Mapping):
        return from_dict(hint, value, path)
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(args):
        return tuple(_typed(v, arg, path) for v, arg in zip(value, args, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is Literal:
        matches, wanted = value in args, " or ".join(map(repr, args))
    else:
        matches = hint is Any or (origin is not tuple and isinstance(value, origin or hint))
        wanted = str(hint) if origin else getattr(hint, "__name__", str(hint))
    if not matches or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{path} must be {wanted}, got {value!r}")
    return value
