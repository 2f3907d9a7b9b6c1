"""Every mixer as an image model meets a contract beyond what timm's own tests ask (tests/vision/test_timm_suite.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureListNet
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import mixerzoo.tasks.vision as vision
from mixerzoo import list_mixers, mixer_info, register_mixer
from mixerzoo.blocks.scan_order import BY_LINES, SCAN_ORDERS, WHOLE_IMAGE
from mixerzoo.mixers.retnet import RetNet
from mixerzoo.registry.catalog import MIXERS

from ..tolerances import assert_close, assert_finite, assert_identical

assert vision
SHAPES = {
    "tiny_patch16_224": {"img_size": (32, 48), "embed_dim": 32, "depth": 2},
    "tiny_patch14_224": {"img_size": (28, 42), "embed_dim": 32, "depth": 2},
    "pyramid_tiny": {"embed_dims": (16, 32, 32), "depths": (1, 1, 1)},
}
each_mixer = pytest.mark.parametrize("mixer", list_mixers())
each_shape = pytest.mark.parametrize("shape", SHAPES)


def build(mixer: str, shape: str = "tiny_patch16_224", **settings: Any) -> nn.Module:
    return timm.create_model(f"zoo_{mixer}_{shape}", **{"num_classes": 5, **SHAPES[shape], **settings}).eval()


def images(shape: str = "tiny_patch16_224", batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *SHAPES[shape].get("img_size", (32, 64)))


@pytest.mark.parametrize(
    "name, millions",
    [
        ("zoo_hgrn1_tiny_patch14_224", 6.108),
        ("zoo_hgrn1_small_patch14_224", 23.716),
        ("zoo_hgrn2_tiny_patch14_224", 6.098),
        ("zoo_hgrn2_small_patch14_224", 23.697),
    ],
)
def test_the_papers_models_have_the_published_size(name: str, millions: float) -> None:
    """The papers print HGRN1 6.1 and 23.7 M (6.11 and 23.72 by the authors' code), HGRN2 6.1 and 23.7 M."""
    model = timm.create_model(name, device="meta")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions


@each_mixer
@pytest.mark.parametrize("size, vit", [("tiny", 5.717), ("small", 22.051), ("base", 86.568)])
def test_patch16_models_are_as_large_as_vit(mixer: str, size: str, vit: float) -> None:
    model = timm.create_model(f"zoo_{mixer}_{size}_patch16_224", device="meta")
    assert abs(sum(parameter.numel() for parameter in model.parameters()) / 1e6 / vit - 1) < 0.01


@pytest.fixture
def plug_in() -> Iterator[str]:
    class Toy(RetNet):
        spec = RetNet.spec

    name = "toy.decay"
    register_mixer(name, Toy)
    yield name
    del MIXERS._targets[name]


def test_a_mixer_registered_later_gets_its_models(plug_in: str) -> None:
    names = timm.list_models("zoo_toy_decay_*")
    assert len(names) == 7
    for shape in SHAPES:
        assert build("toy_decay", shape)(images(shape)).shape == (2, 5)


def test_a_causal_mixer_looks_back_only() -> None:
    class Causal(RetNet):
        spec = RetNet.spec.__class__(
            **{
                **vars(RetNet.spec),
                "capabilities": RetNet.spec.capabilities - {"bidirectional"},
                "without_positions": {},
            }
        )

        def __init__(self, dim: int = 1024) -> None:
            super().__init__(dim)

        @classmethod
        def fitted(cls, dim: int, head: int) -> dict[str, int]:
            return {}

    register_mixer("causal-toy", Causal)
    try:
        model, x = build("causal-toy"), images()
        changed = x.clone()
        changed[..., -16:, -16:] += 1
        assert_close(model.forward_features(changed)[:, :-1], model.forward_features(x)[:, :-1])
    finally:
        del MIXERS._targets["causal-toy"]


@each_mixer
def test_every_token_sees_every_token(mixer: str) -> None:
    assert "bidirectional" in mixer_info(mixer).capabilities
    model, x = build(mixer), images(batch=1).requires_grad_()
    for token in (0, -1):
        (seen,) = torch.autograd.grad(model.forward_features(x)[0, token].square().sum(), x)
        assert seen.unfold(2, 16, 16).unfold(3, 16, 16).abs().amax((0, 1, 4, 5)).all()


@each_mixer
@each_shape
def test_images_of_any_size(mixer: str, shape: str) -> None:
    flexible = {} if "pyramid" in shape else {"dynamic_img_size": True}
    model = build(mixer, shape, **flexible)
    patch = 14 if "14" in shape else 16
    for height, width in ((2, 3), (5, 1), (4, 4)):
        x = torch.randn(2, 3, height * patch, width * patch)
        assert model(x).shape == (2, 5)
        if flexible:
            assert model.forward_features(x).shape == (2, height * width, 32)
    fixed, x = build(mixer, shape), images(shape)
    fixed.load_state_dict(model.state_dict())
    assert_identical(fixed(x), model(x))


@pytest.mark.parametrize("order", [order for order in SCAN_ORDERS if order != "plane"])
@each_shape
def test_every_scan_order_is_one_argument(order: str, shape: str) -> None:
    x = images(shape)
    model = build("hgrn2", shape, scan_order=order)
    rows = build("hgrn2", shape)
    rows.load_state_dict(model.state_dict())
    assert_finite(model(x))
    assert torch.equal(model(x), rows(x)) == (order == "row")


@each_mixer
@pytest.mark.parametrize("order", [order for order in SCAN_ORDERS if order not in WHOLE_IMAGE])
def test_the_class_token_is_in_the_middle_and_comes_out_first(mixer: str, order: str) -> None:
    model = build(mixer, class_token=True, global_pool="token", scan_order=order)
    x = images()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    features = model.forward_features(x)
    assert features.shape == (2, 7, 32)
    assert_identical(seen[0][:, 3], model.cls_token.expand(2, -1, -1)[:, 0])
    assert_identical(model.forward_head(features, pre_logits=True), features[:, 0])
    ((maps, token),) = model.forward_intermediates(x, [1], return_prefix_tokens=True, intermediates_only=True)
    assert maps.shape == (2, 32, 2, 3) and token.shape == (2, 1, 32)
    assert_identical(model.norm(token), features[:, :1])
    assert_identical(model.norm(maps.flatten(2).mT), features[:, 1:])


@each_mixer
def test_patch_dropout_keeps_the_order_of_tokens(mixer: str) -> None:
    """A model in training that drops patches equals the model on the remaining patches, given their places."""
    model = build(mixer, patch_drop_rate=0.5, scan_order="snake", img_size=64)
    x = torch.randn(2, 3, 64, 64)
    seen: list[Any] = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    model.train()(x)
    ((tokens, height, width, _, kept),) = seen
    assert (height, width) == (4, 4) and kept.shape == (2, 8) and tokens.shape == (2, 8, 32)
    assert kept.diff().gt(0).all()
    embedded = model.patch_embed(x).flatten(1, 2) + model.pos_embed
    assert_identical(tokens, embedded.gather(1, kept[..., None].expand(-1, -1, 32)))


@pytest.mark.parametrize("order", BY_LINES)
def test_orders_by_lines_need_the_whole_image(order: str) -> None:
    for settings in ({"class_token": True}, {"patch_drop_rate": 0.1}):
        with pytest.raises(ValueError, match="cuts the image into lines"):
            build("hgrn2", scan_order=order, **settings)


@each_mixer
@each_shape
def test_weight_decay_spares_bounds_and_angles(mixer: str, shape: str) -> None:
    model = build(mixer, shape, init_values=1e-4)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or name in ("pos_embed", "cls_token") or name.endswith("lower_bounds.logits")
        assert (id(parameter) in decayed) != spared, name
    spared_names = model.no_weight_decay()
    assert (mixer in ("hgrn1", "hgrn2")) == any(name.endswith("lower_bounds.logits") for name in spared_names)
    assert (mixer == "hgrn1") == any("theta" in name for name in spared_names)


@pytest.mark.parametrize("shape", SHAPES)
def test_lower_bounds_grow_over_the_whole_depth_and_survive_pruning(shape: str) -> None:
    model = build("hgrn1", shape)
    depth = len(model.blocks) if hasattr(model, "blocks") else sum(len(stage.blocks) for stage in model.stages)
    bounds: list[Tensor] = []
    blocks = [module for module in model.modules() if type(module).__name__ == "ImageBlock"]
    for block in blocks:
        block.register_forward_pre_hook(lambda _, arguments: bounds.append(arguments[3]["lower_bound"]))
    model(images(shape))
    for layer, bound in enumerate(bounds):
        assert_close(bound, torch.full_like(bound, layer / depth))
    whole = [bound.clone() for bound in bounds]
    bounds.clear()
    model.prune_intermediate_layers([0], prune_norm=True)
    model(images(shape))
    assert_identical(bounds, whole[: len(bounds)])
    assert len(bounds) == 1


@each_mixer
def test_regularisers_reach_the_blocks(mixer: str) -> None:
    model = build(mixer, depth=3, drop_path_rate=0.3, init_values=0.5, proj_drop_rate=0.1, drop_rate=0.2)
    assert [round(block.mixer_branch[2].drop_prob, 2) for block in model.blocks] == [0.0, 0.15, 0.3]
    assert all(block.channel_branch[1].gamma.eq(0.5).all() for block in model.blocks)
    assert (model.blocks[0].mixer_branch[0].p, model.head_drop.p) == (0.1, 0.2)


@each_mixer
@each_shape
def test_checkpointing_keeps_output_and_gradient(mixer: str, shape: str) -> None:
    model, x = build(mixer, shape).train(), images(shape)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        y = model(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))))
    assert_close(results[1], results[0])


