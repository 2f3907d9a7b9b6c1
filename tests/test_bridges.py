"""Two mixers, or a mixer and its paper, meet at bridges: there they must say the same.

The papers' equations are written out here a second time, one token after the other in fp64. They use nothing but a
mixer's `state_dict` and `config`, so ops and mixers can't share a mistake with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.kernels.gated_linear_attention import cases as gla_cases
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import cases as scan_cases
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import cases as hgrn2_cases
from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.kernels.softmax_attention import cases as attention_cases
from mixerzoo.kernels.softmax_attention import softmax_attention

from .conformance.zoo import CONFIGURATIONS, build, tokens
from .tolerances import assert_close

Weights = dict[str, Tensor]
Config = dict[str, Any]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def norm(p: Weights, kind: str, x: Tensor, name: str = "norm") -> Tensor:
    if kind in ("layer", "group"):
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * p.get(f"{name}.weight", 1) + p.get(f"{name}.bias", 0)


def short_conv(p: Weights, parts: list[Tensor], activation: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`y_t = sum_j w_j x_{t-3+j}`, w_3 for the token itself."""
    if "conv.weight" not in p:
        return parts
    x = torch.cat(parts, -1)
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for j in range(4):
            if t - 3 + j >= 0:
                y[t] += p["conv.weight"][:, j] * x[t - 3 + j]
    return list(activation(y).split([part.shape[-1] for part in parts], -1))


def outer_product_recurrence(q: Tensor, k: Tensor, v: Tensor, f: Tensor) -> Tensor:
    """`S_t = Diag(f_t) S_{t-1} + k_t v_t^T`, `y_t = q_t S_t` for one head: q, k, f [T,K], v [T,V]."""
    S, y = torch.zeros(k.shape[1], v.shape[1], dtype=k.dtype), []
    for t in range(len(q)):
        S = torch.diag(f[t]) @ S + torch.outer(k[t], v[t])
        y.append(q[t] @ S)
    return torch.stack(y)


