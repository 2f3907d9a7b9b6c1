"""The timed contenders form groups; a group's contenders do the same work on the same tensors.

A contender is built when its group is due. If its package is missing, its row holds the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from goals import (
    BOTH,
    COPY_CAPTURED,
    DECODE,
    FLASH,
    FORWARD,
    LM,
    OURS,
    OURS_CAPTURED,
    PEER,
    PEER_COMPILED,
    SHAPES,
    Shape,
)  # fmt: skip
from measure import Group, Op, Passes, captured, compulsory, inference, passes
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixerzoo import build_mixer, use_backend
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.tasks.lm.flash_linear_attention.hgrn2_plug_in import replace_hgrn2
from mixerzoo.tasks.models.language_model import LanguageModel

PEER_CAPTURED = "flash-linear-attention, in a CUDA graph"
PLUGGED = "flash-linear-attention on our op"
OURS_COMPILED = "mixerzoo, compiled"
OURS_TUNED = "mixerzoo, tuned"
VOCABULARY = 32000
COMPILER = {True: "inductor", False: "aot_eager"}  # a smoke run only wants to see that it traces
SMOKE_SHAPE, SMOKE_STEP = (2, 40, 2, 16), (2, 1, 2, 16)
HEAD_GATE = "gated_linear_attention with a gate per head"


def groups(device: torch.device, smoke: bool) -> Iterator[tuple[str, Shape, Callable[[], Group]]]:
    """Yields each group's name, its sizes and its setup. The most important come first, because time may run out."""
    dtype = torch.float32 if smoke else torch.bfloat16
    shapes: tuple[Shape, ...] = (SMOKE_SHAPE,) if smoke else SHAPES
    for shape in shapes:
        yield "mixer", shape, partial(mixer_group, shape, device, dtype)
        yield "hgrn2", shape, partial(hgrn2_group, shape, device, dtype)
    for shape in (SMOKE_STEP,) if smoke else DECODE:
        yield "hgrn2 step", shape, partial(hgrn2_step_group, shape, device, dtype)
        yield "mixer step", shape, partial(mixer_step_group, shape, device, dtype)
    shape, depth = (SMOKE_SHAPE, 2) if smoke else ((8, 2048, 8, 128), 24)
    yield "language model step", shape, partial(model_group, shape, depth, device)
    for shape in shapes[: len(LM)]:
        yield "gated_linear_attention", shape, partial(gla_group, shape, device, dtype)
        yield HEAD_GATE, shape, partial(head_gate_group, shape, device, dtype)
        yield "gated_scan", shape, partial(scan_group, shape, device, dtype)


def tensors(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_() for shape in shapes]


def op_group(inputs: list[Tensor], v: Tensor, ops: dict[str, Callable[[], Op]]) -> Group:
    """Groups ops of the same inputs; each is looked up, imports and all, when it is due."""
    contenders = {who: lambda find=find: passes(find(), inputs) for who, find in ops.items()}
    return Group(contenders, bytes=compulsory(inputs, v))


