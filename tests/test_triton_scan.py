"""The gated scan's Triton backend has laws beyond the conformance suite, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.gated_scan.cases import make_inputs

from .tolerances import assert_close, assert_identical

pytestmark = pytest.mark.usefixtures("poisoned_empty", "small_tiles")

KINDS: dict[str, dict[str, Any]] = {
    "real": {},
    "complex": {"complex": True},
    "theta-per-token": {"complex": True, "theta_per_token": True},
}
PLACES: dict[str, dict[str, Any]] = {
    "causal": {},
    "reverse": {"direction": "reverse"},
    "both": {"direction": "both"},
    "packed": {"cu_seqlens": (0, 0, 1, 5)},
    "packed-reverse": {"cu_seqlens": (0, 0, 1, 5), "direction": "reverse"},
}
SMALL = {"channels": 2, "segments": 2, "steps": 2}  # so that a few tokens fill several blocks
each_kind = pytest.mark.parametrize("kind", KINDS)
each_place = pytest.mark.parametrize("place", PLACES)
each_mixture = pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("real", "both"),
        ("real", "packed-reverse"),
        ("complex", "causal"),
        ("complex", "packed"),
        ("theta-per-token", "both"),
    ],
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixerzoo.kernels.gated_scan import triton_plan

    monkeypatch.setattr(triton_plan, "SHORTEST_BLOCK", 4)
    for name, tile in triton_plan.TILES.items():
        monkeypatch.setitem(triton_plan.TILES, name, tile._replace(**SMALL))


def inputs_of(kind: str, place: str = "causal", **sizes: Any) -> dict[str, Any]:
    return make_inputs(**{"B": 2, "T": 5, "D": 3, **KINDS[kind], **PLACES[place], **sizes})


def leaves_of(inputs: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "cu_seqlens"}
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def values_and_gradients(inputs: dict[str, Any], backend: str) -> dict[str, Tensor]:
    leaves = leaves_of(inputs)
    h, final_state = gated_scan(**inputs | leaves, backend=backend)
    cotangents = [torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype) for y in (h, final_state)]
    gradients = torch.autograd.grad((h, final_state), list(leaves.values()), cotangents)
    return {"h": h, "final_state": final_state, **dict(zip(leaves, gradients, strict=True))}


def check_against_torch(inputs: dict[str, Any]) -> None:
    assert_close(values_and_gradients(inputs, "triton"), values_and_gradients(inputs, "torch"))


def arguments_of(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the arguments of the custom op."""
    names = ("x", "log_f", "theta", "initial_state", "cu_seqlens", "direction")
    return tuple(inputs.get(name) for name in names)


@each_mixture
def test_gradients_are_derivatives(kind: str, place: str) -> None:
    inputs = inputs_of(kind, place, B=1, D=2)
    leaves = leaves_of(inputs)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return gated_scan(**inputs | dict(zip(leaves, tensors, strict=True)), backend="triton")

    assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=True)


def test_few_channels_in_a_long_sequence() -> None:
    from mixerzoo.kernels.gated_scan.triton_plan import TILES, choose_tile

    few, many = (choose_tile(257, 2, sequences, complex=False, both=False) for sequences in (1, 4096))
    assert few == TILES["real, few"]._replace(channels=2) != many
    check_against_torch(inputs_of("real", B=1, T=257, D=2))


@each_kind
def test_channels_that_fill_no_block(kind: str) -> None:
    check_against_torch(inputs_of(kind, B=1, T=3, D=7))


def test_a_sequence_of_many_blocks_in_both_directions() -> None:
    check_against_torch(inputs_of("real", "both", B=1, T=41, D=1))


def test_large_angles() -> None:
    inputs = inputs_of("theta-per-token", B=1, T=9)
    check_against_torch(inputs | {"theta": 1e3 * inputs["theta"]})


