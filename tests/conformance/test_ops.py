"""Every op in mixerzoo/kernels obeys these laws. A folder with `op.py` and `cases.py` is an op and is tested."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import mixerzoo.kernels
from mixerzoo.kernels.gated_linear_attention.cases import HEADS
from mixerzoo.kernels.recurrence import each
from mixerzoo.kernels.sampling import DOCUMENTS, RECURRENT_CASES, OpFacts

from ..tolerances import assert_close, assert_finite, assert_identical, assert_within_budget

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPS = [module.name for module in pkgutil.iter_modules(mixerzoo.kernels.__path__) if module.ispkg]
OPS = [name for name in OPS if find_spec(f"mixerzoo.kernels.{name}.op")]
SHORT_DOCUMENTS = (0, 0, 1, 5)


def facts(op: str) -> OpFacts:
    return folder(op, "cases").FACTS


def folder(op: str, module: str) -> Any:
    return import_module(f"mixerzoo.kernels.{op}.{module}")


def function(op: str) -> Callable[..., Any]:
    return getattr(import_module(f"mixerzoo.kernels.{op}"), op)


def backends(op: str) -> list[str]:
    """Returns the backends that can run here, beside the reference: Triton's in its interpreter."""
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


RECURRENT = [op for op in OPS if facts(op).recurrent]
each_op = pytest.mark.parametrize(
    ("op", "options"), [(op, options) for op in OPS for options in facts(op).variants], ids=str
)
each_recurrence = pytest.mark.parametrize(
    ("op", "options"), [(op, options) for op in RECURRENT for options in facts(op).variants], ids=str
)
CASES = [(op, case) for op in OPS for case in folder(op, "cases").CASES]
each_case = pytest.mark.parametrize(("op", "case"), CASES)
# Triton's kernels see shared heads repeated, and in fp64 the interpreter has shown the algebra of every case already.
REPEATED = tuple(HEADS.keys() - {"grouped-queries-packed"})
SHOWN_IN_FP64 = tuple(RECURRENT_CASES.keys() - {"T=130", "packed-both"})


def implementations(slow: tuple[str, ...]) -> pytest.MarkDecorator:
    """Runs a test for every case of every op on every backend; those of Triton that end so are slow."""
    chosen = [
        pytest.param(op, backend, case, marks=[pytest.mark.slow] * (backend == "triton" and case.endswith(slow)))
        for op, case in CASES
        for backend in backends(op)
    ]
    return pytest.mark.parametrize(("op", "backend", "case"), chosen)


def differentiable(inputs: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() or tensor.is_complex()}


def with_state(inputs: dict[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """Puts tensors named as by `leaves_of` back in their places."""
    state, fields = inputs.get("initial_state"), {}
    for name in [name for name in leaves if name.startswith("initial_state.")]:
        fields[name.partition(".")[2]] = leaves[name]
    rest = {name: leaf for name, leaf in leaves.items() if not name.startswith("initial_state.")}
    return inputs | rest | ({"initial_state": state._replace(**fields)} if fields else {})


def leaves_of(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that gradients can reach, the fields of a state among them."""
    state = inputs.get("initial_state")
    fields = zip(state._fields, state, strict=True) if isinstance(state, tuple) else ()
    return differentiable(inputs) | {f"initial_state.{name}": leaf for name, leaf in fields}


def outputs(op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """y, and the leaves of the final state."""
    result = function(op)(**inputs)
    return tuple(tree_leaves(result))


def outputs_and_gradients(op: str, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the op's results, and the gradient of every input through all of them."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in leaves_of(inputs).items()}
    results = outputs(op, with_state(inputs, leaves))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in results]
    gradients = torch.autograd.grad(results, list(leaves.values()), cotangents)
    names = ("y", *(f"final_state_{i}" for i in range(len(results) - 1)))
    return dict(zip(names, results, strict=True)) | dict(zip((f"d_{name}" for name in leaves), gradients, strict=True))


def converted(inputs: dict[str, Any], real: torch.dtype) -> dict[str, Any]:
    leaves = leaves_of(inputs)
    return with_state(inputs, {name: x.to(real.to_complex() if x.is_complex() else real) for name, x in leaves.items()})


def in_time(op: str, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The inputs that have a time axis, `valid` among them; one without (theta [D]) has none in this call."""
    first = inputs[facts(op).in_time[0]]
    named = {name: inputs[name] for name in (*facts(op).in_time, "valid") if isinstance(inputs.get(name), Tensor)}
    return {name: x for name, x in named.items() if x.shape[:2] == first.shape[:2]}


def time_slice(op: str, inputs: dict[str, Any], part: slice) -> dict[str, Any]:
    return inputs | {name: x[:, part] for name, x in in_time(op, inputs).items()}


@pytest.mark.parametrize("op", OPS)
def test_an_op_says_what_it_is(op: str) -> None:
    """No law is left out in silence: every input in time is named, a recurrence has the recurrences' signature."""
    for options in facts(op).variants:
        inputs = folder(op, "cases").make_inputs(B=2, T=11, **options)
        tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and name != "initial_state"}
        assert {name for name, x in tensors.items() if x.shape[:2] == (2, 11)} <= set(facts(op).in_time)
    shared = {"initial_state", "valid", "cu_seqlens", "direction", "in_place"}
    assert (shared <= set(inspect.signature(function(op)).parameters)) == facts(op).recurrent
    assert "backend" in inspect.signature(function(op)).parameters


@implementations(slow=REPEATED)
def test_implementation_equals_reference(op: str, backend: str, case: str) -> None:
    inputs = inputs_of(op, case)
    actual = outputs_and_gradients(op, inputs | {"backend": backend})
    expected = outputs_and_gradients(op, inputs | {"backend": "reference"})
    assert_finite(expected)
    assert_close(actual, expected)


@implementations(slow=REPEATED + SHOWN_IN_FP64)
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


def small_cases() -> list[Any]:
    """Five tokens of every form whose gradient is worth comparing with differences."""
    ways = ({}, {"cu_seqlens": SHORT_DOCUMENTS}, {"direction": "both"}, {"padded": True})
    return [
        pytest.param(op, {**sizes, **way}, id=f"{op}-{sizes}-{way}")
        for op in OPS
        for sizes in facts(op).small
        for way in (ways if facts(op).recurrent else ({},))
    ]


@pytest.mark.parametrize(("op", "arguments"), small_cases())
def test_gradients_are_derivatives(op: str, arguments: dict) -> None:
    inputs = folder(op, "cases").make_inputs(B=1, T=5, **arguments)
    leaves = leaves_of(inputs)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return outputs(op, with_state(inputs, dict(zip(leaves, tensors, strict=True))))

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves.values()], fast_mode=True)


