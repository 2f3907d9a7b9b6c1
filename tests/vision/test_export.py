"""Image models become graphs: torch.export with open batch, height and width, ONNX, torch.compile, TorchScript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import get_notrace_modules
from torch import Tensor, nn
from torch.export import Dim

from mixerzoo import list_mixers

from ..tolerances import assert_close, assert_identical
from .test_backbones import SHAPES, build, images

each_mixer = pytest.mark.parametrize("mixer", list_mixers())
each_shape = pytest.mark.parametrize("shape", SHAPES)
SIZES = [(2, 3, 5), (1, 4, 4), (3, 7, 2)]  # images, and their height and width in units


def open_export(model: nn.Module, unit: int) -> torch.export.ExportedProgram:
    """Exports the graph for every batch of images whose height and width are multiples of unit."""
    side = {axis: unit * Dim(name, min=2, max=64) for axis, name in ((2, "height"), (3, "width"))}
    x = torch.randn(2, 3, 4 * unit, 3 * unit)
    return torch.export.export(model, (x,), dynamic_shapes={"x": {0: Dim("batch", min=1, max=64), **side}})


def open_model(mixer: str, shape: str, **settings: Any) -> tuple[nn.Module, int]:
    if "pyramid" in shape:
        return build(mixer, shape, **settings), 16
    return build(mixer, shape, depth=1, dynamic_img_size=True, **settings), 14 if "14" in shape else 16


def check(model: nn.Module, graph: Any, unit: int) -> None:
    with torch.no_grad():
        for batch, height, width in SIZES:
            x = torch.randn(batch, 3, height * unit, width * unit)
            assert_close(graph(x), model(x))


@each_mixer
@pytest.mark.parametrize("order", ["row", "both", pytest.param("snake", marks=pytest.mark.slow)])
def test_exported_for_every_batch_height_and_width(mixer: str, order: str) -> None:
    model, unit = open_model(mixer, "tiny_patch16_224", scan_order=order)
    check(model, open_export(model, unit).module(), unit)


@pytest.mark.slow
@each_mixer
@each_shape
def test_onnxruntime_computes_the_same_at_every_size(mixer: str, shape: str, tmp_path: Path) -> None:
    import onnxruntime

    model, unit = open_model(mixer, shape)
    torch.onnx.export(open_export(model, unit), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    check(model, run, unit)


@each_mixer
def test_compiled_without_a_graph_break(mixer: str) -> None:
    torch._dynamo.reset()
    model, x = build(mixer, depth=1), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        y = run(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))))
    assert_close(results[1], results[0])


@each_mixer
@each_shape
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_model_calls_its_mixers_back_and_leaves_the_original_alone(mixer: str, shape: str, tmp_path) -> None:
    model, x = build(mixer, shape, drop_path_rate=0.5), images(shape)
    names = set(model.state_dict())
    scripted = torch.jit.script(model)
    assert_identical(scripted(x), model(x))
    assert set(model.state_dict()) == names
    gradients = torch.autograd.grad(scripted(x).square().sum(), list(scripted.parameters()))
    assert len(gradients) == len(list(model.parameters()))
    assert not torch.equal(scripted.train()(x), model(x)), "stochastic depth takes no part in training"
    with pytest.raises(RuntimeError, match="Could not export Python function call"):
        scripted.save(tmp_path / "model.pt")


def test_blocks_are_leaves_of_symbolic_traces() -> None:
    assert {"ImageBlock", "LowerBounds"} <= {module.__name__ for module in get_notrace_modules()}
