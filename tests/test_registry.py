"""Names come from the catalog, from registration, and from third-party mixers installed beside the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mixerzoo.kernels
from mixerzoo import build_mixer, list_mixers, mixer_info, register_mixer
from mixerzoo.mixers.gla import GLA
from mixerzoo.mixers.parts import Mixer, MixerSpec
from mixerzoo.registry.catalog import MIXERS
from mixerzoo.registry.pattern import label_of, names_in, pattern_of, resolved, tiled
from mixerzoo.registry.registry import Registry

ROOT = Path(__file__).parents[1]
PLUGIN = '''
import torch
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.mixers.parts.contract import MixerSpec
from mixerzoo.mixers.parts.frame import LinearMixer


class MovingAverage(LinearMixer):
    """`h_t = sigmoid(a) h_{t-1} + (1 - sigmoid(a)) W x_t`."""

    spec = MixerSpec(
        paper="none", equation="h_t = f h_{t-1} + (1 - f) W x_t", ops=("gated_scan",), state="D", flops="2 T D^2",
        capabilities=frozenset({"causal", "bidirectional", "constant_state", "short_conv", "flip_equivariant"}),
    )

    def __init__(self, dim: int = 1024, *, short_conv: int = 0, bidirectional: bool = False) -> None:
        super().__init__(dim, dim, bidirectional=bidirectional, short_conv=short_conv)
        self.a = torch.nn.Parameter(torch.ones(dim))
        self.proj = torch.nn.Linear(dim, dim)

    def project(self, x):
        return (self.proj(x),)

    def mix(self, projected, layout, memory, shared):
        (u,) = projected
        f = self.a.sigmoid().expand_as(u)
        if layout.valid is not None:
            f = torch.where(layout.valid[..., None], f, 1)
        options = {"cu_seqlens": layout.cu_seqlens, "direction": self.direction}
        return gated_scan((1 - f) * u, f.log(), initial_state=memory, **options)

    def readout(self, y, x):
        return y.to(x.dtype)

    def memory_shape(self):
        return (self.dim,)

    def mixing_flops(self, length):
        return 3 * length * self.dim
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a directory in which a distribution with one mixer is installed, as an installer leaves it."""
    site = tmp_path_factory.mktemp("site")
    (site / "moving_average.py").write_text(PLUGIN)
    info = site / "moving_average-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moving-average\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mixerzoo.mixers]\nmoving-average = moving_average:MovingAverage\n")
    return site


def run(site: Path, *arguments: str) -> str:
    """Returns the standard output of a fresh Python process that sees the installed distribution."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_plugin_is_a_mixer_like_any_other(site: Path) -> None:
    script = """
