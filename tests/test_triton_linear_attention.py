"""Triton's HGRN2 and gated linear attention have laws beyond every op's: schedules, launches, custom ops, decoding."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mixerzoo import build_mixer, use_backend
from mixerzoo.kernels.gated_linear_attention import cases as gla_cases
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention, schedule, triton_backward, tuning
from mixerzoo.kernels.gated_linear_attention.triton_op import backward, forward
from mixerzoo.kernels.gated_linear_attention.triton_plan import Call
from mixerzoo.kernels.hgrn2 import cases, hgrn2
from mixerzoo.kernels.sampling import DOCUMENTS

from .conformance.test_ops import differentiable, inputs_of, outputs_and_gradients
from .tolerances import assert_close, assert_identical

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SMALL: dict[str, Any] = {"B": 1, "H": 1, "K": 3, "V": 2}
IN_TIME = ("q", "logits", "v")


def call_of(inputs: dict[str, Any]) -> Call:
    """The call that an op's inputs are planned as, scale and activation apart."""
    fields = ("q", "v", "k", "log_f", "logits", "lower_bound", "cu_seqlens", "direction")
    return Call(**{name: inputs[name] for name in fields if name in inputs})


def check_planned(op: str, inputs: dict[str, Any], **changes: Any) -> None:
    """Both passes of a schedule that is not the table's, against the token loop."""
    inputs = inputs | {"scale": 1.0}
    call, state = call_of(inputs), inputs.get("initial_state")
    call = call.scheduled(replace(call.variant.schedule, **changes))
    y, final_state, block_states = forward(call, state, save=True)
    cotangents = torch.randn_like(y), torch.randn_like(final_state)
    gradients = backward(call, block_states, *cotangents)

    leaves = {name: x.detach().clone().requires_grad_() for name, x in differentiable(inputs).items()}
    expected = OPS[op](**inputs | leaves, backend="reference")
    assert_close((y, final_state), expected)
    assert_close(gradients[: len(leaves)], torch.autograd.grad(expected, list(leaves.values()), cotangents))


OPS = {"hgrn2": hgrn2, "gated_linear_attention": gated_linear_attention}


def on_triton(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"backend": "triton"}


@pytest.mark.parametrize("direction", ["causal", "reverse", "both"])
@pytest.mark.parametrize("cu_seqlens", [None, DOCUMENTS], ids=["rows", "packed"])
def test_segments_change_nothing(direction: str, cu_seqlens: tuple | None) -> None:
    inputs = cases.make_inputs(**SMALL | {"T": 150}, direction=direction, cu_seqlens=cu_seqlens)
    check_planned("hgrn2", inputs, segment=64)


@pytest.fixture
def blocks_left_to_the_tree(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Gets an entry for every block that is done again by the decay tree."""
    tree, blocks = triton_backward.tree_backward, []

    def count(*arguments: Any) -> None:
        blocks.append(None)
        tree(*arguments)

    monkeypatch.setattr(triton_backward, "tree_backward", count)
    return blocks


ON_THE_MATRIX_UNIT: dict[str, Any] = {"chunk": 32, "factored": True}  # as bf16 is scheduled
IN_ONE_PIECE = {
    "hgrn2": (
        "T=130",
        "both",
        "packed-both",
        "K=2,V=3,packed",
        "K=256,V=1",
        "logits-30,gamma=0.0",
        "packed-logits-inf",
    ),
    "gated_linear_attention": ("T=65", "decay-strong", "packed-closed", "K=1,V=256", "gate-per-head-both"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what is done again by the tree may have overflowed before
@pytest.mark.parametrize(("op", "case"), [(op, case) for op, cases in IN_ONE_PIECE.items() for case in cases])
def test_blocks_are_differentiated_in_one_piece(op: str, case: str) -> None:
    check_planned(op, inputs_of(op, case), **ON_THE_MATRIX_UNIT)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [
        ({"gamma": 0.5}, 0),
        ({"gamma": 0.7, "direction": "both", "logits": (-30.0, 30.0)}, 0),
        ({"gamma": 0.0, "logits": (-8.0, 8.0), "K": 1}, 1),  # smallest gate 2^-11.5: only the sum is too small
        ({"gamma": 0.0, "logits": (-9.0, 9.0), "T": 9}, 1),  # the smallest gate is 2^-13
        ({"gamma": 0.0, "logits": (-9.0, 9.0), "T": 9, "direction": "both"}, 1),
    ],
    ids=str,
)
def test_what_is_left_to_the_decay_tree(arguments: Any, blocks: int, blocks_left_to_the_tree: list[None]) -> None:
    """The tree gets blocks whose gates sum to less than -SPAN, 32 in fp64, or with a gate below 2^-12."""
    inputs = cases.make_inputs(**SMALL | {"T": 64} | arguments)
    check_planned("hgrn2", inputs, **ON_THE_MATRIX_UNIT)
    assert len(blocks_left_to_the_tree) == blocks


@pytest.mark.parametrize(("T", "H", "launches"), [(196, 1, (1, 2)), (4096, 96, (1, 2)), (4096, 1, (2, 2))])
def test_launches(T: int, H: int, launches: tuple[int, int]) -> None:
    """Forward has one if a row is short or heads are many, else two; backward has two, and sums the bound's parts."""
    x = torch.empty(1, T, H, 64, device="meta")
    call = Call(x, x, logits=x, lower_bound=torch.empty(H, 64, device="meta"), activation="silu")
    y, state, states = call.outputs(save=True)
    ahead, back = call.forward(y, states, state, None), call.backward(y, states, None, call.gradients())
    assert (len(ahead), len(back)) == launches


@pytest.mark.parametrize("arguments", [{}, {"cu_seqlens": (0, 0, 1, 5)}, {"direction": "both"}], ids=str)
def test_gradients_are_derivatives(arguments: dict[str, Any]) -> None:
    inputs = cases.make_inputs(**SMALL | {"T": 5}, **arguments)
    leaves = differentiable(inputs)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return hgrn2(**on_triton(inputs | dict(zip(leaves, tensors, strict=True))))

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves.values()], fast_mode=True)


