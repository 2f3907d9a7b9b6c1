"""The catalog maps every mixer's name to its class. A new mixer is one file in mixers/ and one line here."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .pattern import MixerConfig, config_of
from .registry import Registry, unknown

if TYPE_CHECKING:
    from mixerzoo.mixers.parts import Mixer, MixerSpec

MIXERS = Registry(
    "mixer",
    {
        "attention": "mixerzoo.mixers.attention:Attention",
        "gla": "mixerzoo.mixers.gla:GLA",
        "hgrn1": "mixerzoo.mixers.hgrn1:HGRN1",
        "hgrn2": "mixerzoo.mixers.hgrn2:HGRN2",
        "retnet": "mixerzoo.mixers.retnet:RetNet",
    },
    entry_point_group="mixerzoo.mixers",
)

register_mixer = MIXERS.register


def build_mixer(mixer: MixerConfig, **config: Any) -> Mixer:
    """Builds a mixer by name, `build_mixer("hgrn2", expand=128)`, or by configuration, `build_mixer({"name": "gla"})`.

    Keywords are the mixer's constructor arguments and win over the mapping's; `dim` is 1024 by default.
    Raises ValueError for an unknown name or keyword; the error lists the nearest names and all known ones.
    """
    config = {**config_of(mixer), **config}
    if "name" not in config:
        raise ValueError(
            f"a mixer configuration needs a 'name', got {sorted(config)}; known: {', '.join(list_mixers())}"
        )
    name = config.pop("name")
    cls = MIXERS.get(name)
    allowed = mixer_keywords(name)
    for keyword in config:
        if keyword not in allowed:
            raise ValueError(unknown(f"keyword of mixer {name!r}:", keyword, allowed))
    module = cls(**config)
    module.config = {"name": name, **module.config}
    return module


def list_mixers() -> list[str]:
    """Returns the names that `build_mixer` takes, third-party plug-ins included."""
    return MIXERS.names()


def mixer_keywords(name: str) -> list[str]:
    """Lists the constructor keywords of a mixer. Raises ValueError for an unknown name."""
    return list(inspect.signature(MIXERS.get(name).__init__).parameters)[1:]


def looking_both_ways(name: str) -> dict[str, bool]:
    """Returns the keyword that makes a mixer look both ways; {} for one that always does or never can."""
    can = "bidirectional" in mixer_info(name).capabilities and "bidirectional" in mixer_keywords(name)
    return {"bidirectional": True} if can else {}


def mixer_info(name: str) -> MixerSpec:
    """Returns a mixer's paper, equation, ops, state size, FLOPs and capabilities.

    Raises ValueError for an unknown name.
    """
    return MIXERS.get(name).spec