@each_recurrence
@pytest.mark.parametrize("direction", ["causal", "reverse", "both"])
def test_padding_is_as_if_it_were_not_there(op: str, options: dict, direction: str) -> None:
    inputs = folder(op, "cases").make_inputs(T=23, padded=True, direction=direction, **options)
    valid = inputs.pop("valid")
    spoilt = {
        name: x.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - 2)), float("nan"))
        for name, x in in_time(op, inputs).items()
    }
    y, final_state = function(op)(**inputs | spoilt, valid=valid)
    assert not y[~valid].any()
    axis = 1 if direction == "both" else 0
    for row, tokens in enumerate(valid):
        alone = {name: x[row : row + 1, tokens] for name, x in in_time(op, inputs).items()}
        before, after = (
            each(lambda leaf, row=row: leaf.narrow(axis, row, 1), state)
            for state in (inputs["initial_state"], final_state)
        )
        expected = function(op)(**inputs | alone | {"initial_state": before})
        assert_close((y[row : row + 1, tokens], after), expected)
    assert_finite(outputs_and_gradients(op, inputs | spoilt | {"valid": valid}))


@pytest.mark.parametrize("cut", [1, 63, 64, 100])
@each_recurrence
def test_splitting_a_sequence_changes_nothing(op: str, options: dict, cut: int) -> None:
    inputs = folder(op, "cases").make_inputs(T=130, **options)
    y, final_state = function(op)(**inputs)
    head, state = function(op)(**time_slice(op, inputs, slice(0, cut)))
    tail, state = function(op)(**time_slice(op, inputs, slice(cut, None)) | {"initial_state": state})
    assert_close((torch.cat([head, tail], 1), state), (y, final_state))


@pytest.mark.parametrize("op", ["gated_linear_attention", "hgrn2"])
def test_a_sequence_too_large_for_one_segment_is_its_pieces(op: str) -> None:
    inputs = folder(op, "cases").make_inputs(T=65, H=16, K=256, V=1)
    leaves = {name: tensor.requires_grad_() for name, tensor in differentiable(inputs).items()}
    whole = function(op)(**inputs)
    pieces, state = [], inputs["initial_state"]
    for start in (0, 64):
        part = time_slice(op, inputs, slice(start, start + 64)) | {"initial_state": state}
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
    bounds = DOCUMENTS
    inputs = folder(op, "cases").make_inputs(cu_seqlens=bounds, direction=direction, **options)
    y, final_state = function(op)(**inputs)
    del inputs["cu_seqlens"]
    axis = 1 if direction == "both" else 0
    for document, (start, end) in enumerate(pairwise(bounds)):
        before, after = (
            each(lambda leaf, i=document: leaf.narrow(axis, i, 1), state)
            for state in (inputs["initial_state"], final_state)
        )
        if start == end:
            assert_identical(after, before)
            continue
        part = time_slice(op, inputs, slice(start, end)) | {"initial_state": before}
        assert_close((y[:, start:end], after), function(op)(**part))