def in_directions(c: Config, recurrence: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    y = recurrence(*inputs)
    return y + recurrence(*(x.flip(0) for x in inputs)).flip(0) if c["bidirectional"] else y


def heads(x: Tensor, number: int) -> tuple[Tensor, ...]:
    return x.chunk(number, -1)


def turned(x: Tensor, frequency: list[float], interleaved: bool) -> Tensor:
    """Multiplies pair j of token t, as a complex number, by e^{i t frequency_j}."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).mT
    z = torch.complex(pairs[..., 0], pairs[..., 1])
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * torch.tensor(frequency, dtype=x.dtype)
    z = z * torch.complex(angle.cos(), angle.sin())
    parts = torch.stack([z.real, z.imag], -1)
    return parts.flatten(-2) if interleaved else parts.mT.flatten(-2)


def paper_hgrn1(c: Config, p: Weights, x: Tensor) -> Tensor:
    """Follows arXiv:2311.04823, section 3: polar forget gate, tied input gate, output gate."""
    gate, value = short_conv(p, [linear(p, "f_proj", x), linear(p, "c_proj", x)], lambda y: y)
    gamma = c["lower_bound"] or 0.0
    f = gamma + (1 - gamma) * gate.sigmoid()
    value = silu(value)
    u = torch.complex(value[:, 0::2], value[:, 1::2]) if c["complex"] else value

    def recurrence(theta: Tensor | float, f: Tensor, u: Tensor) -> Tensor:
        h, states = torch.zeros_like(u[0]), []
        turn = torch.complex(theta.cos(), theta.sin()) if c["complex"] else 1.0
        for t in range(len(u)):
            h = f[t] * turn * h + (1 - f[t]) * u[t]
            states.append(h)
        return torch.stack(states)

    h = recurrence(p.get("theta", 0.0), f, u)
    if c["bidirectional"]:
        h = h + recurrence(p.get("theta_reverse", 0.0), f.flip(0), u.flip(0)).flip(0)
    if c["complex"]:
        h = torch.cat([h.real, h.imag], -1)
    if not c["output_gate"]:
        return linear(p, "o_proj", norm(p, c["norm"], h))
    gate = silu(linear(p, "g_proj", x))
    gated = norm(p, c["norm"], h * gate) if c["norm_order"] == "gate_norm" else norm(p, c["norm"], h) * gate
    return linear(p, "o_proj", gated)


def paper_hgrn2(c: Config, p: Weights, x: Tensor) -> Tensor:
    """Follows arXiv:2404.07904, section 3: the state is expanded by the outer product of (1 - f) and the input."""
    q, gate, i = short_conv(p, [linear(p, f"{name}_proj", x) for name in "qfi"], lambda y: y)
    activation = {"silu": silu, "sigmoid": torch.sigmoid, "none": lambda y: y}
    q, i = activation[c["q_activation"]](q), activation[c["v_activation"]](i)
    gamma = c["lower_bound"] or 0.0
    f = gamma + (1 - gamma) * gate.sigmoid()
    number = c["dim"] // c["expand"]
    parts = zip(*(heads(part, number) for part in (q, 1 - f, i, f)), strict=True)
    y = torch.cat([in_directions(c, outer_product_recurrence, *head) for head in parts], -1)
    return linear(p, "o_proj", norm(p, c["norm"], c["scale"] * y))


def paper_gla(c: Config, p: Weights, x: Tensor) -> Tensor:
    """Follows arXiv:2312.06635, section 4.4."""
    q, k, v = short_conv(p, [linear(p, f"{name}_proj", x) for name in "qkv"], silu)
    logits = x @ p["f_proj.0.weight"].T @ p["f_proj.1.weight"].T + p["f_proj.1.bias"]
    f = logits.sigmoid() ** (1 / c["gate_normalizer"])
    H, groups = c["num_heads"], c["num_kv_heads"] or c["num_heads"]
    q, (k, v, f) = heads(q, H), (heads(part, groups) for part in (k, v, f))
    outputs = []
    for h in range(H):
        g = h // (H // groups)
        y = in_directions(c, outer_product_recurrence, q[h] / math.sqrt(q[h].shape[1]), k[g], v[g], f[g])
        outputs.append(norm(p, c["norm"], y))
    y = torch.cat(outputs, -1)
    return linear(p, "o_proj", y * silu(linear(p, "g_proj", x)) if c["output_gate"] else y)


def paper_retnet(c: Config, p: Weights, x: Tensor) -> Tensor:
    """Follows arXiv:2307.08621, the parallel form of eq. 5: `(Q K^T * D) V` with `D_nm = gamma^(n-m)` for n >= m."""
    parts = short_conv(p, [linear(p, f"{name}_proj", x) for name in "qkv"], silu)
    outputs = []
    for h, (q, k, v) in enumerate(zip(*(heads(part, c["num_heads"]) for part in parts), strict=True)):
        K = q.shape[1]
        if c["rotary"] == "rope":
            q, k = (turned(part, [10000 ** (-2 * j / K) for j in range(K // 2)], True) for part in (q, k))
        if c["rotary"] == "xpos":
            q, k = (turned(part, [10000 ** (-j / (K / 2 - 1)) for j in range(K // 2)], True) for part in (q, k))
        distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
        decay = (1 - 2.0 ** (-5 - h)) ** distance.double().abs()
        both = c["bidirectional"]
        weight = decay * (1 + (distance == 0).double()) if both else torch.where(distance >= 0, decay, 0)
        outputs.append(norm(p, c["norm"], (q @ k.T * weight) @ v / math.sqrt(K)))
    y = torch.cat(outputs, -1)
    return linear(p, "o_proj", y * silu(linear(p, "g_proj", x)) if c["output_gate"] else y)


def paper_attention(c: Config, p: Weights, x: Tensor) -> Tensor:
    """Follows arXiv:1706.03762, section 3.2, with rotary positions (arXiv:2104.09864, eq. 15)."""
    H, groups = c["num_heads"], c["num_kv_heads"] or c["num_heads"]
    q, k, v = (heads(linear(p, f"{name}_proj", x), n) for name, n in (("q", H), ("k", groups), ("v", groups)))
    outputs = []
    for h in range(H):
        q_h, k_h, v_h = q[h], k[h // (H // groups)], v[h // (H // groups)]
        K = q_h.shape[1]
        if c["qk_norm"]:
            q_h, k_h = norm(p, "rms", q_h, "q_norm"), norm(p, "rms", k_h, "k_norm")
        if c["rotary"]:
            q_h, k_h = (turned(part, [10000 ** (-2 * j / K) for j in range(K // 2)], False) for part in (q_h, k_h))
        y = torch.zeros_like(q_h)
        for t in range(len(x)):
            reach = c["window"] or len(x)
            seen = [s for s in range(len(x)) if abs(t - s) < reach and (s <= t or c["bidirectional"])]
            weights = torch.stack([(q_h[t] @ k_h[s] / math.sqrt(K)).exp() for s in seen])
            y[t] = (weights / weights.sum()) @ v_h[seen]
        outputs.append(y)
    return linear(p, "o_proj", torch.cat(outputs, -1))


PAPERS = {
    "attention": paper_attention,
    "gla": paper_gla,
    "hgrn1": paper_hgrn1,
    "hgrn2": paper_hgrn2,
    "retnet": paper_retnet,
}
WITH_PAPER = [label for label, config in CONFIGURATIONS.items() if config["name"] in PAPERS]


@pytest.mark.parametrize("scale", [1, 20])
@pytest.mark.parametrize("label", WITH_PAPER)
def test_mixer_is_its_papers_equation(label: str, scale: int) -> None:
    mixer, x = build(CONFIGURATIONS[label]), tokens(2, 11)
    if mixer.config["name"] != "attention":
        x = scale * x  # saturates the gates; softmax alone would overflow the plain exponential of the paper
    weights = mixer.state_dict()
    paper = PAPERS[mixer.config["name"]]
    assert_close(mixer(x), torch.stack([paper(mixer.config, weights, row) for row in x]))


@pytest.mark.parametrize("cu_seqlens", [None, (0, 0, 20, 65)])
@pytest.mark.parametrize("decay", ["mild", "closed"])
def test_gated_linear_attention_with_one_key_channel_is_the_gated_scan(decay: str, cu_seqlens: tuple | None) -> None:
    """With K = 1, `S_t v = f_t S_{t-1} v + k_t v_t`: one scalar gate for all of v."""
    inputs = gla_cases.make_inputs(K=1, V=40, decay=decay, cu_seqlens=cu_seqlens)
    q, k, v, log_f, state = (inputs[name] for name in ("q", "k", "v", "log_f", "initial_state"))
    x = (k * v).flatten(2)
    h, last = gated_scan(
        x,
        log_f.expand_as(v).flatten(2),
        initial_state=state.flatten(1),
        cu_seqlens=inputs.get("cu_seqlens"),
    )
    expected = q * h.unflatten(-1, v.shape[2:]) * inputs["scale"], last.view_as(state)
    assert_close(gated_linear_attention(**inputs), expected)


@pytest.mark.parametrize("K", [2, 16])
def test_a_gate_per_head_is_the_same_gate_on_every_channel(K: int) -> None:
    inputs = gla_cases.make_inputs(K=K, gate_per_head=True)
    same = inputs | {"log_f": inputs["log_f"].expand_as(inputs["q"])}
    assert_close(gated_linear_attention(**inputs), gated_linear_attention(**same))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("K", [1, 3, 16])
def test_hgrn2_is_gated_linear_attention_with_tied_keys(K: int, gamma: float) -> None:
    inputs = hgrn2_cases.make_inputs(K=K, gamma=gamma)
    f = gamma + (1 - gamma) * inputs.pop("x").sigmoid()
    del inputs["lower_bound"]
    x = hgrn2_cases.make_inputs(K=K, gamma=gamma)
    assert_close(hgrn2(**x), gated_linear_attention(**inputs, k=1 - f, log_f=f.log()))


def test_hgrn2_with_expand_one_is_hgrn1s_real_scan() -> None:
    inputs = hgrn2_cases.make_inputs(H=5, K=1, V=1, gamma=0.5)
    f = (0.5 + 0.5 * inputs["x"].sigmoid()).squeeze(-1).flatten(2)
    h, state = gated_scan((1 - f) * inputs["v"].flatten(2), f.log(), initial_state=inputs["initial_state"].flatten(1))
    expected = inputs["q"] * h.unflatten(-1, (5, 1)), state.view_as(inputs["initial_state"])
    assert_close(hgrn2(**inputs), expected)


def test_a_gate_that_stays_open_is_a_cumulative_sum() -> None:
    inputs = scan_cases.make_inputs(T=130, decay="open")
    h, state = gated_scan(**inputs)
    expected = inputs["initial_state"][:, None] + inputs["x"].cumsum(1)
    assert_close((h, state), (expected, expected[:, -1]))


@pytest.mark.parametrize("gate_per_head", [False, True])
@pytest.mark.parametrize(("K", "V"), [(3, 5), (6, 9)])
def test_open_gates_are_causal_linear_attention(K: int, V: int, gate_per_head: bool) -> None:
    inputs = gla_cases.make_inputs(T=130, K=K, V=V, decay="open", initial_state=False, gate_per_head=gate_per_head)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    y = inputs["scale"] * (q @ k.mT).tril() @ v
    assert_close(gated_linear_attention(**inputs), (y.transpose(1, 2), k.mT @ v))


def test_a_gate_that_turns_without_decay_keeps_the_modulus() -> None:
    inputs = scan_cases.make_inputs(complex=True, decay="open")
    inputs["x"] = torch.zeros_like(inputs["x"])
    h, _ = gated_scan(**inputs)
    assert_close(h.abs(), inputs["initial_state"].abs()[:, None].expand_as(h))


def test_a_closed_gate_forgets_everything() -> None:
    inputs = scan_cases.make_inputs()
    inputs["log_f"] = torch.full_like(inputs["log_f"], float("-inf"))
    assert_close(gated_scan(**inputs), (inputs["x"], inputs["x"][:, -1]))


@pytest.mark.parametrize("case", ["T=65", "all-see-all", "grouped", "window", "window-both-ways", "cache", "packed"])
def test_attention_is_a_masked_softmax(case: str) -> None:
    inputs = attention_cases.make_inputs(**attention_cases.CASES[case])
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    T, S = q.shape[2], k.shape[2]
    query = inputs.get("query_position", torch.arange(T)[None])[:, None, :, None]
    key = inputs.get("key_position", torch.arange(S)[None])[:, None, None, :]
    hidden = (key < 0) | (inputs["causal"] & (key > query))
    if inputs["window"]:
        hidden = hidden | ((query - key).abs() >= inputs["window"])
    if "cu_seqlens" in inputs:
        document = (torch.arange(T)[:, None] >= inputs["cu_seqlens"][1:]).sum(1)
        hidden = hidden | (document[:, None] != document)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(hidden, float("-inf"))
    assert_close(softmax_attention(**inputs), (scores.softmax(-1) @ v).transpose(1, 2))


def test_attention_is_torchs() -> None:
    inputs = attention_cases.make_inputs(T=130)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    assert_close(softmax_attention(**inputs), F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2))
