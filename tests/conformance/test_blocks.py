"""Laws of stacks say: any pattern of mixers behaves as one mixer does, and shared values reach every layer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mixerzoo.blocks.channel_mixers import GLU
from mixerzoo.blocks.stack import Stack
from mixerzoo.kernels.pointwise import bounded_gate
from mixerzoo.mixers.parts.lower_bounds import LowerBounds

from ..tolerances import assert_close, assert_identical
from .zoo import CONFIGURATIONS, DIM, LENGTH, tokens

PATTERNS = {
    "hgrn1": ["hgrn1"],
    "hybrid": [{"name": "hgrn2", "expand": 8}, {"name": "attention", "num_heads": 2}],
    "windows": [{"name": "attention", "num_heads": 2, "window": 5}, {"name": "hgrn2", "expand": 1, "short_conv": 4}],
    "all": [
        {key: value for key, value in config.items() if key != "dim"}
        for label, config in CONFIGURATIONS.items()
        if label.endswith("-plain")
    ],
}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def stack(pattern: list, depth: int | None = None, **options) -> Stack:
    built = Stack(DIM, depth or max(3, len(pattern)), pattern, **options).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def gradients(y: Tensor, module: torch.nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), list(module.parameters()))


@each_pattern
def test_step_and_prefill_equal_forward(pattern: list) -> None:
    layers, x = stack(pattern), tokens(2, LENGTH)
    head, state = layers.prefill(x[:, :40])
    middle, state = layers.prefill(x[:, 40:64], state)
    outputs = [head, middle]
    for x_t in x[:, 64:].unbind(1):
        y_t, state = layers.step(x_t, state)
        outputs.append(y_t[:, None])
    assert_close(torch.cat(outputs, 1), layers(x))


@each_pattern
def test_step_from_the_start_equals_forward(pattern: list) -> None:
    layers, x = stack(pattern), tokens(2, 1)
    assert_close(layers.step(x[:, 0], layers.init_state(2, max_length=3)).y, layers(x)[:, 0])


@each_pattern
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_and_packing_are_inert(pattern: list, bidirectional: bool) -> None:
    layers, x = stack(pattern, bidirectional=bidirectional), tokens(2, LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :9] = mask[1, 5:20] = False
    padded = layers(x.masked_fill(~mask[..., None], 1e3), mask=mask)
    alone = [layers(row[valid][None]) for row, valid in zip(x, mask, strict=True)]
    assert_close(padded[mask][None], torch.cat(alone, 1))

    lengths = torch.stack([valid.sum() for valid in mask])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    assert_close(layers(x[mask][None], cu_seqlens=cu_seqlens), torch.cat(alone, 1))


@each_pattern
def test_prefill_ignores_padding(pattern: list) -> None:
    layers, x, following = stack(pattern), tokens(2, LENGTH), tokens(2, 1)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :9] = mask[1, 5:20] = False
    _, state = layers.prefill(x, mask=mask)
    y, _ = layers.step(following[:, 0], state)
    for row, valid in enumerate(mask):
        assert_close(y[row], layers(torch.cat([x[row, valid], following[row]])[None])[0, -1])


@each_pattern
def test_gradient_checkpointing_keeps_the_gradients(pattern: list) -> None:
    layers, x = stack(pattern), tokens(2, 9)
    expected = gradients(layers(x), layers)
    layers.gradient_checkpointing = True
    assert_identical(gradients(layers(x), layers), expected)
    with torch.no_grad():
        layers(x)


@each_pattern
def test_every_parameter_gets_a_gradient(pattern: list) -> None:
    layers = stack(pattern)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(layers(tokens(2, 9)), layers))


@each_pattern
def test_state_size_and_flops_are_sums_over_layers(pattern: list) -> None:
    layers = stack(pattern)
    _, state = layers.prefill(tokens(1, 9), layers.init_state(1, max_length=9))
    assert layers.state_size(9) == sum(leaf.numel() for leaf in tree_leaves(state) if leaf.is_floating_point())
    channels = sum(weight.numel() for name, weight in layers.named_parameters() if "channel_mixer" in name)
    assert layers.flops(9) == sum(block.mixer.flops(9) for block in layers.blocks) + 2 * 9 * channels


def bounds_seen(layers: Stack) -> list[Tensor | None]:
    seen: list[Tensor | None] = []
    for block in layers.blocks:
        block.mixer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["shared"].get("lower_bound")), with_kwargs=True
        )
    layers(tokens(1, 3))
    return seen


@pytest.mark.parametrize("convention", ["skip_first", "skip_last"])
@pytest.mark.parametrize("name", ["hgrn1", "hgrn2"])
def test_lower_bounds_reach_every_layer(name: str, convention: str) -> None:
    mixer = {"name": name, "expand": 8} if name == "hgrn2" else name
    layers = stack([mixer], 4, lower_bounds=convention)
    seen = bounds_seen(layers)
    assert not seen[0].any()
    assert all((deeper > bound).all() and (deeper < 1).all() for bound, deeper in pairwise(seen))
    logits = layers.lower_bounds.logits
    assert torch.autograd.grad(layers(tokens(2, 9)).square().sum(), logits)[0].abs().min() > 0


@pytest.mark.parametrize("convention", ["skip_first", "skip_last"])
@pytest.mark.parametrize("depth", [1, 2, 6])
def test_lower_bounds_start_at_k_over_depth(depth: int, convention: str) -> None:
    expected = (torch.arange(depth) / depth)[:, None].expand(depth, DIM)
    assert_close(LowerBounds(depth, DIM, convention)(), expected)


def test_conventions_of_the_lower_bounds_are_the_sources() -> None:
    logits = torch.randn(4, DIM, dtype=torch.float64)
    shares = logits.exp() / logits.exp().sum(0)
    for convention, expected in (
        ("skip_first", [sum(shares[1 : k + 1], torch.zeros(DIM)) for k in range(4)]),
        ("skip_last", [sum(shares[:k], torch.zeros(DIM)) for k in range(4)]),
        ("decreasing", [sum(shares[1 : k + 1], torch.zeros(DIM)) for k in (3, 2, 1, 0)]),
        ("random", [1 / (1 + (-row).exp()) for row in logits]),
    ):
        bounds = LowerBounds(4, DIM, convention).double()
        bounds.load_state_dict({"logits": logits})
        assert_close(bounds(), torch.stack(expected).double())


def test_random_lower_bounds_start_anywhere() -> None:
    bounds = LowerBounds(50, DIM, "random")().flatten()
    assert 0 < bounds.min() < 0.05 and 0.95 < bounds.max() < 1
    assert 0.45 < bounds.mean() < 0.55


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_a_saturated_gate_keeps_its_digits(gamma: float) -> None:
    """For an open gate, `1 - f` as a difference loses all digits; for a closed one, `log(f)` of a rounded sum does."""
    x = torch.linspace(-80, 80, 101, requires_grad=True)
    exact = bounded_gate(x.detach().double(), gamma)
    ratios = tuple(value.double() / expected for value, expected in zip(bounded_gate(x, gamma), exact, strict=True))
    assert_close(tuple(ratio.float() for ratio in ratios), (torch.ones(101), torch.ones(101)))
    assert torch.autograd.grad(sum(value.sum() for value in bounded_gate(x, gamma)), x)[0].isfinite().all()


def test_only_mixers_that_take_a_bound_get_one() -> None:
    hgrn = {"name": "hgrn1", "complex": False}
    seen = bounds_seen(stack([hgrn, "attention", {**hgrn, "lower_bound": 0.3}], 6))
    assert [bound is not None for bound in seen] == [True, False, False] * 2
    assert (seen[3] > 0).all()


def test_a_constant_lower_bound_wins() -> None:
    constant = stack([{"name": "hgrn2", "expand": 8, "lower_bound": 0.3}], 2)
    assert bounds_seen(constant) == [None, None]
    learned = stack([{"name": "hgrn2", "expand": 8}], 2, lower_bounds=None)
    assert learned.lower_bounds is None
    learned.load_state_dict(constant.state_dict(), strict=False)
    x = tokens(2, 9)
    for block in learned.blocks:
        block.mixer.lower_bound = 0.3
    assert_close(learned(x), constant(x))


def test_norm_stands_before_the_mixer_and_at_the_end() -> None:
    layers, x = stack(["attention"], 1, norm="layer"), tokens(2, 9)
    block = layers.blocks[0]
    mixed = x + block.mixer(block.mixer_norm(x))
    assert_close(layers(x), layers.norm(mixed + block.channel_mixer(block.channel_norm(mixed))))


def test_without_channel_mixer_a_block_is_its_mixer() -> None:
    layers, x = stack(["attention"], 1, channel_mixer=None), tokens(2, 9)
    block = layers.blocks[0]
    assert_close(layers(x), layers.norm(x + block.mixer(block.mixer_norm(x))))


@pytest.mark.parametrize("activation", ["silu", "none", "sigmoid"])
@pytest.mark.parametrize("bias", [False, True])
def test_glu_is_its_equation(activation: str, bias: bool) -> None:
    glu, x = GLU(DIM, multiplier=8 / 3, activation=activation, bias=bias).double(), tokens(2, 3)
    act = {"silu": lambda g: g * g.sigmoid(), "none": lambda g: g, "sigmoid": torch.sigmoid}[activation]
    assert glu.up_proj.weight.shape == (42, DIM)
    assert_close(glu(x), glu.down_proj(act(glu.gate_proj(x)) * glu.up_proj(x)))
    assert (glu.down_proj.bias is not None) == bias
