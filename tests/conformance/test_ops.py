"""The laws of every op in mixerzoo/kernels: an op is tested because it has a folder with `op.py` and `cases.py`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import mixerzoo.kernels

from ..tolerances import assert_close, assert_finite, assert_identical, assert_within_budget

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPS = [module.name for module in pkgutil.iter_modules(mixerzoo.kernels.__path__) if module.ispkg]
OPS = [name for name in OPS if find_spec(f"mixerzoo.kernels.{name}.op")]
RECURRENT = ["gated_scan", "gated_linear_attention", "hgrn2"]
each_recurrence = pytest.mark.parametrize(
    ("op", "options"), [(op, {}) for op in RECURRENT] + [("gated_scan", {"complex": True})], ids=str
)
IN_TIME = {"q", "k", "v", "x", "log_f"}
SMALL_KV = [{"K": 6, "V": 7, "H": 1}, {"K": 2, "V": 3}]  # the two paths of the chunked form


def folder(op: str, module: str) -> Any:
    return import_module(f"mixerzoo.kernels.{op}.{module}")


def function(op: str) -> Callable[..., Any]:
    return getattr(import_module(f"mixerzoo.kernels.{op}"), op)


def backends(op: str) -> list[str]:
    """Those that can run here, beside the reference: Triton's in its interpreter."""
    names = [backend.name for backend in folder(op, "op").BACKENDS if backend.name != "reference"]
    inputs = folder(op, "cases").make_inputs(T=1, dtype=torch.float32)
    return [name for name in names if can_run(op, inputs, name)]


def can_run(op: str, inputs: dict[str, Any], backend: str) -> bool:
    try:
        function(op)(**inputs, backend=backend)
    except ValueError as error:
        assert f"backend '{backend}' can't run" in str(error)
        return False
    return True