@each_recurrence
@pytest.mark.parametrize("cu_seqlens", [None, (0, 0, 20, 65)])
def test_both_directions_are_a_causal_and_a_flipped_run(op: str, options: dict, cu_seqlens: tuple | None) -> None:
    inputs = folder(op, "cases").make_inputs(direction="both", cu_seqlens=cu_seqlens, **options)
    ahead, back = (each(lambda leaf, way=way: leaf[way], inputs["initial_state"]) for way in (0, 1))
    flipped = inputs | {name: x.flip(1) for name, x in in_time(op, inputs).items()}
    if cu_seqlens:
        flipped["cu_seqlens"] = 65 - inputs["cu_seqlens"].flip(0)
        back = each(lambda leaf: leaf.flip(0), back)
    causal = function(op)(**inputs | {"direction": "causal", "initial_state": ahead})
    reverse = function(op)(**flipped | {"direction": "causal", "initial_state": back})
    state = each(lambda leaf: leaf.flip(0), reverse[1]) if cu_seqlens else reverse[1]
    expected = causal[0] + reverse[0].flip(1), each(lambda *leaves: torch.stack(leaves), causal[1], state)
    assert_close(function(op)(**inputs), expected)


@each_recurrence
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("direction", ["causal", "both"])
def test_a_state_is_overwritten_when_asked(op: str, options: dict, T: int, direction: str) -> None:
    for backend in ("reference", *backends(op)):
        inputs = folder(op, "cases").make_inputs(T=T, direction=direction, **options) | {"backend": backend}
        state = each(torch.clone, inputs["initial_state"])
        with torch.no_grad():
            y, final_state = function(op)(**inputs | {"initial_state": state, "in_place": True})
            assert_close((y, state), function(op)(**inputs))
        assert all(a is b for a, b in zip(tree_leaves(final_state), tree_leaves(state), strict=True))


@each_case
def test_inputs_are_left_alone(op: str, case: str) -> None:
    inputs = inputs_of(op, case, torch.float32)
    before = {name: tensor.clone() for name, tensor in leaves_of(inputs).items()}
    outputs_and_gradients(op, inputs)
    assert_identical(leaves_of(inputs), before)


@pytest.mark.parametrize("op", OPS)
def test_rows_do_not_see_each_other(op: str) -> None:
    inputs = folder(op, "cases").make_inputs(B=3)
    row = inputs | {name: x[1:2] for name, x in in_time(op, inputs).items()}
    if "initial_state" in inputs:
        row["initial_state"] = each(lambda leaf: leaf[1:2], inputs["initial_state"])
    assert_close(outputs(op, row), tuple(result[1:2] for result in outputs(op, inputs)))


@pytest.mark.parametrize("op", OPS)
def test_strides_change_nothing(op: str) -> None:
    inputs = folder(op, "cases").make_inputs()
    tensors = {name: tensor for name, tensor in differentiable(inputs).items() if tensor.ndim > 1}
    strided = {name: tensor.transpose(0, 1).contiguous().transpose(0, 1) for name, tensor in tensors.items()}
    assert_close(outputs(op, inputs | strided), outputs(op, inputs))  # torch may pick another kernel for them


@pytest.mark.parametrize("backend", ["reference", *backends("hgrn2")])
def test_an_almost_open_gate_still_writes(backend: str) -> None:
    """At a logit of 30, 1 - f is 1e-13: fp32 would write nothing if it were taken as a difference."""
    inputs = folder("hgrn2", "cases").make_inputs(logits=(30.0,), gamma=0.0, initial_state=False, dtype=torch.float32)
    y, state = function("hgrn2")(**inputs, backend=backend)
    expected = function("hgrn2")(**converted(inputs, torch.float64), backend="reference")
    assert_close((1e13 * y, 1e13 * state), tuple((1e13 * result).float() for result in expected))


@each_recurrence
def test_final_state_alone_carries_gradients(op: str, options: dict) -> None:
    """To every input that writes into it: a query only reads."""
    inputs = folder(op, "cases").make_inputs(**options)
    leaves = {name: x.requires_grad_() for name, x in leaves_of(inputs).items() if name != "q"}
    final_state = tree_leaves(function(op)(**inputs)[1])
    gradients = torch.autograd.grad(sum(leaf.abs().sum() for leaf in final_state), list(leaves.values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
