"""Trains language models: a model over the stack, next-byte prediction on text, and the model of transformers.

`MixerConfig`, `MixerModel` and `MixerForCausalLM` need transformers, which is imported when one of them is asked for.
Importing them makes AutoConfig, AutoModel and AutoModelForCausalLM know the model type "mixerzoo".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixerzoo.tasks.lm.transformers_model.modeling import MixerForCausalLM, MixerModel

    from .configuration import MixerConfig

__all__ = ["MixerConfig", "MixerForCausalLM", "MixerModel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .transformers_model import modeling

    return getattr(modeling, name)
