"""The catalog maps every mixer's name to its class. A new mixer is one file in mixers/ and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Collection
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


def list_mixers(family: str | None = None, op: str | None = None, can: Collection[str] = ()) -> list[str]:
    """Returns the names that `build_mixer` takes, third-party plug-ins included.

    A filter imports the mixers; without one nothing is imported.

    Args:
        family: only those of this family, "matrix state" for instance.
        op: only those that run on this op.
        can: only those that promise all of these capabilities.

    Raises ValueError for a value that no mixer has; the error lists the nearest ones and all that there are.
    """
    names = MIXERS.names()
    if family is None and op is None and not can:
        return names
    wanted = {
        "family": set() if family is None else {family},
        "op": set() if op is None else {op},
        "capability": set(can),
    }
    specs = {name: mixer_info(name) for name in names}
    has = {
        name: {"family": {spec.family}, "op": set(spec.ops), "capability": set(spec.capabilities)}
        for name, spec in specs.items()
    }
    for kind, values in wanted.items():
        known = set[str]().union(*(one[kind] for one in has.values()))
        if missing := values - known:
            raise ValueError(unknown(kind, min(missing), known))
    return [name for name in names if all(values <= has[name][kind] for kind, values in wanted.items())]


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
