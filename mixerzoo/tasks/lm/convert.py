"""Converts a checkpoint in flash-linear-attention's format into ours and back, tensor by tensor, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import save_torch_state_dict

from mixerzoo.tasks.lm.flash_linear_attention.checkpoints import CONFIG, INDEX, read_ours, read_published, read_values
from mixerzoo.tasks.lm.flash_linear_attention.model_types import DEFAULTS
from mixerzoo.tasks.lm.transformers_model.modeling import stored_shapes

from .configuration import MixerConfig

ALONG = (".json", ".model", ".txt", ".jinja")  # of tokenizers, generation and chat templates


def convert(source: str | Path, target: str | Path, *, shard_size: str = "5GB") -> Path:
    """Converts a checkpoint to the other format, from flash-linear-attention's to ours or from ours to theirs.

    Tensors keep their values and dtypes; tokenizer and generation files are copied. `target` is created when everything
    has been read, checked and written, or not at all.

    Args:
        source: a directory with config.json and safetensors weights.
        target: a directory that doesn't exist yet.
        shard_size: the largest file of weights.

    Raises ValueError for a source that is neither, is damaged, or has other tensors than its configuration says. So it
    does for a model that the other format can't express, and for a target that can't be written."""
    source, target = Path(source), Path(target)
    if target.exists():
        raise ValueError(f"{target} already exists; remedy: another target")
    values = read_values(source)
    if values.get("model_type") in DEFAULTS:
        config, tensors = read_published(source, stored_shapes)
        values = {**config.to_dict(), "architectures": ["MixerForCausalLM"]}
    elif values.get("model_type") == MixerConfig.model_type:
        values, tensors = read_ours(source, values, stored_shapes)
    else:
        known = ", ".join([*DEFAULTS, MixerConfig.model_type])
        raise ValueError(f"{source / CONFIG} has model_type={values.get('model_type')!r}; known: {known}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            made = Path(folder) / "checkpoint"
            made.mkdir()
            save_torch_state_dict(tensors, made, max_shard_size=shard_size)
            (made / CONFIG).write_text(json.dumps(values, indent=2, default=str) + "\n")
            for file in source.iterdir():
                if file.is_file() and file.suffix in ALONG and file.name not in (CONFIG, INDEX):
                    shutil.copy(file, made)
            made.rename(target)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror or error}") from error
    return target
