"""Mixers of other packages come alive in every host by one file and one line, whatever shape they have.

The files of tests/plug_ins are written by CONTRIBUTING's rules alone: a state of two tensors without a neutral input
(lstm), a learned start (leaky), two axes (neighbours), a convolution with a bias and maps behind it, heads that share
keys, defaults that fit no small width (selective), a token shift, a value of the first layer and starts by depth
(shifted), one length and both ways only (blend).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLASSES = {path.stem: path.stem.capitalize() for path in sorted((ROOT / "tests" / "plug_ins").glob("[a-z]*.py"))}
CLASSES["lstm"] = "LSTM"
CAUSAL = [name for name in CLASSES if name != "blend"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs the files as a distribution of mixers."""
    site = tmp_path_factory.mktemp("site")
    for name in CLASSES:
        (site / f"{name}.py").write_text((ROOT / "tests" / "plug_ins" / f"{name}.py").read_text())
    info = site / "plug_ins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-ins\nVersion: 1.0\n")
    lines = [f"{name} = {name}:{cls}" for name, cls in CLASSES.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mixerzoo.mixers]", *lines, ""]))
    return site


def run(site: Path, *arguments: str) -> str:
    """Returns what a fresh Python process prints that sees the installed distribution."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_the_laws_hold(site: Path) -> None:
    names = " or ".join(f"{name}-plain or {name}-no" for name in CLASSES)
    laws = [f"tests/conformance/test_{part}.py" for part in ("mixers", "errors", "scan_orders", "compile")]
    run(
        site,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-q",
        *laws,
        "-k",
        names,
    )


LANGUAGE_MODEL = """
import sys, torch
from mixerzoo.registry.catalog import MIXERS
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM

torch.manual_seed(0)
mixer = {"name": sys.argv[1], **MIXERS.get(sys.argv[1]).fitted(32, 8)}
sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0}
model = MixerForCausalLM(MixerConfig([mixer, "hgrn1", mixer], **sizes)).eval()
ids = torch.randint(1, 50, (2, 7))
greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
text = model.generate(ids, **greedy)
assert torch.equal(model(text).logits[:, 6:-1].argmax(-1), text[:, 7:])
padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
continued = model.generate(padded, attention_mask=(padded > 0).long(), **greedy)
assert torch.equal(continued[:, 10:], text[:, 7:])
packed = model(ids.reshape(1, -1), position_ids=torch.arange(7).repeat(1, 2)).logits
torch.testing.assert_close(packed.view(2, 7, 50), model(ids).logits)
assisted = model.generate(ids[:1], assistant_model=model, **greedy)
assert torch.equal(assisted, text[:1])

def gradients():
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

model.train()
expected = gradients()
assert all(gradient.isfinite().all() for gradient in expected.values())
for reentrant in (False, True):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(), expected)
"""


@pytest.mark.parametrize("name", CAUSAL)
def test_it_is_a_language_model(site: Path, name: str) -> None:
    """Greedy and assisted generation, padded and packed rows and both kinds of checkpoints are what the whole is."""
    run(site, "-c", LANGUAGE_MODEL, name)


def test_a_mixer_that_looks_both_ways_is_no_causal_language_model(site: Path) -> None:
    refused = """
import pytest
from mixerzoo.blocks.stack import Stack
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM

with pytest.raises(ValueError, match="a causal language model can't have 'blend', which looks both ways"):
    MixerForCausalLM(MixerConfig("blend", vocab_size=50, hidden_size=32, num_hidden_layers=1))
with pytest.raises(ValueError, match="the stack has bidirectional=False, got mixer 'blend', which can't be so"):
    Stack(32, 1, "blend")
assert Stack(32, 1, {"name": "blend", "length": 5}, bidirectional=True).blocks[0].mixer.bidirectional
"""
    run(site, "-c", refused)


IMAGE_MODELS = """
import sys, timm, torch
import mixerzoo.tasks.vision

