"""Every op stands in a graph: compiled without a break, exported and on meta tensors, in every direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mixerzoo.kernels.recurrence import DIRECTIONS

from ..tolerances import assert_close
from .test_ops import OPS, facts, folder, function, leaves_of, outputs, with_state

SHORT_DOCUMENTS = (0, 0, 1, 5)


def ways(op: str) -> list[dict[str, Any]]:
    """Every direction of a recurrence, and padded and packed rows."""
    if not facts(op).recurrent:
        return [{}, {"cu_seqlens": SHORT_DOCUMENTS}]
    padded, packed = {"padded": True}, {"cu_seqlens": SHORT_DOCUMENTS}
    return [*({"direction": way} for way in DIRECTIONS), padded, packed, {"direction": "both", **packed}]


each_way = pytest.mark.parametrize(("op", "way"), [(op, way) for op in OPS for way in ways(op)], ids=str)


@each_way
def test_compiled_equals_eager(op: str, way: dict) -> None:
    """Without a graph break, also for the gradient."""
    torch._dynamo.reset()
    inputs, call = folder(op, "cases").make_inputs(T=5, **way), function(op)
    leaves = leaves_of(inputs)

    def run(**leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(call(**with_state(inputs, leaves))))

    def with_gradients(run: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        own = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
        results = run(**own)
        gradients = torch.autograd.grad([y.abs().sum() for y in results], list(own.values()))
        return *results, *gradients

    assert_close(with_gradients(torch.compile(run, fullgraph=True, backend="aot_eager")), with_gradients(run))


@each_way
def test_exported_equals_eager(op: str, way: dict) -> None:
    inputs = folder(op, "cases").make_inputs(T=5, **way)

    call = function(op)

    class Call(torch.nn.Module):
        def forward(self, tensors: dict[str, Any]) -> Any:
            return call(**inputs | tensors)

    tensors = {name: x for name, x in inputs.items() if isinstance(x, (Tensor, tuple))}
    program = torch.export.export(Call(), (tensors,))
    assert_close(tree_leaves(program.module()(tensors)), tree_leaves(call(**inputs)))


@each_way
def test_meta_tensors_give_shapes_and_dtypes(op: str, way: dict) -> None:
    inputs = folder(op, "cases").make_inputs(T=5, dtype=torch.float32, **way)
    on_meta = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, inputs)
    found, expected = outputs(op, on_meta), outputs(op, inputs)
    assert [(x.shape, x.dtype, x.is_meta) for x in found] == [(x.shape, x.dtype, True) for x in expected]
