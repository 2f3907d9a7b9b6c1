"""Every mixer can be compiled without a graph break, also for its gradient, and exported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixerzoo import mixer_info
from mixerzoo.mixers.parts.contract import Mixer

from ..tolerances import assert_close
from .zoo import build, each_mixer, tokens


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def check_compiled(mixer: Mixer, x: Tensor, **arguments: Tensor) -> None:
    weights = torch.randn_like(x)

    def run(forward) -> tuple[Tensor, ...]:
        y = forward(x, **arguments)
        return y, *torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])

    assert_close(run(compiled(mixer)), run(mixer))


@each_mixer(needs=("compile", "length"), only="plain")
def test_compiled_equals_eager(config: dict) -> None:
    check_compiled(build(config), tokens(2, 3).requires_grad_())


@each_mixer("causal", needs=("compile", "padding"), only="plain")
def test_compiled_with_padding_and_short_convolution_equals_eager(config: dict) -> None:
    if "short_conv" in mixer_info(config["name"]).capabilities:
        config = config | {"short_conv": 4}
    mask = torch.tensor([[False, True, True], [True, False, True]])
    check_compiled(build(config), tokens(2, 3).requires_grad_(), mask=mask)


@each_mixer("causal", needs=("compile", "packing"), only="plain")
def test_compiled_with_packing_equals_eager(config: dict) -> None:
    check_compiled(build(config), tokens(1, 3).requires_grad_(), cu_seqlens=torch.tensor([0, 0, 1, 3]))


@each_mixer("causal", needs=("compile",), only="plain")
def test_compiled_step_equals_eager(config: dict) -> None:
    mixer, x = build(config), tokens(2, 3)
    state = mixer.prefill(x, mixer.init_state(2, max_length=20)).state
    assert_close(compiled(mixer.step)(x[:, 0], state), mixer.step(x[:, 0], state))


@each_mixer(needs=("compile", "length"), only="plain")
def test_exported_equals_eager(config: dict) -> None:
    mixer, x = build(config), tokens(2, 9)
    assert_close(torch.export.export(mixer, (x,)).module()(x), mixer(x))