import json, sys
import mixerzoo
names = mixerzoo.list_mixers()
imported_by_listing = "moving_average" in sys.modules
import torch
from mixerzoo.blocks.stack import Stack
mixer = mixerzoo.build_mixer("moving-average", dim=8)
stack = Stack(8, 2, ["moving-average", "hgrn1"])
y = stack.step(torch.randn(3, 8), stack.init_state(3)).y
paper = mixerzoo.mixer_info("moving-average").paper
print(json.dumps([names, imported_by_listing, mixer.config, list(y.shape), paper]))
"""
    names, imported_by_listing, config, shape, paper = json.loads(run(site, "-c", script))
    assert names == sorted([*MIXERS.names(), "moving-average"])
    assert not imported_by_listing
    assert config == {"name": "moving-average", "dim": 8, "short_conv": 0, "bidirectional": False}
    assert shape == [3, 8]
    assert paper == "none"


def test_an_installed_plugin_is_under_the_laws(site: Path) -> None:
    laws = [ROOT / "tests" / "conformance" / name for name in ("test_mixers.py", "test_errors.py")]
    report = run(site, "-m", "pytest", "-p", "no:cacheprovider", *map(str, laws), "-k", "moving-average", "-rA")
    assert report.count("PASSED") >= 60
    assert "SKIPPED" not in report


def test_the_catalog_names_classes_that_exist() -> None:
    assert {"attention", "gla", "hgrn1", "hgrn2", "retnet"} <= set(list_mixers())
    for name in list_mixers():
        assert issubclass(MIXERS.get(name), Mixer)


@pytest.mark.parametrize("name", list_mixers())
def test_a_spec_names_ops_that_exist(name: str) -> None:
    spec = mixer_info(name)
    assert isinstance(spec, MixerSpec)
    folders = {path.parent.name for path in Path(mixerzoo.kernels.__path__[0]).glob("*/op.py")}
    assert set(spec.ops) <= folders


@pytest.mark.parametrize("name", list_mixers())
def test_filters_find_a_mixer_by_its_spec(name: str) -> None:
    spec = mixer_info(name)
    for op in spec.ops or (None,):
        assert name in list_mixers(spec.family, op, spec.capabilities)
    assert all(mixer_info(other).family == spec.family for other in list_mixers(family=spec.family))
    assert all(spec.capabilities <= mixer_info(other).capabilities for other in list_mixers(can=spec.capabilities))


def test_all_filters_must_hold() -> None:
    assert list_mixers("attention", "hgrn2") == []
    assert "hgrn1" in list_mixers(can=["depth_shared"])
    assert "hgrn1" not in list_mixers(can=["depth_shared", "flip_equivariant"])
    assert list_mixers(can=()) == list_mixers()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"family": "matrix"}, "unknown family 'matrix'; did you mean matrix state? known: attention, "),
        ({"op": "gated-scan"}, "unknown op 'gated-scan'; did you mean gated_scan? known: gated_linear_attention, "),
        ({"can": ["causal", "fly"]}, "unknown capability 'fly'; known: bidirectional, causal, "),
    ],
)
def test_a_filter_that_no_mixer_fits_is_named(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        list_mixers(**filters)


@pytest.mark.parametrize("name", list_mixers())
def test_dim_is_1024_by_default(name: str) -> None:
    with torch.device("meta"):
        assert build_mixer(name).config["dim"] == 1024


def test_keywords_win_over_a_configuration() -> None:
    config = {"name": "hgrn2", "dim": 16, "expand": 8}
    mixer = build_mixer(config, expand=4)
    assert mixer.config["expand"] == 4
    assert config == {"name": "hgrn2", "dim": 16, "expand": 8}


def test_a_spec_refuses_unknown_capabilities() -> None:
    with pytest.raises(ValueError, match=r"unknown capabilities \['psychic'\]; known: bidirectional, causal"):
        MixerSpec("p", "e", (), "s", "f", frozenset({"psychic"}))


@pytest.fixture
def own_mixers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MIXERS, "_targets", dict(MIXERS._targets))


@pytest.mark.usefixtures("own_mixers")
def test_register_as_decorator_as_call_and_by_reference() -> None:
    @register_mixer("gla-by-decorator")
    class Mine(GLA):
        pass

    register_mixer("gla-by-call", Mine)
    register_mixer("gla-by-reference", "mixerzoo.mixers.gla:GLA")
    for name in ("gla-by-decorator", "gla-by-call", "gla-by-reference"):
        assert name in list_mixers()
        mixer = build_mixer(name, dim=16)
        assert mixer.config["name"] == name
        assert build_mixer(mixer.config).config == mixer.config


@pytest.mark.usefixtures("own_mixers")
def test_a_name_stands_for_one_thing() -> None:
    register_mixer("gla", "mixerzoo.mixers.gla:GLA")
    register_mixer("gla", GLA)
    with pytest.raises(ValueError, match=r"'hgrn1' is already registered as mixerzoo\.mixers\.hgrn1:HGRN1, got"):
        register_mixer("hgrn1", GLA)


def test_a_registry_without_a_near_name_lists_what_it_has() -> None:
    registry = Registry("thing", {"one": "a:b"}, "mixerzoo.nothing")
    with pytest.raises(ValueError, match=r"^unknown thing 'xyz'; known: one$"):
        registry.get("xyz")


def test_names_of_one_class_are_listed_together() -> None:
    targets = {"mods/b": "m:B", "a": "m:A", "b": "m:B", "c": Registry}
    registry = Registry("thing", targets, "mixerzoo.nothing")
    assert registry.synonyms() == [["a"], ["b", "mods/b"], ["c"]]


@pytest.mark.parametrize(
    ("mixer", "pattern", "label"),
    [
        ("gla", [{"name": "gla"}], "gla"),
        ({"name": "gla", "num_heads": 2}, [{"name": "gla", "num_heads": 2}], "gla"),
        (["gla", {"name": "hgrn1"}], [{"name": "gla"}, {"name": "hgrn1"}], "gla+hgrn1"),
        (({"name": "gla"},), [{"name": "gla"}], "gla"),
    ],
)
def test_a_pattern_is_a_name_a_configuration_or_a_list_of_those(mixer: Any, pattern: list[Any], label: str) -> None:
    assert pattern_of(mixer) == pattern
    assert resolved(mixer) == (pattern if isinstance(mixer, (list, tuple)) else pattern[0])
    assert resolved(resolved(mixer)) == resolved(mixer)
    assert tiled(mixer, 3) == (pattern * 3)[:3]
    assert label_of(mixer) == label
    assert names_in(label) == [one["name"] for one in pattern]


@pytest.mark.parametrize("mixer", [None, 3, [], {}, {"expand": 3}, ["gla", 3], ["gla", {"expand": 3}], [["gla"]]])
def test_anything_else_is_no_pattern_and_the_error_says_whose(mixer: Any) -> None:
    message = "my mixer must be a name, a configuration with a 'name', or a list of those, got "
    with pytest.raises(ValueError, match=re.escape(message + repr(mixer))):
        pattern_of(mixer, "my mixer")