@pytest.mark.parametrize("q_activation", ["silu", "sigmoid"])
def test_the_fused_activation_is_the_activation(q_activation: str) -> None:
    inputs = cases.make_inputs(T=20) | {"q_activation": q_activation}
    expected = outputs_and_gradients("hgrn2", inputs | {"backend": "reference"})
    assert_close(outputs_and_gradients("hgrn2", on_triton(inputs)), expected)


@pytest.mark.parametrize("K", [3, 70])
@pytest.mark.parametrize("op", [hgrn2, gated_linear_attention])
def test_one_token_is_decoded(op: Any, K: int) -> None:
    inputs = (cases if op is hgrn2 else gla_cases).make_inputs(T=1, K=K, V=40)
    with torch.no_grad():
        assert_close(op(**on_triton(inputs)), op(**inputs, backend="reference"))


def test_strides_change_nothing() -> None:
    inputs = cases.make_inputs(T=20)
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items() if name in IN_TIME}
    assert_identical(hgrn2(**on_triton(inputs | strided)), hgrn2(**on_triton(inputs)))


def test_torch_accepts_the_custom_ops() -> None:
    from mixerzoo.kernels.gated_linear_attention.triton_op import linear_attention

    inputs = differentiable(cases.make_inputs(**SMALL | {"T": 20}, dtype=torch.float32))
    q, logits, v, lower_bound, state = (x.requires_grad_() for x in inputs.values())
    given = (q, v, None, None, logits, lower_bound, None, 1.0, "silu", "causal", state)
    torch.library.opcheck(linear_attention, (*given, True))