@each_kind
def test_strides_change_nothing(kind: str) -> None:
    """Inputs are transposed and conjugated, and an output's gradient has no memory of its own."""
    inputs = inputs_of(kind)
    leaves = {name: x.detach() for name, x in leaves_of(inputs).items() if x.ndim > 1}
    strided = {name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in leaves.items()}
    if kind != "real":
        strided["initial_state"] = inputs["initial_state"].conj().resolve_conj().conj()
        assert strided["initial_state"].is_conj()
    results = []
    for given in (inputs, inputs | strided):
        x = given["x"].detach().requires_grad_()
        h, final_state = gated_scan(**given | {"x": x}, backend="triton")
        results.append((h, final_state, *torch.autograd.grad(h.real.sum(), x)))
    assert_identical(results[1], results[0])


@each_mixture
def test_final_state_alone_carries_gradients(kind: str, place: str) -> None:
    gradients = []
    for backend in ("triton", "torch"):
        inputs = inputs_of(kind, place)
        leaves = leaves_of(inputs)
        final_state = gated_scan(**inputs | leaves, backend=backend)[1]
        gradients.append(torch.autograd.grad(final_state.abs().square().sum(), list(leaves.values())))
    assert_close(*gradients)


@each_mixture
def test_no_initial_state_is_zero(kind: str, place: str) -> None:
    inputs = inputs_of(kind, place)
    zero = torch.zeros_like(inputs.pop("initial_state"))
    expected = values_and_gradients(inputs | {"initial_state": zero}, "triton")
    del expected["initial_state"]
    assert_identical(values_and_gradients(inputs, "triton"), expected)


def test_a_real_initial_state_of_a_complex_scan() -> None:
    inputs = inputs_of("complex")
    state = inputs["initial_state"].real.clone()
    expected = gated_scan(**inputs | {"initial_state": state.to(torch.complex128)}, backend="triton")
    assert_identical(gated_scan(**inputs | {"initial_state": state}, backend="triton"), expected)


def test_a_complex_initial_state_of_a_real_scan_is_an_error() -> None:
    inputs = inputs_of("real")
    state = inputs["initial_state"].to(torch.complex128)
    with pytest.raises(ValueError, match=r"initial_state of a real scan must be real, got torch.complex128; remedy"):
        gated_scan(**inputs | {"initial_state": state}, backend="triton")


@pytest.mark.parametrize("cut", [1, 4, 10])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_a_split_sequence_has_the_whole_one_s_gradients(kind: str, cut: int) -> None:
    inputs = inputs_of(kind, B=1, T=11, D=1)
    x, log_f = inputs.pop("x").requires_grad_(), inputs.pop("log_f").requires_grad_()
    whole = gated_scan(x, log_f, **inputs, backend="triton")
    head, state = gated_scan(x[:, :cut], log_f[:, :cut], **inputs, backend="triton")
    tail, state = gated_scan(x[:, cut:], log_f[:, cut:], **inputs | {"initial_state": state}, backend="triton")
    split = torch.cat([head, tail], 1), state
    assert_close(split, whole)
    weights = [torch.randn_like(y) for y in whole]
    gradients = (torch.autograd.grad(y, (x, log_f), weights) for y in (split, whole))
    assert_close(*gradients)


def test_empty_documents_keep_their_state() -> None:
    inputs = inputs_of("real", "packed")
    leaves = leaves_of(inputs)
    final_state = gated_scan(**inputs | leaves, backend="triton")[1]
    assert_identical(final_state[0], leaves["initial_state"][0])
    (gradient,) = torch.autograd.grad(final_state[0].sum(), leaves["initial_state"])
    assert_identical(gradient[0], torch.ones_like(gradient[0]))