@each_mixer
def test_features_at_four_strides(mixer: str) -> None:
    settings = {"embed_dims": (16, 32, 32, 64), "depths": (1, 1, 1, 1)}
    model = build(mixer, "pyramid_tiny", **settings, features_only=True)
    assert isinstance(model, FeatureListNet)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    shapes = [tuple(feature.shape) for feature in model(torch.randn(1, 3, 64, 96))]
    assert shapes == [(1, 16, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]


@each_mixer
def test_a_checkpoint_of_another_size_is_resampled(mixer: str) -> None:
    small, large = build(mixer), build(mixer, img_size=(64, 96), patch_size=32)
    from mixerzoo.tasks.vision.zoo_isotropic import checkpoint_filter_fn

    assert_identical(checkpoint_filter_fn(small.state_dict(), small), dict(small.state_dict()))
    other = build(mixer, img_size=(64, 64))
    other.pretrained_model_args = {"img_size": (32, 48)}
    other.load_state_dict(checkpoint_filter_fn({"model": small.state_dict()}, other))
    large.load_state_dict(checkpoint_filter_fn({"state_dict": small.state_dict()}, large))
    assert other.pos_embed.shape == (1, 16, 32) and large.patch_embed.proj.weight.shape[-1] == 32
    assert_finite((other(torch.randn(1, 3, 64, 64)), large(torch.randn(1, 3, 64, 96))))


@each_mixer
@each_shape
def test_bfloat16_autocast_and_device_and_dtype(mixer: str, shape: str) -> None:
    model, x = build(mixer, shape), images(shape)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    assert_finite(torch.autograd.grad(low.float().sum(), list(model.parameters())))
    assert (low.float() - model(x)).abs().max() < 0.1
    meta = build(mixer, shape, device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in meta.parameters())
    assert meta(x.to("meta", torch.bfloat16)).dtype == torch.bfloat16


@each_mixer
@each_shape
def test_hub_round_trip(mixer: str, shape: str, tmp_path) -> None:
    settings = {"scan_order": "column", "mixer_kwargs": {"bidirectional": False}, "in_chans": 1}
    model, x = build(mixer, shape, **settings), images(shape)[:, :1]
    timm.models.save_for_hf(model, tmp_path)
    twin = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_identical(twin(x), model(x))


def test_a_mixer_that_leaves_no_room_for_a_channel_mixer_says_so() -> None:
    """A block that is clamped without a word would have more weights than those of the other mixers."""
    large = {"embed_dim": 64, "mixer_kwargs": {"expand_v": 4}}
    message = (
        "gla of dim=64 has 54,784 of its block's 49,152 weights, so the GLU would have -32 channels, at least dim/2 = "
        '32 are allowed; remedy: channel_mixer={"hidden": 32}'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build("gla", **large)
    model = build("gla", **large, channel_mixer={"hidden": 32})
    assert model.blocks[0].channel_mixer.down_proj.in_features == 32


def test_contradictions_are_named() -> None:
    with pytest.raises(ValueError, match="unknown keyword of channel_mixer 'width'"):
        build("hgrn2", channel_mixer={"width": 3})
    with pytest.raises(ValueError, match="unknown scan order 'rows'"):
        build("hgrn2", scan_order="rows")
    with pytest.raises(ValueError, match="a pyramid needs a width and a depth"):
        build("hgrn2", "pyramid_tiny", depths=(1, 1))
    with pytest.raises(ValueError, match="unknown pos_embed 'rope'"):
        build("hgrn2", pos_embed="rope")
    with pytest.raises(AssertionError, match="needs class_token=True"):
        build("hgrn2", global_pool="token")
    with pytest.raises(TypeError, match="mixer"):
        build("hgrn2", mixer="gla")
