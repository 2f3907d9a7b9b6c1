"""Builds tiny transformers models of every mixer and of a hybrid, in fp64, every parameter moved off its start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM
from mixerzoo.tasks.lm.transformers_model.cache import CACHE_NAME
from tests.conformance.zoo import CONFIGURATIONS, DIM, Config

VOCABULARY = 61
PAD, END = 0, 60

LAYERS: dict[str, Config | list[Config]] = {
    label: config for label, config in CONFIGURATIONS.items() if not config.get("bidirectional")
}
# One layer of every mixer, with a convolution where it takes one, and all of them in one model.
PLAIN: dict[str, Config | list[Config]] = {
    label: LAYERS.get(label.replace("-plain", "-short-conv"), layer)
    for label, layer in LAYERS.items()
    if label.endswith("-plain")
}
PLAIN["window"] = LAYERS["attention-window"]
PLAIN["hybrid"] = [*PLAIN.values()]  # type: ignore[list-item]

every_layer = pytest.mark.parametrize("mixer", LAYERS.values(), ids=LAYERS)
plain_layers = pytest.mark.parametrize("mixer", PLAIN.values(), ids=PLAIN)


def config_of(mixer: Config | list[Config], **settings: object) -> MixerConfig:
    layers = len(mixer) if isinstance(mixer, list) else 2
    sizes = {"vocab_size": VOCABULARY, "hidden_size": DIM, "num_hidden_layers": layers, "pad_token_id": PAD}
    return MixerConfig(mixer, **sizes | settings)  # type: ignore[arg-type]


def model_of(mixer: Config | list[Config], **settings: object) -> MixerForCausalLM:
    model = MixerForCausalLM(config_of(mixer, **settings)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def cache_of(output: ModelOutput) -> Cache:
    return getattr(output, CACHE_NAME)


def some_ids(rows: int, length: int) -> Tensor:
    """Draws ids that are neither padding nor the end."""
    return torch.randint(1, END, (rows, length))
