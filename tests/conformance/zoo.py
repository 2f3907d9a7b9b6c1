"""Each law is tried on mixers and configurations from here: the registry, the specs, and one table of tiny settings.

A mixer that no table knows, for instance a plug-in, is tried with its defaults. Only a spec can leave out a law.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixerzoo import build_mixer, list_mixers, mixer_info
from mixerzoo.mixers.parts.contract import Mixer

DIM = 16
LENGTH = 67  # one chunk of 64 and a rest
Config = dict[str, Any]

TINY: dict[str, dict[str, Config]] = {
    "attention": {
        "plain": {"num_heads": 2},
        "grouped": {"num_heads": 4, "num_kv_heads": 2, "bias": True},
        "window": {"num_heads": 2, "window": 5},
        "qk-norm": {"num_heads": 2, "qk_norm": True, "rotary": False},
    },
    "gla": {
        "plain": {"num_heads": 2, "expand_k": 1.0},
        "grouped": {"num_heads": 4, "num_kv_heads": 2, "expand_v": 2.0, "bias": True},
        "no-gate": {"num_heads": 1, "output_gate": False, "norm": "layer", "gate_normalizer": 2.0},
    },
    "hgrn1": {
        "plain": {},
        "real": {"complex": False, "bias": False, "lower_bound": 0.5},
        "gate-norm": {"norm_order": "gate_norm", "norm": "rms", "lower_bound": 0.9},
        "no-gate": {"output_gate": False, "norm": "group"},
    },
    "hgrn2": {
        "plain": {"expand": 8, "bias": True},
        "expand-1": {"expand": 1, "norm": "srms"},
        "modules": {"expand": 4, "q_activation": "sigmoid", "v_activation": "silu", "lower_bound": 0.5, "scale": 0.5},
    },
    "retnet": {
        "plain": {"num_heads": 2},
        "rope": {"num_heads": 4, "rotary": "rope", "expand_v": 1.0, "norm": "rms", "bias": True},
        "no-rotary": {"num_heads": 1, "rotary": "none", "output_gate": False, "expand_k": 0.5},
    },
}


def _configurations() -> dict[str, Config]:
    """Maps `gla-grouped-bidirectional` to its configuration: each variant of each mixer in each direction it can go."""
    found: dict[str, Config] = {}
    for name in list_mixers():
        can = mixer_info(name).capabilities
        variants = dict(TINY.get(name, {"plain": {}}))
        if "short_conv" in can:
            variants["short-conv"] = variants["plain"] | {"short_conv": 4}
        for variant, settings in variants.items():
            config = {"name": name, "dim": DIM, **settings}
            if "causal" in can:
                found[f"{name}-{variant}"] = config
            if "bidirectional" in can:
                found[f"{name}-{variant}-bidirectional"] = config | {"bidirectional": True}
    return found


CONFIGURATIONS = _configurations()


def each_mixer(*capabilities: str, only: str = "", **settings: Any) -> pytest.MarkDecorator:
    """Runs a test for every configuration whose spec has the capabilities, in the direction named among them.

    `only` selects variants with this word in their id, `settings` those with these values. The specs alone decide what
    is left out: nothing in the conformance suite is skipped.
    """
    wanted = {"causal": False, "bidirectional": True}
    directions = {wanted[name] for name in capabilities if name in wanted} or {False, True}

    def applies(label: str, config: Config) -> bool:
        return (
            set(capabilities) <= mixer_info(config["name"]).capabilities
            and config.get("bidirectional", False) in directions
            and only in label
            and all(config.get(key, value) == value for key, value in settings.items())
        )

    chosen = [pytest.param(config, id=label) for label, config in CONFIGURATIONS.items() if applies(label, config)]
    return pytest.mark.parametrize("config", chosen)


def build(config: Config, dtype: torch.dtype = torch.float64) -> Mixer:
    """Builds the mixer and moves every parameter off its start, so that no weight is one and no bias zero."""
    mixer = build_mixer(config)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer.to(dtype)


def tokens(B: int, T: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, DIM, dtype=dtype)
