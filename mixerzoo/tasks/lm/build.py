"""Builds models for training and evaluation: new ones from a run's configuration, trained ones from a checkpoint."""

from __future__ import annotations

import inspect

import torch
from safetensors import SafetensorError

from mixerzoo.registry.registry import unknown
from mixerzoo.tasks.lm.data.text_data import TextData
from mixerzoo.tasks.lm.flash_linear_attention.checkpoints import some
from mixerzoo.tasks.lm.flash_linear_attention.model_types import DEFAULTS
from mixerzoo.tasks.lm.transformers_model.modeling import MixerForCausalLM

from .configuration import MixerConfig
from .recipe import LMRun


def build_model(run: LMRun, data: TextData) -> MixerForCausalLM:
    """Builds the run's model, with the data's vocabulary unless it names a larger one.

    Raises ValueError for one that can't be built.
    """
    if "pretrained" in run.model:
        model = load_model(run.model["pretrained"], dtype=torch.float32)
    else:
        try:
            model = MixerForCausalLM(model_config(run, data.vocab_size, data.end))
        except TypeError as error:
            raise ValueError(f"the model cannot be built with {run.model}: {error}") from error
    if model.config.vocab_size < data.vocab_size:
        raise ValueError(
            f"the model's vocabulary is {model.config.vocab_size}, the data's tokens are {data.vocab_size}"
        )
    return model


def model_config(run: LMRun, vocab_size: int, end: int | None = None) -> MixerConfig:
    """Returns a run's model in full. Raises ValueError for an unknown keyword."""
    known = [name for name in inspect.signature(MixerConfig.__init__).parameters if name not in ("self", "kwargs")]
    for key in run.model:
        if key not in known:
            raise ValueError(unknown("configuration key", f"model.{key}", [f"model.{name}" for name in known]))
    defaults = {"vocab_size": vocab_size, "max_position_embeddings": run.data.length, "eos_token_id": end}
    return MixerConfig(**{**defaults, **run.model})


def load_model(name: str, dtype: torch.dtype | str = "auto") -> MixerForCausalLM:
    """Loads a checkpoint of the zoo's or of flash-linear-attention's, a folder or a name on the Hugging Face hub.

    Raises ValueError if there is none, if it is another kind of model, or if it isn't whole.
    """
    try:
        values, _ = MixerConfig.get_config_dict(name)
        if not values:
            raise ValueError(f"there is no checkpoint in {name!r}: it has no config.json")
        if values.get("model_type") not in (known := (MixerConfig.model_type, *DEFAULTS)):
            raise ValueError(f"{name} has model_type={values.get('model_type')!r}; known: {', '.join(known)}")
        model, found = MixerForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except OSError as error:
        raise ValueError(f"there is no checkpoint {name!r}: {' '.join(str(error).split())}") from error
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged: {error}; remedy: fetch them again") from error
    misshapen = {key for key, *_ in found["mismatched_keys"]}
    wrong = {"lacks": found["missing_keys"], "has unknown": found["unexpected_keys"], "has misshapen": misshapen}
    if parts := [f"{what} {some(names)}" for what, names in wrong.items() if names]:
        raise ValueError(f"{name} doesn't hold the model of its config.json: it {' and '.join(parts)}")
    return model
