"""Each law is tried on mixers and configurations from here: the registry, the specs, and further variants of ours.

Every mixer is tried as it fits itself to the width, a plug-in too. Only a spec can leave out a law.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixerzoo import build_mixer, list_mixers, mixer_info
from mixerzoo.mixers.parts import Mixer
from mixerzoo.registry.catalog import MIXERS, looking_both_ways

DIM, HEAD = 16, 8
LENGTH = 67  # one chunk of 64 and a rest
Config = dict[str, Any]

VARIANTS: dict[str, dict[str, Config]] = {
    "attention": {
        "grouped": {"num_heads": 4, "num_kv_heads": 2, "bias": True},
        "window": {"num_heads": 2, "window": 5},
        "qk-norm": {"num_heads": 2, "qk_norm": True, "rotary": False},
    },
    "gla": {
        "wide-keys": {"num_heads": 2, "expand_k": 1.0},
        "grouped": {"num_heads": 4, "num_kv_heads": 2, "expand_v": 2.0, "bias": True},
        "no-gate": {"num_heads": 1, "output_gate": False, "norm": "layer", "gate_normalizer": 2.0},
    },
    "hgrn1": {
        "real": {"complex": False, "bias": False, "lower_bound": 0.5},
        "gate-norm": {"norm_order": "gate_norm", "norm": "rms", "lower_bound": 0.9},
        "no-gate": {"output_gate": False, "norm": "group"},
    },
    "hgrn2": {
        "bias": {"expand": 8, "bias": True},
        "expand-1": {"expand": 1, "norm": "srms"},
        "modules": {"expand": 4, "q_activation": "sigmoid", "v_activation": "silu", "lower_bound": 0.5, "scale": 0.5},
    },
    "retnet": {
        "rope": {"num_heads": 4, "rotary": "rope", "expand_v": 1.0, "norm": "rms", "bias": True},
        "no-rotary": {"num_heads": 1, "rotary": "none", "output_gate": False, "expand_k": 0.5},
    },
}


def _configurations() -> dict[str, Config]:
    """Maps `gla-grouped-bidirectional` to its configuration: each variant of each mixer in each direction it can go.

    `plain` is what the mixer itself says fits the width; a mixer of one length gets that of the laws."""
    found: dict[str, Config] = {}
    for name in list_mixers():
        spec, plain = mixer_info(name), MIXERS.get(name).fitted(DIM, HEAD)
        if "length" in spec.cannot:
            plain = {**plain, "length": LENGTH}
        variants = {"plain": plain, **VARIANTS.get(name, {})}
        if "short_conv" in spec.capabilities:
            own = build_mixer({"name": name, "dim": DIM, **plain}).config["short_conv"]
            variants["no-conv" if own else "short-conv"] = plain | {"short_conv": 0 if own else 4}
        for variant, settings in variants.items():
            config = {"name": name, "dim": DIM, **settings}
            if "causal" in spec.capabilities:
                found[f"{name}-{variant}"] = config
            if "bidirectional" in spec.capabilities:
                found[f"{name}-{variant}-bidirectional"] = config | looking_both_ways(name)
    return found


CONFIGURATIONS = _configurations()
DIRECTION = {label: label.endswith("-bidirectional") for label in CONFIGURATIONS}


def each_mixer(
    *capabilities: str, needs: tuple[str, ...] = (), only: str = "", **settings: Any
) -> pytest.MarkDecorator:
    """Runs a test for every configuration whose spec has the capabilities, in the direction named among them.

    `needs` leaves out mixers whose spec says that they cannot. `only` keeps variants with this word in their id,
    `settings` those that have these values. The specs alone decide what is left out: nothing in the conformance suite
    is skipped.
    """
    directions = {"causal": False, "bidirectional": True}
    wanted = {directions[name] for name in capabilities if name in directions} or {False, True}

    def applies(label: str, config: Config) -> bool:
        spec = mixer_info(config["name"])
        return (
            set(capabilities) <= spec.capabilities
            and not set(needs) & spec.cannot
            and DIRECTION[label] in wanted
            and only in label
            and all(_value(config, key) == value for key, value in settings.items())
        )

    chosen = [pytest.param(config, id=label) for label, config in CONFIGURATIONS.items() if applies(label, config)]
    return pytest.mark.parametrize("config", chosen)


def _value(config: Config, key: str) -> Any:
    """Returns what a mixer is built with, its defaults included."""
    with torch.device("meta"):
        return build_mixer(config).config.get(key)


def build(config: Config, dtype: torch.dtype = torch.float64) -> Mixer:
    """Builds the mixer and moves every parameter off its start, so that no weight is one and no bias zero."""
    mixer = build_mixer(config)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer.to(dtype)


def tokens(B: int, T: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, DIM, dtype=dtype)


def length_for(config: Config, length: int) -> int:
    """Returns the length itself, or the only one that the mixer takes."""
    return config.get("length", length)