@each_mixture
def test_the_custom_ops_are_what_they_say(kind: str, place: str) -> None:
    from mixerzoo.kernels.gated_scan.triton_op import gated_scan as op
    from mixerzoo.kernels.gated_scan.triton_op import gated_scan_backward

    inputs = inputs_of(kind, place)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if "packed" not in place:  # some of a packed row's carries belong to no document, and are never written
        checks.append("test_aot_dispatch_static")
    torch.library.opcheck(op, arguments_of(inputs | leaves_of(inputs)), test_utils=checks)
    h, final_state, carries = op(*arguments_of(inputs))
    given = (inputs["x"], inputs["log_f"], inputs.get("theta"), carries, inputs.get("cu_seqlens"), inputs["direction"])
    torch.library.opcheck(gated_scan_backward, (h, final_state, *given))
    torch.library.opcheck(gated_scan_backward, (None, final_state, *given), test_utils="test_faketensor")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@each_kind
def test_dtypes_of_outputs_and_gradients(kind: str, dtype: torch.dtype) -> None:
    """torch's compiler sees them without a value: the interpreter's arithmetic in bf16 is not a GPU's."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = inputs_of(kind, dtype=dtype, initial_state=False)
    with FakeTensorMode() as mode:
        inputs = {name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        leaves = {name: x.requires_grad_() for name, x in inputs.items() if isinstance(x, Tensor)}
        h, final_state = gated_scan(**inputs, backend="triton")
        gradients = torch.autograd.grad((h, final_state), list(leaves.values()), (h, final_state))
    assert (h.dtype, h.shape) == (inputs["x"].dtype, inputs["x"].shape)
    assert final_state.dtype == (torch.float32 if kind == "real" else torch.complex64)
    for gradient, leaf in zip(gradients, leaves.values(), strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)


def test_one_fp64_tensor_makes_the_state_fp64() -> None:
    inputs = inputs_of("real", dtype=torch.float32)
    check_against_torch(inputs | {"log_f": inputs["log_f"].double()})


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_compiled_and_exported_equal_eager(kind: str) -> None:
    inputs = inputs_of(kind)
    scan = Scan({name: x for name, x in inputs.items() if name not in ("x", "log_f")})
    given = inputs["x"].requires_grad_(), inputs["log_f"].requires_grad_()
    weights = torch.randn_like(inputs["x"])

    def run(function) -> tuple[Tensor, ...]:
        h, final_state = function(*given)
        return h, final_state, *torch.autograd.grad((h * weights).real.sum(), given)

    torch._dynamo.reset()
    assert_identical(run(torch.compile(scan, fullgraph=True, backend="aot_eager")), run(scan))
    given = tuple(x.detach() for x in given)
    exported = torch.export.export(scan, given)
    assert_identical(exported.module()(*given), scan(*given))


class Scan(torch.nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor, log_f: Tensor) -> tuple[Tensor, Tensor]:
        return gated_scan(x, log_f, **self.options, backend="triton")


def test_autocast_changes_nothing() -> None:
    inputs = inputs_of("real", dtype=torch.float32)
    expected = values_and_gradients(inputs, "triton")
    with torch.autocast("cpu", torch.bfloat16):
        assert_identical(values_and_gradients(inputs, "triton"), expected)


@each_place
@each_kind
def test_one_launch_each_way(kind: str, place: str) -> None:
    """The launch is planned on the meta device, where no kernel runs."""
    from mixerzoo.kernels.gated_scan.triton_plan import Call

    inputs = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in inputs_of(kind, place).items()}
    x, log_f, theta, initial_state, cu_seqlens, direction = arguments_of(inputs)
    call = Call(x, log_f, theta, cu_seqlens, direction)
    h, final_state, carries = call.outputs(initial_state)
    assert len(call.forward(initial_state, h, final_state, carries)) == 1
    assert len(call.backward(h, final_state, carries, call.gradients(carries))) == 1


def test_auto_leaves_the_cpu_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import mixerzoo.kernels.gated_scan.triton_op as triton_op

    monkeypatch.setattr(triton_op, "gated_scan", None)
    gated_scan(**inputs_of("real"))
    with pytest.raises(TypeError):
        gated_scan(**inputs_of("real"), backend="triton")
