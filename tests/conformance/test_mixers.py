"""The contract in mixers/parts/contract.py has laws; every mixer in the registry obeys them."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from mixerzoo import build_mixer, list_mixers, mixer_info, use_backend
from mixerzoo.blocks.scan_order import scan_passes
from mixerzoo.mixers.parts import Mixer, ShortConv
from mixerzoo.mixers.parts.lower_bounds import LowerBounds
from mixerzoo.registry.catalog import MIXERS

from ..tolerances import assert_close, assert_finite, assert_identical, assert_within_budget
from .zoo import CONFIGURATIONS, DIM, LENGTH, build, each_mixer, length_for, tokens

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHORT = 12  # where the reference's loop over tokens would take long
CUTS = ([1], [64], [3, 4, 40, 66])
MASK = torch.ones(5, LENGTH, dtype=torch.bool)  # padding on the left, on the right, inside, everywhere, nowhere
MASK[0, :9], MASK[1, -5:], MASK[2, 1:60:3], MASK[3] = False, False, False, False
DOCUMENTS = torch.tensor([0, 0, 1, 6, 6, LENGTH, LENGTH], dtype=torch.int32)


def in_pieces(mixer: Mixer, x: Tensor, cuts: list[int], mask: Tensor | None = None, state=None):
    outputs = []
    bounds = [0, *cuts, x.shape[1]]
    for start, end in pairwise(bounds):
        y, state = mixer.prefill(x[:, start:end], state, mask=None if mask is None else mask[:, start:end])
        outputs.append(y)
    return torch.cat(outputs, 1), state


def by_steps(mixer: Mixer, x: Tensor, state):
    outputs = []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def gradients(y: Tensor, x: Tensor, mixer: Mixer) -> tuple[Tensor, ...]:
    """Returns gradients of a fixed random weighting of y, with respect to x and every parameter."""
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])


@each_mixer("causal")
def test_step_equals_forward(config: dict) -> None:
    mixer, x = build(config), tokens(2, LENGTH)
    assert_close(by_steps(mixer, x, mixer.init_state(2))[0], mixer(x))


@each_mixer("causal")
def test_one_token_is_a_sequence(config: dict) -> None:
    mixer, x = build(config), tokens(2, 1)
    assert_close(mixer.step(x[:, 0], mixer.init_state(2)).y, mixer(x)[:, 0])


@each_mixer("causal")
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_splitting_a_sequence_changes_nothing(config: dict, cuts: list[int]) -> None:
    mixer, x = build(config), tokens(2, LENGTH)
    whole, state = mixer.prefill(x)
    split, split_state = in_pieces(mixer, x, cuts)
    assert_close(whole, mixer(x))
    assert_close((split, split_state), (whole, state))


@each_mixer("causal")
def test_splitting_a_sequence_keeps_the_gradient(config: dict) -> None:
    mixer, x = build(config), tokens(2, LENGTH).requires_grad_()
    assert_close(gradients(in_pieces(mixer, x, [3, 65])[0], x, mixer), gradients(mixer(x), x, mixer))


@each_mixer("causal", needs=("padding",))
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_splitting_a_padded_sequence_changes_nothing(config: dict, cuts: list[int]) -> None:
    mixer, x, following = build(config), tokens(5, LENGTH), tokens(5, 3)
    y, state = in_pieces(mixer, x, cuts, MASK)
    assert_close(y, mixer(x, mask=MASK))
    assert_close(state.position, MASK.sum(1))
    continued, _ = in_pieces(mixer, following, [1], state=state)
    for row, valid in enumerate(MASK):
        alone = torch.cat([x[row, valid], following[row]])[None]
        assert_close(continued[row], mixer(alone)[0, -3:])


@each_mixer("causal")
def test_reserving_room_changes_nothing(config: dict) -> None:
    mixer, x = build(config), tokens(2, LENGTH)
    y, _ = in_pieces(mixer, x, [3, 40, 66], state=mixer.init_state(2, max_length=LENGTH))
    assert_close(y, mixer(x))


@each_mixer("causal")
@pytest.mark.parametrize("time", [1, 33, 64, 66])
def test_no_token_sees_the_future(config: dict, time: int) -> None:
    mixer, x = build(config), tokens(2, LENGTH)
    changed = x.clone()
    changed[:, time:] = 100 * tokens(2, LENGTH - time)
    assert_identical(mixer(changed)[:, :time], mixer(x)[:, :time])


@each_mixer("bidirectional")
def test_bidirectional_sees_the_future(config: dict) -> None:
    mixer, x = build(config), tokens(2, length_for(config, 4))
    changed = x.clone()
    changed[:, -1] = tokens(2, 1)[:, 0]
    assert ((mixer(changed) - mixer(x))[:, 0].abs().amax(-1) > 1e-6).all()


@each_mixer("bidirectional", "flip_equivariant", short_conv=0)
def test_reversing_the_input_reverses_the_output(config: dict) -> None:
    mixer, x = build(config), tokens(2, LENGTH)
    assert_close(mixer(x.flip(1)), mixer(x).flip(1))


@each_mixer(needs=("padding", "length"))
def test_padding_is_inert(config: dict) -> None:
    mixer, x = build(config), tokens(5, LENGTH)
    x = x.masked_fill(~MASK[..., None], float("nan")).requires_grad_()
    y = mixer(x, mask=MASK)
    assert not y[~MASK].any()
    actual = gradients(y, x, mixer)
    assert not actual[0][~MASK].any()

    alone = torch.zeros_like(y)
    for row, valid in enumerate(MASK):
        if valid.any():
            alone = alone.index_put((torch.tensor(row), valid.nonzero()[:, 0]), mixer(x[row, valid][None])[0])
    assert_close(y, alone)
    assert_close(actual, gradients(alone, x, mixer))


@each_mixer(needs=("padding", "length"))
def test_rows_of_padding_alone_are_harmless(config: dict) -> None:
    mixer, x = build(config), tokens(2, 5).requires_grad_()
    y = mixer(x, mask=torch.zeros(2, 5, dtype=torch.bool))
    assert not y.any()
    assert_finite(gradients(y, x, mixer))


@each_mixer("causal", needs=("padding",))
def test_padding_alone_leaves_the_state(config: dict) -> None:
    mixer = build(config)
    _, state = mixer.prefill(tokens(2, 7))
    _, after = mixer.prefill(tokens(2, 4), state, mask=torch.zeros(2, 4, dtype=torch.bool))
    following = tokens(2, 1)[:, 0]
    assert_close(mixer.step(following, after).y, mixer.step(following, state).y)
    assert_identical(after.position, state.position)


@each_mixer(needs=("packing", "length"))
def test_packed_documents_are_separate_sequences(config: dict) -> None:
    mixer, x = build(config), tokens(1, LENGTH).requires_grad_()
    separate = torch.cat([mixer(x[:, start:end]) for start, end in pairwise(DOCUMENTS) if start < end], 1)
    packed = mixer(x, cu_seqlens=DOCUMENTS)
    assert_close(packed, separate)
    assert_close(gradients(packed, x, mixer), gradients(separate, x, mixer))


@each_mixer()
def test_rows_do_not_see_each_other(config: dict) -> None:
    mixer, x = build(config), tokens(3, LENGTH)
    assert_close(mixer(x)[1:2], mixer(x[1:2]))


@each_mixer()
def test_strides_change_nothing(config: dict) -> None:
    mixer, x = build(config), tokens(3, LENGTH)
    assert_close(mixer(x.permute(2, 1, 0).contiguous().permute(2, 1, 0)), mixer(x))
    assert_close(mixer(x[:1].expand(3, -1, -1)), mixer(x[:1].repeat(3, 1, 1)))


@each_mixer("causal")
@pytest.mark.parametrize("model, stored", [(torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.float64,) * 2])
def test_state_is_exact_batch_first_and_never_written(config: dict, model: torch.dtype, stored: torch.dtype) -> None:
    mixer, x = build(config, model), tokens(3, 9, model)
    for state in (mixer.init_state(3), mixer.init_state(3, max_length=20), mixer.prefill(x).state):
        assert isinstance(state, tuple) and hasattr(state, "_fields")
        before = tree_map(torch.clone, state)
        after = mixer.prefill(x, state).state, mixer.step(x[:, 0], state).state
        assert_identical(state, before)
        for leaf in tree_leaves((state, after)):
            assert leaf.shape[0] == 3
            assert leaf.dtype in (stored, torch.int64)
        assert state.position.dtype == torch.int64


@each_mixer("causal")
def test_a_state_can_be_indexed(config: dict) -> None:
    mixer, x, following = build(config), tokens(3, 9), tokens(4, 2)
    beams = torch.tensor([2, 0, 0, 1])
    state = tree_map(lambda leaf: leaf[beams], mixer.prefill(x).state)
    assert_close(by_steps(mixer, following, state)[0], mixer(torch.cat([x[beams], following], 1))[:, -2:])


@each_mixer("causal")
@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_state_size_is_the_size_of_the_state(config: dict, length: int) -> None:
    mixer = build(config)
    _, state = mixer.prefill(tokens(1, length), mixer.init_state(1, max_length=length))
    assert mixer.state_size(length) == sum(leaf.numel() for leaf in tree_leaves(state) if leaf.is_floating_point())


@each_mixer("causal", "constant_state")
def test_a_constant_state_does_not_grow(config: dict) -> None:
    mixer = build(config)
    assert mixer.state_size(1) == mixer.state_size(100_000)
    assert mixer.flops(200) == 2 * mixer.flops(100)
    assert mixer.mixing_flops(200) == 2 * mixer.mixing_flops(100)
    shapes = [[leaf.shape for leaf in tree_leaves(mixer.prefill(tokens(1, length)).state)] for length in (1, LENGTH)]
    assert shapes[0] == shapes[1]


@each_mixer()
def test_every_parameter_gets_a_gradient(config: dict) -> None:
    mixer, x = build(config, torch.float32), tokens(2, LENGTH, torch.float32).requires_grad_()
    found = gradients(mixer(x), x, mixer)
    assert_finite(found)
    for name, gradient in zip(["x", *dict(mixer.named_parameters())], found, strict=True):
        assert gradient.any(), f"the gradient of {name} is zero"


@each_mixer()
def test_gradients_are_derivatives(config: dict) -> None:
    mixer, x = build(config), tokens(1, length_for(config, 4)).requires_grad_()
    names = list(dict(mixer.named_parameters()))

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()), fast_mode=True)


@each_mixer("causal")
def test_gradients_through_the_state_are_derivatives(config: dict) -> None:
    mixer, x = build(config), tokens(1, 4)
    leaves, structure = tree_flatten(mixer.prefill(tokens(1, 3)).state)
    places = [place for place, leaf in enumerate(leaves) if leaf.is_floating_point() and leaf.numel()]

    def run(*memory: Tensor) -> tuple[Tensor, ...]:
        given = [*leaves]
        for place, leaf in zip(places, memory, strict=True):
            given[place] = leaf
        y, state = mixer.prefill(x, tree_unflatten(given, structure))
        return y, *(leaf for leaf in tree_leaves(state) if leaf.is_floating_point() and leaf.requires_grad)

    memory = tuple(leaves[place].detach().requires_grad_() for place in places)
    assert torch.autograd.gradcheck(run, memory, fast_mode=True)


@each_mixer()
def test_saturated_gates_stay_finite(config: dict) -> None:
    mixer, x = build(config, torch.float32), (1e4 * tokens(2, LENGTH, torch.float32)).requires_grad_()
    y = mixer(x)
    assert_finite((y, gradients(y, x, mixer)))


@each_mixer(needs=("backends",))
def test_every_backend_computes_the_same(config: dict) -> None:
    mixer, x = build(config), tokens(2, LENGTH).requires_grad_()
    y = mixer(x)
    with use_backend("reference"):
        expected = mixer(x)
        assert_close((y, gradients(y, x, mixer)), (expected, gradients(expected, x, mixer)))


@each_mixer()
def test_state_dict_round_trip(config: dict) -> None:
    mixer, other, x = build(config), build(config), tokens(2, length_for(config, 9))
    assert not torch.equal(other(x), mixer(x))
    other.load_state_dict(mixer.state_dict())
    assert_identical(other(x), mixer(x))


@each_mixer()
def test_copies_are_the_same_mixer(config: dict) -> None:
    mixer, x = build(config), tokens(2, length_for(config, 9))
    for twin in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert_identical(twin(x), mixer(x))
        assert twin.config == mixer.config


@each_mixer()
def test_configuration_round_trip(config: dict) -> None:
    mixer = build_mixer(config)
    stored = json.loads(json.dumps(mixer.config))
    assert stored == mixer.config
    assert config.items() <= stored.items()
    twin = build_mixer(stored)
    assert twin.config == mixer.config
    twin.load_state_dict(mixer.state_dict())


@each_mixer()
def test_meta_device_builds_and_runs(config: dict) -> None:
    with torch.device("meta"):
        mixer = build_mixer(config)
        x, mask = torch.empty(2, LENGTH, DIM), torch.ones(2, LENGTH, dtype=torch.bool)
    assert all(tensor.is_meta for tensor in mixer.state_dict().values())
    assert mixer(x).shape == x.shape
    if "padding" not in mixer.spec.cannot:
        assert mixer(x, mask=mask).shape == x.shape
    if "packing" not in mixer.spec.cannot:
        packed = mixer(x[:1], cu_seqlens=DOCUMENTS.to("meta"))
        assert packed.is_meta and packed.shape == x[:1].shape


@each_mixer("causal")
def test_meta_device_prefills_and_steps(config: dict) -> None:
    with torch.device("meta"):
        mixer, x = build_mixer(config), torch.empty(2, 9, DIM)
    y, state = mixer.prefill(x)
    y_t, state = mixer.step(x[:, 0], state)
    assert (y.shape, y_t.shape) == (x.shape, x[:, 0].shape)
    assert all(leaf.is_meta for leaf in (y, y_t, *tree_leaves(state)))


@each_mixer()
def test_autocast_errs_no_more_than_twice_the_reference(config: dict) -> None:
    mixer = build(config, torch.float32)
    x = tokens(2, length_for(config, SHORT), torch.float32).requires_grad_()
    oracle = copy.deepcopy(mixer).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
        with use_backend("reference"):
            reference = mixer(x)
    assert_within_budget(y, reference, oracle)
    assert_finite(gradients(y, x, mixer))


@each_mixer("causal")
def test_autocast_leaves_the_state_exact(config: dict) -> None:
    mixer, x = build(config, torch.float32), tokens(2, LENGTH, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        whole, state = mixer.prefill(x)
        split, split_state = in_pieces(mixer, x, [3, 64])
    assert {leaf.dtype for leaf in tree_leaves((state, split_state))} == {torch.float32, torch.int64}
    assert_close(split, whole)


@each_mixer()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_errs_no_more_than_twice_the_reference(config: dict, dtype: torch.dtype) -> None:
    mixer, x = build(config, dtype), tokens(2, length_for(config, SHORT), dtype)
    oracle = copy.deepcopy(mixer).double()(x.double())
    y = mixer(x)
    assert y.dtype == dtype
    with use_backend("reference"):
        assert_within_budget(y, mixer(x), oracle)


def each_with_lower_bounds() -> pytest.MarkDecorator:
    takes = [
        pytest.param(config, id=label)
        for label, config in CONFIGURATIONS.items()
        if LowerBounds in MIXERS.get(config["name"]).depth_shared
    ]
    return pytest.mark.parametrize("config", takes)


@each_with_lower_bounds()
def test_a_shared_lower_bound_is_a_constant_one(config: dict) -> None:
    """A bound from the stack acts as `lower_bound=` does, and gets a gradient."""
    config = config | {"lower_bound": None}
    mixer, x = build(config), tokens(2, LENGTH)
    constant = build(config | {"lower_bound": 0.25})
    constant.load_state_dict(mixer.state_dict())
    bound = torch.full((DIM,), 0.25, dtype=torch.float64, requires_grad=True)
    y = mixer(x, shared={"lower_bound": bound})
    assert_close(y, constant(x))
    assert torch.autograd.grad(y.square().sum(), bound)[0].all()
    if not config.get("bidirectional"):
        assert_close(by_steps_with(mixer, x, {"lower_bound": bound}), y)


def by_steps_with(mixer: Mixer, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
    state, outputs = mixer.init_state(x.shape[0]), []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state, shared=shared)
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", list_mixers())
def test_spec_tells_what_a_mixer_is(name: str) -> None:
    spec = mixer_info(name)
    assert spec.paper and spec.equation and spec.state and spec.flops


@each_mixer()
def test_linear_maps_and_windows_are_counted(config: dict) -> None:
    """Every weight that a call multiplies with once a token is two FLOPs a token in the spec's formula."""
    mixer, length = build(config), length_for(config, 9)
    seen: list[int] = []
    for module in mixer.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, y: seen.append(module.weight.numel() * y[..., 0].numel()))
        if isinstance(module, ShortConv):
            seen.append(module.weight.numel() * length)
    mixer(tokens(1, length))
    assert mixer.flops(length) - mixer.mixing_flops(length) == 2 * sum(seen)