@pytest.mark.parametrize("direction", ["causal", "both"])
def test_compiled_without_graph_breaks(direction: str) -> None:
    inputs = cases.make_inputs(T=20, direction=direction, dtype=torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in differentiable(inputs).items()}

    def run(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return hgrn2(**{**inputs, **leaves, "backend": "triton"})  # torch 2.7 can't trace inputs | leaves

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [f(leaves) for f in (compiled, run)]
    assert_identical(results[0], results[1])
    gradients = [torch.autograd.grad([x.sum() for x in result], list(leaves.values())) for result in results]
    assert_identical(gradients[0], gradients[1])


def test_exported() -> None:
    class Op(torch.nn.Module):
        def forward(self, q: Tensor, logits: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return hgrn2(q, logits, v, 0.5, backend="triton")

    inputs = cases.make_inputs(T=20, dtype=torch.float32)
    arguments = tuple(inputs[name] for name in IN_TIME)
    assert_identical(torch.export.export(Op(), arguments).module()(*arguments), Op()(*arguments))


def test_exported_without_gradients_it_says_so_when_asked_for_them() -> None:
    class Op(torch.nn.Module):
        def forward(self, q: Tensor, logits: Tensor, v: Tensor) -> Tensor:
            return hgrn2(q, logits, v, 0.5, backend="triton")[0]

    inputs = cases.make_inputs(**SMALL | {"T": 5}, dtype=torch.float32)
    with torch.no_grad():
        exported = torch.export.export(Op(), tuple(inputs[name] for name in IN_TIME)).module()
    y = exported(*(inputs[name].requires_grad_() for name in IN_TIME))
    with pytest.raises(RuntimeError, match="made without gradients; remedy: export"):
        y.sum().backward()


def test_derivatives_that_are_not_there_raise() -> None:
    inputs = on_triton(cases.make_inputs(**SMALL | {"T": 5}))
    q, v = inputs["q"].requires_grad_(), inputs["v"].requires_grad_()
    (dv,) = torch.autograd.grad(hgrn2(**inputs)[0].square().sum(), v, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives; remedy: backend='torch'"):
        torch.autograd.grad(dv.sum(), q)
    with pytest.raises(RuntimeError, match="functorch transforms"):  # torch's own words
        torch.func.jvp(lambda v: hgrn2(**inputs | {"v": v})[0], (v.detach(),), (v.detach(),))


def test_autocast_changes_nothing() -> None:
    inputs = on_triton(cases.make_inputs(T=20, dtype=torch.float32))
    expected = hgrn2(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert_identical(hgrn2(**inputs), expected)


@pytest.mark.parametrize("name", ["hgrn2", "gla", "retnet"])
def test_mixers_train_prefill_and_step(name: str) -> None:
    mixer = build_mixer(name, dim=32, **({"expand": 16} if name == "hgrn2" else {"num_heads": 2})).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    expected = mixer(x)
    expected_gradients = torch.autograd.grad(expected.sum(), list(mixer.parameters()))
    with use_backend("triton"):
        y = mixer(x)
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y.sum(), list(mixer.parameters())), expected_gradients)
        with torch.no_grad():
            head, state = mixer.prefill(x[:, :8])
            tail, _ = mixer.step(x[:, 8], state)
    assert_close(torch.cat([head, tail[:, None]], 1), expected)


@pytest.mark.parametrize("op", [hgrn2, gated_linear_attention])
@pytest.mark.parametrize("strided", [False, True])
def test_a_token_is_decoded_in_place(op: Any, strided: bool) -> None:
    inputs = on_triton((cases if op is hgrn2 else gla_cases).make_inputs(T=1))
    state = inputs["initial_state"].clone()
    if strided:
        state = state.transpose(2, 3).contiguous().transpose(2, 3)
    with torch.no_grad():
        y, final_state = op(**inputs | {"initial_state": state, "in_place": True})
        assert_close((y, state), op(**inputs))
    assert final_state is state


def test_decoding_in_place_is_one_launch_without_a_copy() -> None:
    from mixerzoo.kernels.gated_linear_attention.triton_op import decode_in_place

    q, logits, v, lower_bound, state = differentiable(cases.make_inputs(T=1, dtype=torch.float32)).values()
    torch.library.opcheck(decode_in_place, (q, v, None, None, logits, lower_bound, state, 1.0, "none"))


@pytest.mark.parametrize(("direction", "best"), [("causal", 1), ("both", 5)])
def test_tuning_changes_nothing_but_time(monkeypatch: pytest.MonkeyPatch, direction: str, best: int) -> None:
    """Any candidate may be the fastest; a shape is measured once."""
    measured: list[schedule.Schedule] = []

    def seconds(call: Any, run: Any) -> float:
        measured.append(call.variant.schedule)
        return 0.0 if len(measured) == best + 1 else 1.0

    monkeypatch.setattr(schedule, "SHORT", 64)
    monkeypatch.setattr(tuning, "_fastest", {})
    monkeypatch.setattr(tuning, "_seconds", seconds)
    inputs = cases.make_inputs(**SMALL | {"T": 300, "V": 70}, direction=direction)
    expected = outputs_and_gradients("hgrn2", inputs | {"backend": "reference"})
    with use_backend("triton", tune=True):
        assert_close(outputs_and_gradients("hgrn2", inputs), expected)
        with torch.no_grad():
            hgrn2(**inputs)
    assert len(measured) == len(set(measured)) == 6
    assert list(tuning._fastest.values()) == [measured[best]]


def test_tuning_measures_what_it_can_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_fastest", {})
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    inputs = cases.make_inputs(**SMALL | {"T": 20})
    expected = hgrn2(**on_triton(inputs))
    with use_backend("triton", tune=True):
        assert_close(hgrn2(**inputs), expected)
    assert len(tuning._fastest) == 1


@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float32])
def test_the_table_s_schedule_is_a_candidate(operand: torch.dtype) -> None:
    for T, heads, K, V, direction in product(
        (1, 196, 4096), (1, 128), (3, 64, 256), (60, 128, 256), ("causal", "both")
    ):
        chosen = schedule.choose(T, 1, heads, K, V, direction=direction, packed=False, operand=operand)
        known = schedule.candidates(T, K, V, operand=operand)
        assert chosen in known and len(known) <= 8


def test_widths_beyond_the_kernels_are_named() -> None:
    inputs = cases.make_inputs(T=1, K=300, V=1)
    with pytest.raises(ValueError, match="triton: K and V up to 256, got 300 and 1"):
        hgrn2(**on_triton(inputs))