def inputs_of(op: str, case: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return folder(op, "cases").make_inputs(**folder(op, "cases").CASES[case], dtype=dtype)


CASES = [(op, case) for op in OPS for case in folder(op, "cases").CASES]
each_case = pytest.mark.parametrize(("op", "case"), CASES)
each_implementation = pytest.mark.parametrize(
    ("op", "backend", "case"), [(op, backend, case) for op, case in CASES for backend in backends(op)]
)


def differentiable(inputs: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() or tensor.is_complex()}


def outputs(op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    result = function(op)(**inputs)
    return result if isinstance(result, tuple) else (result,)


def outputs_and_gradients(op: str, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What the op returns, and the gradient of every input through all of it."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in differentiable(inputs).items()}
    results = outputs(op, {**inputs, **leaves})
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in results]
    gradients = torch.autograd.grad(results, list(leaves.values()), cotangents)
    names = ("y", "final_state")[: len(results)]
    return dict(zip(names, results, strict=True)) | dict(zip((f"d_{name}" for name in leaves), gradients, strict=True))


def converted(inputs: dict[str, Any], real: torch.dtype) -> dict[str, Any]:
    tensors = differentiable(inputs)
    return inputs | {name: x.to(real.to_complex() if x.is_complex() else real) for name, x in tensors.items()}


def time_slice(inputs: dict[str, Any], part: slice) -> dict[str, Any]:
    sliced = {name: x[:, part] for name, x in inputs.items() if name in IN_TIME}
    if "theta" in inputs and inputs["theta"].ndim == 3:
        sliced["theta"] = inputs["theta"][:, part]
    return inputs | sliced


@each_implementation
def test_implementation_equals_reference(op: str, backend: str, case: str) -> None:
    inputs = inputs_of(op, case)
    actual = outputs_and_gradients(op, inputs | {"backend": backend})
    expected = outputs_and_gradients(op, inputs | {"backend": "reference"})
    assert_finite(expected)
    assert_close(actual, expected)


@each_implementation
def test_fp32_errs_no_more_than_twice_the_reference(op: str, backend: str, case: str) -> None:
    inputs = inputs_of(op, case, torch.float32)
    oracle = outputs_and_gradients(op, converted(inputs, torch.float64) | {"backend": "reference"})
    reference = outputs_and_gradients(op, inputs | {"backend": "reference"})
    assert_within_budget(outputs_and_gradients(op, inputs | {"backend": backend}), reference, oracle)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_errs_no_more_than_twice_the_reference(op: str, dtype: torch.dtype) -> None:
    inputs = folder(op, "cases").make_inputs(dtype=dtype)
    oracle = outputs(op, converted(inputs, torch.float64) | {"backend": "reference"})
    reference = outputs(op, inputs | {"backend": "reference"})
    actual = outputs(op, inputs)
    assert actual[0].dtype == dtype
    assert all(state.dtype == torch.float32 for state in actual[1:])
    assert_within_budget(actual, reference, oracle)


@pytest.mark.parametrize("op", RECURRENT)
def test_autocast_changes_nothing(op: str) -> None:
    inputs = folder(op, "cases").make_inputs(dtype=torch.float32)
    expected = outputs(op, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert_identical(outputs(op, inputs), expected)


@pytest.mark.parametrize("arguments", [{}, {"cu_seqlens": (0, 0, 1, 5)}, {"direction": "both"}], ids=str)
@pytest.mark.parametrize(
    ("op", "sizes"),
    [("gated_scan", {"D": 3}), ("gated_scan", {"D": 2, "complex": True})]
    + [(op, sizes) for op in ("gated_linear_attention", "hgrn2") for sizes in SMALL_KV]
    + [("gated_linear_attention", {**SMALL_KV[0], "gate_per_head": True})],
    ids=str,
)
def test_gradients_of_recurrences_are_derivatives(op: str, sizes: dict, arguments: dict) -> None:
    check_gradients(op, folder(op, "cases").make_inputs(B=1, T=5, **sizes, **arguments))


@pytest.mark.parametrize("arguments", [{}, {"causal": False}, {"window": 2}, {"S": 7}, {"cu_seqlens": (0, 5)}], ids=str)
def test_gradients_of_attention_are_derivatives(arguments: dict) -> None:
    op = "softmax_attention"
    check_gradients(op, folder(op, "cases").make_inputs(B=1, T=5, H=2, G=1, K=3, V=2, **arguments))


def check_gradients(op: str, inputs: dict[str, Any]) -> None:
    leaves = differentiable(inputs)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return outputs(op, inputs | dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves.values()], fast_mode=True)


@pytest.mark.parametrize("cut", [1, 63, 64, 100])
@each_recurrence
def test_splitting_a_sequence_changes_nothing(op: str, options: dict, cut: int) -> None:
    inputs = folder(op, "cases").make_inputs(T=130, **options)
    y, final_state = function(op)(**inputs)
    head, state = function(op)(**time_slice(inputs, slice(0, cut)))
    tail, state = function(op)(**time_slice(inputs, slice(cut, None)) | {"initial_state": state})
    assert_close((torch.cat([head, tail], 1), state), (y, final_state))


@pytest.mark.parametrize("op", ["gated_linear_attention", "hgrn2"])
def test_a_sequence_too_large_for_one_segment_is_its_pieces(op: str) -> None:
    inputs = folder(op, "cases").make_inputs(T=65, H=16, K=256, V=1)
    leaves = {name: tensor.requires_grad_() for name, tensor in differentiable(inputs).items()}
    whole = function(op)(**inputs)
    pieces, state = [], inputs["initial_state"]
    for start in (0, 64):
        part = time_slice(inputs, slice(start, start + 64)) | {"initial_state": state}
        y, state = function(op)(**part)
        pieces.append(y)
    split = torch.cat(pieces, 1), state
    assert_close(split, whole)
    cotangents = [torch.randn_like(y) for y in whole]
    gradients, expected = (torch.autograd.grad(run, list(leaves.values()), cotangents) for run in (split, whole))
    assert_close(gradients, expected)


@each_recurrence
@pytest.mark.parametrize("direction", ["causal", "reverse", "both"])
def test_packed_documents_are_separate_sequences(op: str, options: dict, direction: str) -> None:
    bounds = folder("gated_scan", "cases").DOCUMENTS
    inputs = folder(op, "cases").make_inputs(cu_seqlens=bounds, direction=direction, **options)
    y, final_state = function(op)(**inputs)
    del inputs["cu_seqlens"]
    axis = 1 if direction == "both" else 0
    for document, (start, end) in enumerate(pairwise(bounds)):
        before = inputs["initial_state"].narrow(axis, document, 1)
        after = final_state.narrow(axis, document, 1)
        if start == end:
            assert_identical(after, before)
            continue
        part = time_slice(inputs, slice(start, end)) | {"initial_state": before}
        assert_close((y[:, start:end], after), function(op)(**part))


@each_recurrence
@pytest.mark.parametrize("cu_seqlens", [None, (0, 0, 20, 65)])
def test_both_directions_are_a_causal_and_a_flipped_run(op: str, options: dict, cu_seqlens: tuple | None) -> None:
    inputs = folder(op, "cases").make_inputs(direction="both", cu_seqlens=cu_seqlens, **options)
    ahead, back = inputs["initial_state"]
    flipped = inputs | {name: x.flip(1) for name, x in inputs.items() if name in IN_TIME}
    if cu_seqlens:
        flipped["cu_seqlens"], back = 65 - inputs["cu_seqlens"].flip(0), back.flip(0)
    causal = function(op)(**inputs | {"direction": "causal", "initial_state": ahead})
    reverse = function(op)(**flipped | {"direction": "causal", "initial_state": back})
    state = reverse[1].flip(0) if cu_seqlens else reverse[1]
    expected = causal[0] + reverse[0].flip(1), torch.stack([causal[1], state])
    assert_close(function(op)(**inputs), expected)


@each_recurrence
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("direction", ["causal", "both"])
def test_a_state_is_overwritten_when_asked(op: str, options: dict, T: int, direction: str) -> None:
    for backend in ("reference", *backends(op)):
        inputs = folder(op, "cases").make_inputs(T=T, direction=direction, **options) | {"backend": backend}
        state = inputs["initial_state"].clone()
        with torch.no_grad():
            y, final_state = function(op)(**inputs | {"initial_state": state, "in_place": True})
            assert_close((y, state), function(op)(**inputs))
        assert final_state is state


@each_case
def test_inputs_are_left_alone(op: str, case: str) -> None:
    inputs = inputs_of(op, case, torch.float32)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    outputs_and_gradients(op, inputs)
    assert_identical(tensors, before)


@pytest.mark.parametrize("op", OPS)
def test_rows_do_not_see_each_other(op: str) -> None:
    inputs = folder(op, "cases").make_inputs(B=3)
    batched = IN_TIME | {"initial_state"}
    row = inputs | {name: x[1:2] for name, x in inputs.items() if name in batched}
    assert_close(outputs(op, row), tuple(result[1:2] for result in outputs(op, inputs)))


@pytest.mark.parametrize("op", OPS)
def test_strides_change_nothing(op: str) -> None:
    inputs = folder(op, "cases").make_inputs()
    tensors = {name: tensor for name, tensor in differentiable(inputs).items() if tensor.ndim > 1}
    strided = {name: tensor.transpose(0, 1).contiguous().transpose(0, 1) for name, tensor in tensors.items()}
    assert_close(outputs(op, inputs | strided), outputs(op, inputs))  # torch may pick another kernel for them


@pytest.mark.parametrize("backend", ["reference", *backends("hgrn2")])
def test_an_almost_open_gate_still_writes(backend: str) -> None:
    """At a logit of 30, 1 - f is 1e-13: taken as a difference, fp32 would write nothing."""
    inputs = folder("hgrn2", "cases").make_inputs(logits=(30.0,), gamma=0.0, initial_state=False, dtype=torch.float32)
    y, state = function("hgrn2")(**inputs, backend=backend)
    expected = function("hgrn2")(**converted(inputs, torch.float64), backend="reference")
    assert_close((1e13 * y, 1e13 * state), tuple((1e13 * result).float() for result in expected))


@pytest.mark.parametrize("op", RECURRENT)
def test_final_state_alone_carries_gradients(op: str) -> None:
    inputs = folder(op, "cases").make_inputs()
    leaves = {name: x.requires_grad_() for name, x in differentiable(inputs).items() if name != "q"}
    final_state = function(op)(**inputs)[1]
    gradients = torch.autograd.grad(final_state.sum(), list(leaves.values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
