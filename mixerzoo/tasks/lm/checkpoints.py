"""Checkpoints on disk: flash-linear-attention's into ours and back, tensor by tensor, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .configuration import MixerConfig
from .flash_linear_attention import DEFAULTS, read_config, write_config
from .tensor_names import modernised, rows

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def convert(source: str | Path, target: str | Path, *, shard_size: str = "5GB") -> Path:
    """A checkpoint in the other format: flash-linear-attention's becomes ours, ours becomes flash-linear-attention's.

    Tensors keep their values and dtypes; tokenizer and generation files go along. `target` is created when everything
    has been read, checked and written, or not at all.

    Args:
        source: a directory with config.json and safetensors weights.
        target: a directory that doesn't exist yet.
        shard_size: the largest file of weights.

    Raises ValueError for a source that is neither, is damaged, or has other tensors than its configuration says, and
    for a model that the other format can't express."""
    source, target = Path(source), Path(target)
    if target.exists():
        raise ValueError(f"{target} already exists; remedy: another target")
    values = read_values(source)
    if values.get("model_type") in DEFAULTS:
        config, tensors = read_published(source)
        values = {**config.to_dict(), "architectures": ["MixerForCausalLM"]}
    elif values.get("model_type") == MixerConfig.model_type:
        values, tensors = _published(source, values)
    else:
        known = ", ".join([*DEFAULTS, MixerConfig.model_type])
        raise ValueError(f"{source / CONFIG} has model_type={values.get('model_type')!r}; known: {known}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        made = Path(folder) / "checkpoint"
        made.mkdir()
        save_torch_state_dict(tensors, made, max_shard_size=shard_size)
        (made / CONFIG).write_text(json.dumps(values, indent=2, default=str) + "\n")
        for file in source.iterdir():
            if file.is_file() and file.suffix in (".json", ".model", ".txt") and file.name not in (CONFIG, INDEX):
                shutil.copy(file, made)
        made.rename(target)
    return target


def read_published(directory: Path) -> tuple[MixerConfig, dict[str, Tensor]]:
    """Our configuration and tensors from a directory in flash-linear-attention's format. ValueErrors as `convert`."""
    config = read_config(read_values(directory))
    tensors = modernised(_without_tied(read_tensors(directory), config, "model.embeddings.weight"), config)
    correspondence = rows(config, _shapes(config))
    expected = {name: shape for row in correspondence for name, shape in zip(row.theirs, row.shapes, strict=True)}
    _check(tensors, expected, directory)
    return config, {row.ours: row.read([tensors[name] for name in row.theirs]) for row in correspondence}


def published_directory(name_or_path: str | Path, options: Mapping[str, Any]) -> Path | None:
    """Where a checkpoint in flash-linear-attention's format lies, fetched from the hub if need be; None for any other.

    options: `from_pretrained`'s keywords, of which those about the hub count."""
    hub = {key: options[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in options}
    folder = options.get("subfolder", "")
    values, _ = MixerConfig.get_config_dict(name_or_path, subfolder=folder, **hub)
    if values.get("model_type") not in DEFAULTS:
        return None
    if not Path(name_or_path).is_dir():
        name_or_path = snapshot_download(str(name_or_path), allow_patterns=["*.json", "*.safetensors"], **hub)
    return Path(name_or_path) / folder


def read_values(directory: Path) -> dict[str, Any]:
    """config.json. Raises ValueError for a directory without one, and for one that isn't JSON."""
    try:
        return json.loads((directory / CONFIG).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {directory / CONFIG}: {error}") from error


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory's safetensors files. Raises ValueError for a missing or damaged file."""
    index = directory / INDEX
    try:
        placed = json.loads(index.read_text())["weight_map"] if index.exists() else None
    except (KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
        raise ValueError(f"{index} doesn't name the tensors that are there: {_some(set(placed) ^ set(tensors))}")
    return tensors


def _published(source: Path, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our checkpoint in flash-linear-attention's words."""
    config = MixerConfig.from_dict(dict(values))
    theirs = write_config(config)
    config.mixer = read_config(theirs).mixer  # with explicit numbers of heads
    tensors = _without_tied(read_tensors(source), config, "model.embed_tokens.weight")
    shapes = _shapes(config)
    _check(tensors, shapes, source)
    written: dict[str, Tensor] = {}
    for row in rows(config, shapes):
        written |= dict(zip(row.theirs, row.write(tensors[row.ours]), strict=True))
    return theirs, written


def _shapes(config: MixerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint of ours holds."""
    from .modeling import MixerForCausalLM

    with torch.device("meta"):
        model = MixerForCausalLM(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _without_tied(tensors: dict[str, Tensor], config: MixerConfig, embedding: str) -> dict[str, Tensor]:
    """A head that is stored although it is tied to the embedding must be it."""
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        head = tensors.pop("lm_head.weight")
        if embedding not in tensors or not torch.equal(head, tensors[embedding]):
            raise ValueError(f"config.json ties lm_head.weight to {embedding}, but they differ")
    return tensors


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    if missing or unknown:
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names]
        raise ValueError(f"{directory} doesn't hold the model of its config.json: it {' and '.join(parts)}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(
                f"{directory} doesn't hold the model of its config.json: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(shape)}"
            )


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