torch.manual_seed(0)
settings = {"num_classes": 5, "channel_mixer": {"hidden": 32}}
x = torch.randn(2, 3, 32, 32)
for shape, sizes in (
    ("tiny_patch16_224", {"img_size": 32, "embed_dim": 32, "depth": 2}),
    ("pyramid_tiny", {"embed_dims": (32, 32, 64, 64), "depths": (1, 1, 2, 1)}),
):
    model = timm.create_model(f"zoo_{sys.argv[1]}_{shape}", **settings, **sizes)
    model(x).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert model(x).isfinite().all()
"""


@pytest.mark.parametrize("name", CAUSAL)
def test_it_is_an_image_model(site: Path, name: str) -> None:
    """By its names in timm, in both shapes; every parameter starts anew."""
    run(site, "-c", IMAGE_MODELS, name)


DEPTH = """
import torch
from mixerzoo.blocks.stack import Stack

torch.manual_seed(0)
stack = Stack(16, 4, ["hgrn1", "shifted", "hgrn1", "shifted"]).double()
places = [(block.mixer.layer, block.mixer.depth) for block in stack.blocks]
assert places == [(0, 4), (1, 4), (2, 4), (3, 4)]
starts = [float(block.mixer.of_v.mean()) for block in stack.blocks[1::2]]
assert torch.allclose(torch.tensor(starts), torch.tensor([2 / 5, 4 / 5]))
seen = []
for block in stack.blocks:
    block.mixer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["shared"]), with_kwargs=True)
x = torch.randn(2, 9, 16, dtype=torch.float64)
y = stack(x)
assert [sorted(shared) for shared in seen] == [["lower_bound"], ["first_value"]] * 2
assert seen[1]["first_value"] is seen[3]["first_value"]

first = stack.blocks[1]
with torch.no_grad():
    first.mixer.v_proj.weight.mul_(2)
assert not torch.allclose(stack(x), y)
with torch.no_grad():
    first.mixer.v_proj.weight.div_(2)

head, state = stack.prefill(x[:, :5])
outputs = [head]
for x_t in x[:, 5:].unbind(1):
    y_t, state = stack.step(x_t, state)
    outputs.append(y_t[:, None])
torch.testing.assert_close(torch.cat(outputs, 1), y)

mask = torch.ones(2, 12, dtype=torch.bool)
mask[0, :3], mask[1, 4:7] = False, False
padded = torch.full((2, 12, 16), 7.0, dtype=torch.float64)
padded[mask] = x.flatten(0, 1)
torch.testing.assert_close(stack(padded, mask=mask)[mask], y.flatten(0, 1))
packed = stack(x.reshape(1, 18, 16), cu_seqlens=torch.tensor([0, 9, 18]))
torch.testing.assert_close(packed.view(2, 9, 16), y)
"""


def test_several_kinds_of_sharing_stand_side_by_side(site: Path) -> None:
    """Lower bounds and the first value reach their own layers, in whole, split, padded and packed sequences."""
    run(site, "-c", DEPTH)


def test_all_of_them_are_values_of_a_grid(site: Path, tmp_path: Path) -> None:
    """One that looks both ways has no place in a causal task, and is left out with the reason."""
    runs = tmp_path / "runs"
    mqar = {"length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}
    settings = [f"task.{key}={value}" for key, value in mqar.items()] + ["train.steps=2"]
    chosen = ["--mixers", ",".join([*CLASSES, "hgrn2"]), "--tasks", "mqar", "--seeds", "1"]
    told = run(
        site,
        "-m",
        "mixerzoo.cli",
        "ablate",
        *chosen,
        *(f"--set={one}" for one in settings),
        "--runs-dir",
        str(tmp_path),
        "--name",
        "runs",
        "--no-plots",
    )
    results = (runs / "results.csv").read_text()
    assert {name for name in (*CLASSES, "hgrn2") if f"\n{name}," in results or f",{name}," in results} == {
        *CAUSAL,
        "hgrn2",
    }
    assert "blend" in told
