"""The papers, or the code of their results, give these numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixerzoo import build_mixer
from mixerzoo.blocks.stack import Stack

from .tolerances import assert_close

GLU = {"activation": "none", "bias": True}
WIKITEXT_VOCABULARY = 50268


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(autouse=True)
def on_meta():
    """Counts on the meta device, without memory."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("mixer", "multiplier", "published"),
    [("hgrn1", 2, 46.25), ({"name": "hgrn2", "expand": 128, "bias": True}, 8 / 3, 44.66)],
    ids=["HGRN1", "HGRN2"],
)
def test_wikitext_103_models_have_the_published_size(mixer, multiplier: float, published: float) -> None:
    """arXiv:2311.04823, table 1, has six layers of width 512 and one embedding for input and output."""
    layers = Stack(512, 6, mixer, channel_mixer={"multiplier": multiplier, **GLU}, norm="layer")
    assert round(count(layers, nn.Embedding(WIKITEXT_VOCABULARY, 512)) / 1e6, 2) == published


@pytest.mark.parametrize(("dim", "published"), [(192, 6.11), (384, 23.72)])
def test_imagenet_models_have_the_published_size(dim: int, published: float) -> None:
    """The authors' vision models have patches of 14, twelve layers, mean pooling, no positions, no class token.

    The papers print 6.1 and 23.7 M; the second decimal follows from the authors' code.
    """
    layers = Stack(dim, 12, "hgrn1", channel_mixer={"multiplier": 2, "bias": True}, norm="layer", bidirectional=True)
    patches, head = nn.Conv2d(3, dim, 14, stride=14), nn.Linear(dim, 1000)
    assert round(count(layers, patches, head) / 1e6, 2) == published


@pytest.mark.parametrize(
    ("config", "squares"),
    [
        ({"name": "hgrn1"}, 7),
        ({"name": "hgrn1", "complex": False}, 4),
        ({"name": "hgrn2"}, 4),
        ({"name": "retnet"}, 8),
        ({"name": "gla"}, 4),
        ({"name": "attention"}, 4),
    ],
    ids=str,
)
def test_mixers_have_the_published_number_of_matrices(config: dict, squares: int) -> None:
    """The unit is dim^2, for weights of full maps alone: GLA's low-rank gate, biases, norms and theta aside."""
    dim = 1024
    mixer = build_mixer({**config, "dim": dim})
    full = [weight for weight in mixer.parameters() if weight.ndim == 2 and min(weight.shape) > 16]
    assert sum(weight.numel() for weight in full) == squares * dim**2


def test_small_parameters_are_the_published_ones() -> None:
    """hgrn1 has six biases (of width 1, 2, 2, 1), 4 D for the norm, theta. gla has 16 D + 16 K + K for the gate."""
    D = 512
    assert count(build_mixer("hgrn1", dim=D)) == 7 * D**2 + (1 + 2 + 2 + 1) * D + 4 * D + D
    assert count(build_mixer("hgrn1", dim=D, bidirectional=True)) == 7 * D**2 + 12 * D
    assert count(build_mixer("hgrn2", dim=D)) == 4 * D**2 + 2 * D
    assert count(build_mixer("gla", dim=D)) == 4 * D**2 + 16 * D + 16 * D // 2 + D // 2 + D // 4


@pytest.mark.parametrize("bidirectional", [False, True])
def test_theta_starts_as_published(bidirectional: bool) -> None:
    with torch.device("cpu"):
        mixer = build_mixer("hgrn1", dim=8, bidirectional=bidirectional)
        expected = torch.tensor([10000 ** (-2 * j / 8) for j in range(8)])
    for theta in [mixer.theta] + ([mixer.theta_reverse] if bidirectional else []):
        assert_close(theta.detach(), expected)


def test_state_sizes_are_the_published_ones() -> None:
    D, T = 1024, 2048
    assert build_mixer("hgrn1").state_size(T) == 2 * D
    assert build_mixer("hgrn1", complex=False).state_size(T) == D
    assert build_mixer("hgrn2", expand=128).state_size(T) == 128 * D
    assert build_mixer("hgrn2", expand=1).state_size(T) == D
    assert build_mixer("gla").state_size(T) == D * D // 8
    assert build_mixer("retnet").state_size(T) == 4 * 256 * 512
    assert build_mixer("attention").state_size(T) == 2 * T * D
    assert build_mixer("attention", window=100).state_size(T) == 2 * 100 * D