def peer(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def hgrn2_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    """Groups ops from raw q, logits and v to y. FlashAttention takes the logits for keys: as many, as large."""
    B, T, H, K = shape
    q, x, v = tensors(device, dtype, *[(B, T, H, K)] * 3)
    bound = torch.full((H, K), 0.5, device=device, requires_grad=True)
    ours = partial(hgrn2, scale=K**-0.5, q_activation="silu")
    ops: dict[str, Callable[[], Op]] = {
        OURS: lambda: partial(first, ours),
        OURS_TUNED: lambda: tuned(partial(first, ours)),
        PEER: lambda: partial(peer_hgrn2, peer_gates, peer("fla.ops.gla", "chunk_gla")),
        PEER_COMPILED: lambda: partial(peer_hgrn2, compiled(peer_gates), peer("fla.ops.gla", "chunk_gla")),
        FLASH: lambda: lambda q, x, v, bound: flash(q, x, v),
    }
    return op_group([q, x, v, bound], v, ops)


def tuned(function: Op) -> Op:
    """Runs with the fastest of an op's schedules, if the table has another."""

    def run(*inputs: Tensor) -> Tensor:
        with use_backend("auto", tune=True):
            return function(*inputs)

    return run


def peer_gates(q: Tensor, x: Tensor, v: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Does the chain between projections and `chunk_gla` in their layer, in any layer but the first."""
    log_f = torch.logaddexp(bound.log(), torch.log1p(-bound) + F.logsigmoid(x))
    return F.silu(q), (1 - log_f.exp()).to(v), log_f


def peer_hgrn2(gates: Op, recurrence: Op, q: Tensor, x: Tensor, v: Tensor, bound: Tensor) -> Tensor:
    q, k, log_f = gates(q, x, v, bound)
    return recurrence(q, k, v, log_f)[0]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)


def compiled(function: Any) -> Any:
    torch._dynamo.reset()  # else a new shape may find the limit of recompilations reached
    return torch.compile(function, dynamic=False, backend=COMPILER[torch.cuda.is_available()])


def mixer_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    """Groups layers, projections and norm included, with a lower bound of 1/2."""
    B, T, H, K = shape
    dim = H * K
    (x,) = tensors(device, dtype, (B, T, dim))
    bound = torch.full((dim,), 0.5, device=device, requires_grad=True)
    mixer = our_mixer(dim, K, device, dtype)
    contenders = {
        OURS: lambda: layer_passes(mixer, lambda x: mixer(x, shared={"lower_bound": bound}), x, bound),
        OURS_COMPILED: lambda: layer_passes(mixer, partial(compiled(mixer), shared={"lower_bound": bound}), x, bound),
        PEER: lambda: peer_layer(dim, K, x, bound, lambda layer: layer),
        PEER_COMPILED: lambda: peer_layer(dim, K, x, bound, compiled),
    }
    flops = float(B * mixer.flops(T))
    return Group(contenders, flops={FORWARD: flops, BOTH: 3 * flops})


def our_mixer(dim: int, expand: int, device: torch.device, dtype: torch.dtype) -> Any:
    mixer = build_mixer("hgrn2", dim=dim, expand=expand, norm="rms", scale=expand**-0.5)
    return mixer.to(device, dtype)


def layer_passes(layer: nn.Module, function: Op, x: Tensor, bound: Tensor) -> Passes:
    inputs = [x, bound, *layer.parameters()]
    return passes(lambda x, *rest: function(x), inputs)


def peer_layer(dim: int, expand: int, x: Tensor, bound: Tensor, prepare: Callable[[Any], Any]) -> Passes:
    layer = peer("fla.layers.hgrn2", "HGRN2Attention")(hidden_size=dim, expand_ratio=expand, layer_idx=1)
    layer = layer.to(x.device, x.dtype)
    run = prepare(layer)
    return layer_passes(layer, lambda x: run(x, lower_bound=bound)[0], x, bound)


def hgrn2_step_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    """Groups steps of one token: the state is read and written, which is the floor.

    As in serving, a CUDA graph launches them. The GPU's own time remains, and a copy of the state shows its minimum.
    """
    B, _, H, K = shape
    q, x, v = tensors(device, dtype, *[shape] * 3)
    (state,) = tensors(device, torch.float32, (B, H, K, K))
    bound = torch.full((H, K), 0.5, device=device)

    def ours() -> Any:
        return hgrn2(q, x, v, bound, scale=K**-0.5, q_activation="silu", initial_state=state)

    def theirs() -> Passes:
        step = peer("fla.ops.gla", "fused_recurrent_gla")

        def run() -> Any:
            activated, k, log_f = peer_gates(q, x, v, bound)
            return step(activated, k, v, gk=log_f, initial_state=state, output_final_state=True)

        return inference(run)

    moved = 2.0 * state.numel() * state.element_size() + 4.0 * q.numel() * q.element_size()
    copy = torch.empty_like(state)
    contenders = {
        OURS: lambda: inference(ours),
        OURS_CAPTURED: lambda: captured(inference(ours), device),
        COPY_CAPTURED: lambda: captured(inference(lambda: copy.copy_(state)), device),
        PEER: theirs,
        PEER_CAPTURED: lambda: captured(theirs(), device),
    }
    return Group(contenders, (FORWARD,), {FORWARD: moved})


def mixer_step_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    """Groups steps of one token of a layer: the weights are read as well."""
    B, _, H, K = shape
    dim = H * K
    (x,) = tensors(device, dtype, (B, dim))
    bound = torch.full((dim,), 0.5, device=device)
    mixer = our_mixer(dim, K, device, dtype)
    state = mixer.init_state(B)

    def theirs() -> Passes:
        layer = peer("fla.layers.hgrn2", "HGRN2Attention")(hidden_size=dim, expand_ratio=K, layer_idx=1)
        layer = layer.to(device, dtype)
        cache = peer("fla.models.utils", "Cache")()
        cache.update(layer_idx=0, recurrent_state=x.new_zeros(1), offset=0)  # layer 0 wouldn't apply the bound
        return inference(lambda: layer(x[:, None], past_key_values=cache, use_cache=True, lower_bound=bound))

    weights = sum(p.numel() * p.element_size() for p in mixer.parameters())
    moved = 2.0 * 4 * B * H * K * K + weights + 2.0 * x.numel() * x.element_size()

    def ours() -> Passes:
        return inference(lambda: mixer.step(x, state, shared={"lower_bound": bound}))

    contenders = {OURS: ours, OURS_CAPTURED: lambda: captured(ours(), device), PEER: theirs}
    return Group(contenders, (FORWARD,), {FORWARD: moved})


def model_group(shape: Shape, depth: int, device: torch.device) -> Group:
    """Groups training steps of a language model.

    It has 340M parameters at 24 layers of 1024: fp32 weights, bf16 autocast, AdamW.
    """
    B, T, H, K = shape
    dim, hidden = H * K, 256 * -(-H * K * 8 // (3 * 256))
    ids = torch.randint(VOCABULARY, (B, T + 1), device=device)
    mixer = {"name": "hgrn2", "expand": K, "norm": "rms", "scale": K**-0.5}

    def ours(prepare: Callable[[Any], Any]) -> Passes:
        channels = {"hidden": hidden}
        model = LanguageModel(VOCABULARY, dim, depth, mixer, channel_mixer=channels, tie_embeddings=False).to(device)
        loss = prepare(model.loss)
        return training(model, lambda: loss(ids[:, :-1], ids[:, 1:]), device)

    def theirs(prepare: Callable[[Any], Any]) -> Passes:
        config = peer("fla.models", "HGRN2Config")(
            hidden_size=dim, num_hidden_layers=depth, expand_ratio=K, intermediate_size=hidden, vocab_size=VOCABULARY
        )
        model = peer("fla.models", "HGRN2ForCausalLM")(config).to(device)
        prepare(model)
        return training(model, lambda: model(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss, device)

    contenders = {
        OURS: lambda: ours(lambda loss: loss),
        OURS_COMPILED: lambda: ours(compiled),
        PEER: lambda: theirs(lambda model: model),
        PEER_COMPILED: lambda: theirs(lambda model: model.compile(dynamic=False)),
        PLUGGED: lambda: theirs(replace_hgrn2),
    }
    return Group(contenders, (BOTH,))


def training(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> Passes:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Passes(None, step)


def gla_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    q, k, v, logits = tensors(device, dtype, *[shape] * 4)
    log_f = F.logsigmoid(logits.detach() + 2).requires_grad_()
    ops: dict[str, Callable[[], Op]] = {
        OURS: lambda: partial(first, gated_linear_attention),
        PEER: lambda: partial(first, partial(peer("fla.ops.gla", "chunk_gla"), scale=1.0)),
    }
    return op_group([q, k, v, log_f], v, ops)


def head_gate_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    q, k, v = tensors(device, dtype, *[shape] * 3)
    log_f = F.logsigmoid(torch.randn(shape[:3], device=device) + 2).requires_grad_()
    ops: dict[str, Callable[[], Op]] = {
        OURS: lambda: lambda q, k, v, log_f: gated_linear_attention(q, k, v, log_f[..., None])[0],
        PEER: lambda: partial(first, partial(peer("fla.ops.simple_gla", "chunk_simple_gla"), scale=1.0)),
    }
    return op_group([q, k, v, log_f], v, ops)


def scan_group(shape: Shape, device: torch.device, dtype: torch.dtype) -> Group:
    B, T, H, K = shape
    x, logits = tensors(device, dtype, *[(B, T, H * K)] * 2)
    log_f = F.logsigmoid(logits.detach() + 2).requires_grad_()
    ops: dict[str, Callable[[], Op]] = {
        OURS: lambda: partial(first, gated_scan),
        f"{PEER}, chunk_hgrn": lambda: partial(first, peer("fla.ops.hgrn", "chunk_hgrn")),
        f"{PEER}, fused_recurrent_hgrn": lambda: partial(first, peer("fla.ops.hgrn", "fused_recurrent_hgrn")),
    }
    return op_group([x, log_f], x, ops)


def first(function: Op, *inputs: Tensor) -> Tensor:
    """Returns y, without the state."""
    return function(*inputs)[0]
