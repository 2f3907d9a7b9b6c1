"""Reads checkpoints on disk, flash-linear-attention's in our words and ours in theirs: every tensor is checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mixerzoo.tasks.lm.configuration import MixerConfig

from .model_types import DEFAULTS, read_config, write_config
from .tensor_names import modernised, rows

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

# Names and shapes of the tensors that a checkpoint of ours holds.
Shapes = Callable[[MixerConfig], Mapping[str, tuple[int, ...]]]


def read_published(directory: Path, shapes_of: Shapes) -> tuple[MixerConfig, dict[str, Tensor]]:
    """Returns our configuration and tensors from a directory in flash-linear-attention's format.

    Raises ValueError for a directory that is damaged, has other tensors than its configuration says, or is no model of
    ours."""
    try:
        config = read_config(read_values(directory))
        shapes = shapes_of(config)
    except TypeError as error:
        raise ValueError(f"{directory / CONFIG} has a setting of the wrong kind: {error}") from error
    tensors = modernised(_without_tied(read_tensors(directory), config, "model.embeddings.weight"), config)
    correspondence = rows(config, shapes)
    expected = {name: shape for row in correspondence for name, shape in zip(row.theirs, row.shapes, strict=True)}
    _check(tensors, expected, directory)
    return config, {row.ours: row.read([tensors[name] for name in row.theirs]) for row in correspondence}


def published_directory(name_or_path: str | Path, options: Mapping[str, Any]) -> Path | None:
    """Returns where a checkpoint in flash-linear-attention's format lies; None for any other.

    It is fetched from the hub if need be.

    options: `from_pretrained`'s keywords; those about the hub count."""
    hub = {key: options[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in options}
    folder = options.get("subfolder", "")
    values, _ = MixerConfig.get_config_dict(name_or_path, subfolder=folder, **hub)
    if values.get("model_type") not in DEFAULTS:
        return None
    if not Path(name_or_path).is_dir():
        name_or_path = snapshot_download(str(name_or_path), allow_patterns=["*.json", "*.safetensors"], **hub)
    return Path(name_or_path) / folder


def generation_settings(directory: Path) -> dict[str, GenerationConfig]:
    """Returns `from_pretrained`'s keyword for the file about generation; none without one."""
    there = (directory / GENERATION_CONFIG_NAME).is_file()
    return {"generation_config": GenerationConfig.from_pretrained(directory)} if there else {}


def read_values(directory: Path) -> dict[str, Any]:
    """Reads config.json.

    Raises ValueError for a directory without one, and for one that isn't a JSON object.
    """
    try:
        values = json.loads((directory / CONFIG).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {directory / CONFIG}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"cannot read {directory / CONFIG}: it must be an object, got a {type(values).__name__}")
    return values


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Reads every tensor of a directory's safetensors files. Raises ValueError for a missing or damaged file."""
    index = directory / INDEX
    try:
        placed = json.loads(index.read_text())["weight_map"] if index.exists() else None
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {index}: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(placed.values())) if placed else [WEIGHTS]:
        file = directory / name
        if not file.is_file():
            raise ValueError(f"{file} is missing; remedy: a complete directory with safetensors weights")
        try:
            with safe_open(file, framework="pt") as stored:
                tensors |= {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118, it is no dictionary
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}; remedy: fetch it again") from error
    if placed is not None and set(placed) != set(tensors):
        raise ValueError(f"{index} doesn't name the tensors that are there: {some(set(placed) ^ set(tensors))}")
    return tensors


def read_ours(source: Path, values: Mapping[str, Any], shapes_of: Shapes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns flash-linear-attention's configuration and tensors from a directory in our format.

    Raises ValueError like `read_published`.
    """
    config = MixerConfig.from_dict(dict(values))
    theirs = write_config(config)
    config.mixer = read_config(theirs).mixer  # with explicit numbers of heads
    tensors = _without_tied(read_tensors(source), config, "model.embed_tokens.weight")
    shapes = shapes_of(config)
    _check(tensors, shapes, source)
    written: dict[str, Tensor] = {}
    for row in rows(config, shapes):
        written |= dict(zip(row.theirs, row.write(tensors[row.ours]), strict=True))
    return theirs, written


def _without_tied(tensors: dict[str, Tensor], config: MixerConfig, embedding: str) -> dict[str, Tensor]:
    """Drops a head that is tied to the embedding but stored; it must be the embedding."""
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        head = tensors.pop("lm_head.weight")
        if embedding not in tensors or not torch.equal(head, tensors[embedding]):
            raise ValueError(f"config.json ties lm_head.weight to {embedding}, but they differ")
    return tensors


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    if missing or unknown:
        parts = [f"{what} {some(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names]
        raise ValueError(f"{directory} doesn't hold the model of its config.json: it {' and '.join(parts)}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(
                f"{directory} doesn't hold the model of its config.json: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(shape)}"
            )


def some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