@each_mixer()
def test_every_parameter_starts_again(config: dict) -> None:
    """After `to_empty`, which leaves anything at all in memory; buffers too."""
    mixer = build_mixer(config)
    with torch.no_grad():
        for tensor in (*mixer.parameters(), *mixer.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    mixer.reset_parameters()
    assert_finite(tuple(tensor for tensor in mixer.state_dict().values()))


@each_mixer()
def test_a_start_is_the_constructors(config: dict) -> None:
    """One seed, one start, whether a mixer is built or reset; a model's choice of spread moves plain maps alone."""
    torch.manual_seed(3)
    built = build_mixer(config).state_dict()
    mixer = build(config, torch.float32)
    torch.manual_seed(3)
    mixer.reset_parameters()
    assert_identical(mixer.state_dict(), built)
    torch.manual_seed(3)
    mixer.reset_parameters(std=0.001)
    maps = {f"{name}.weight" for name, module in mixer.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, tensor in mixer.state_dict().items():
        size, before = (float(x.float().square().mean().sqrt()) for x in (tensor, built[name]))
        own = before / 2 <= size <= 2 * before  # drawn anew, or not drawn at all
        plain = name in maps and size < 0.0015
        assert own or plain or tensor.numel() < 8, f"{name} starts {size:.3g} wide, built {before:.3g}"


@pytest.mark.parametrize("name", list_mixers())
@pytest.mark.parametrize("dim, head", [(16, 8), (64, 16), (192, 64), (320, 64), (512, 64), (768, 64)])
def test_a_mixer_fits_itself_to_a_width(name: str, dim: int, head: int) -> None:
    with torch.device("meta"):
        mixer = build_mixer({"name": name, "dim": dim, **MIXERS.get(name).fitted(dim, head)})
    assert mixer.config["dim"] == dim


@each_mixer()
def test_what_a_mixer_cannot_is_refused(config: dict) -> None:
    """With an error that says so: a limit that nothing enforces would be a silent one."""
    mixer = build(config)
    x = tokens(1, length_for(config, 6))
    calls = {
        "padding": lambda: mixer(x, mask=torch.ones(x.shape[:2], dtype=torch.bool)),
        "packing": lambda: mixer(x, cu_seqlens=torch.tensor([0, x.shape[1]])),
        "orders": lambda: mixer(x, orders=scan_passes("column", 1, x.shape[1])[0]),
        "length": lambda: mixer(x[:, 1:]),
    }
    for limit, call in calls.items():
        if limit in mixer.spec.cannot:
            with pytest.raises(ValueError):
                call()
        else:
            call()
