"""This pytest plugin points the tests of timm's source distribution, unmodified, at models of the zoo.

    pytest TIMM/tests/test_models.py ... -p timm_suite --zoo NAME,NAME,...

Most of timm's tests take the names of models from a list, made when the test file is imported. The plugin puts the
zoo's names in its place. A token model gets timm's tests for token models, a pyramid those for 4-D features. Tests
with other arguments get ones that fit the zoo. All other tests, of timm's own models and tools, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mixerzoo.tasks.vision as vision

Case = Callable[[str], list[Any]]


def tokens(name: str) -> bool:
    return "_pyramid_" not in name


def small(name: str) -> dict[str, Any]:
    return {"embed_dim": 64, "depth": 1} if tokens(name) else {"embed_dims": (16, 32, 32, 64), "depths": (1, 1, 1, 1)}


def every(name: str) -> list[Any]:
    return [name]


def token_models(name: str) -> list[Any]:
    return [name] if tokens(name) else []


def pyramids(name: str) -> list[Any]:
    return [] if tokens(name) else [name]


def resized(name: str) -> list[Any]:
    patch = 14 if "patch14" in name else 16
    return [(name, small(name), 4 * patch, 6 * patch)] if tokens(name) else []


def of_64_pixels(name: str) -> list[Any]:
    return [(name, small(name) | ({"img_size": 64} if tokens(name) else {}))]


CASES: dict[str, Case] = {
    "test_model_forward": every,
    "test_model_backward": every,
    "test_model_default_cfgs": pyramids,
    "test_model_default_cfgs_non_std": token_models,
    "test_model_forward_torchscript": every,
    "test_model_forward_features": pyramids,
    "test_model_forward_intermediates_features": every,
    "test_model_forward_intermediates": every,
    "test_model_forward_fx": every,
    "test_model_backward_fx": every,
    "test_model_forward_fx_torchscript": every,
    "test_prune_intermediate_layers_contract": every,
    "test_prune_intermediate_layers_params_used": every,
    "test_prune_intermediate_layers_last_feature": lambda name: [(name, True)] if not tokens(name) else [],
    "test_forward_intermediates_stop_early_final_norm": lambda name: [(name, {})] if not tokens(name) else [],
    "test_features_only_grad_checkpointing_backward": pyramids,
    "test_reset_classifier_keeps_pool": pyramids,
    "test_catavgmax_unsupported": token_models,
    "test_headless_checkpoint_reload": lambda name: [(name, small(name))],
    "test_model_init_weights_after_to_empty": of_64_pixels,
    "test_default_resize_hub_roundtrip": resized,
    "test_export_tracks_reset_classifier_structure": lambda name: [
        (name, small(name), "max", None),
        *([(name, small(name), "", None)] if tokens(name) else []),
    ],
    "test_freeze_unfreeze_root_parameters": every,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--zoo", default="", help="names of models, with commas between them")


def pytest_configure(config: pytest.Config) -> None:
    assert vision
    for marker in ("base", "timeout", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features"):
        config.addinivalue_line("markers", marker)
    for marker in ("fxforward", "fxbackward"):
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = CASES.get(metafunc.definition.originalname)
    if cases is None:
        return
    names = metafunc.config.getoption("--zoo").split(",")
    values = [value for name in names for value in cases(name)]
    markers = metafunc.definition.own_markers
    for place, marker in enumerate(markers):
        if marker.name == "parametrize" and marker.args[0].startswith(("model_name", "name")):
            markers[place] = pytest.mark.parametrize(marker.args[0], values).mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if getattr(item, "originalname", "") in CASES]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
