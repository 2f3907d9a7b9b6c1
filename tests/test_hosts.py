"""A mixer starts alike wherever it lives: in a grid's model, in transformers' and in timm's."""

from __future__ import annotations

import pytest
import timm
from torch import Tensor, nn

import mixerzoo.tasks.vision  # noqa: F401  registers the image models
from mixerzoo import build_mixer, list_mixers
from mixerzoo.mixers.parts import Mixer
from mixerzoo.registry.catalog import MIXERS, mixer_keywords
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM
from mixerzoo.tasks.models.language_model import LanguageModel

DIM, HEAD = 64, 16
SPREAD = 0.003


def hosts(name: str) -> dict[str, Mixer]:
    """Builds the mixer, with biases where it can have them, in every host, the second layer of two."""
    settings = {"name": name, **MIXERS.get(name).fitted(DIM, HEAD)}
    if "bias" in mixer_keywords(name):
        settings["bias"] = True
    language_model = LanguageModel(50, DIM, 2, settings)
    again = LanguageModel(50, DIM, 2, settings)
    again.reset_parameters()
    config = MixerConfig(settings, vocab_size=50, hidden_size=DIM, num_hidden_layers=2, initializer_range=SPREAD)
    rest = {key: value for key, value in settings.items() if key != "name"}
    image_model = timm.create_model(
        f"zoo_{name}_tiny_patch16_224", img_size=32, embed_dim=DIM, depth=2, mixer_kwargs=rest
    )
    image_model.init_weights()
    return {
        "alone": build_mixer({**settings, "dim": DIM}),
        "grid": language_model.stack.blocks[1].mixer,
        "grid, reset": again.stack.blocks[1].mixer,
        "transformers": MixerForCausalLM(config).model.layers[1].mixer,
        "timm": image_model.blocks[1].mixer,
    }


def first_map(mixer: Mixer) -> nn.Linear:
    return next(module for module in mixer.modules() if isinstance(module, nn.Linear))


def size(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


@pytest.mark.parametrize("name", list_mixers())
def test_biases_gates_decays_and_special_maps_start_alike(name: str) -> None:
    """A host chooses the spread of plain linear maps alone, alike for every mixer."""
    built = hosts(name)
    alone = dict(built["alone"].named_parameters())
    plain = {f"{n}.weight" for n, module in built["alone"].named_modules() if isinstance(module, nn.Linear)}
    for host, mixer in built.items():
        for parameter, tensor in mixer.named_parameters():
            if parameter not in alone:  # what only a bidirectional mixer has
                continue
            spread = size(tensor) / size(alone[parameter]) if size(alone[parameter]) else 1 + size(tensor)
            chosen = host == "transformers" and parameter in plain and abs(size(tensor) / SPREAD - 1) < 0.1
            assert chosen or 0.7 < spread < 1.4, f"{parameter} is {spread:.2f} times as wide in {host}"


@pytest.mark.parametrize("name", list_mixers())
def test_what_a_mixer_starts_itself_survives_a_hosts_spread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Mixer) -> None:
        own(self)
        nn.init.constant_(first_map(self).weight, 0.125)

    own = MIXERS.get(name).reset_own_parameters
    monkeypatch.setattr(MIXERS.get(name), "reset_own_parameters", start)
    for host, mixer in hosts(name).items():
        assert (first_map(mixer).weight == 0.125).all(), host
