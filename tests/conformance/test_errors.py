"""Errors say what is wrong, what came, what is allowed and what helps: their text is tested."""

from __future__ import annotations

import re

import pytest
import torch

from mixerzoo import build_mixer, list_mixers, mixer_info, use_backend
from mixerzoo.blocks.channel_mixers import GLU
from mixerzoo.blocks.stack import Stack
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.kernels.softmax_attention import softmax_attention
from mixerzoo.mixers.parts.lower_bounds import LowerBounds

from .zoo import DIM, build, each_mixer, tokens

X = torch.zeros(2, 5, 3)
Q = torch.zeros(2, 5, 1, 4)

CONFIGURATION_ERRORS = [
    (lambda: build_mixer("hgrn3"), "unknown mixer 'hgrn3'; did you mean hgrn"),
    (lambda: build_mixer("hgrn3"), f"known: {', '.join(list_mixers())}"),
    (lambda: mixer_info("retnt"), "unknown mixer 'retnt'; did you mean retnet"),
    (lambda: build_mixer({"dim": 8}), "a mixer configuration needs a 'name', got ['dim']"),
    (lambda: build_mixer("hgrn2", expnd=8), "unknown keyword of mixer 'hgrn2': 'expnd'; did you mean expand?"),
    (lambda: build_mixer("hgrn2", num_heads=8), "known: bias, bidirectional, dim, expand"),
    (lambda: build_mixer("attention", short_conv=4), "unknown keyword of mixer 'attention': 'short_conv'"),
    (lambda: build_mixer("hgrn1", dim=0), "dim must be at least 1, got 0"),
    (lambda: build_mixer("hgrn2", dim=16, expand=3), "expand must divide dim=16, got 3"),
    (lambda: build_mixer("hgrn2", dim=1024, expand=512), "expand must be at most 256, got 512"),
    (lambda: build_mixer("hgrn2", dim=16, expand=0), "expand must divide dim=16, got 0"),
    (
        lambda: build_mixer("hgrn2", q_activation="relu"),
        "unknown q_activation 'relu'; known: 'none', 'silu'",
    ),
    (lambda: build_mixer("hgrn2", lower_bound=1.0), "lower_bound must lie in [0, 1), got 1.0"),
    (lambda: build_mixer("hgrn1", lower_bound=-0.1), "lower_bound must lie in [0, 1), got -0.1"),
    (lambda: build_mixer("hgrn1", norm_order="before"), "unknown norm_order 'before'; known: 'norm_gate', 'gate_norm'"),
    (lambda: build_mixer("hgrn1", norm="batch"), "unknown norm 'batch'; known: 'layer', 'rms', 'srms', 'group'"),
    (lambda: build_mixer("gla", short_conv=-1), "short_conv must be a width of at least 1, or 0 for none, got -1"),
    (lambda: build_mixer("gla", short_conv=2.5), "short_conv must be a width of at least 1, or 0 for none, got 2.5"),
    (lambda: build_mixer("gla", dim=16, num_heads=3), "expand_k * dim must be a positive multiple of num_heads=3"),
    (lambda: build_mixer("gla", dim=16, num_kv_heads=3), "num_kv_heads must divide num_heads=4, got 3"),
    (lambda: build_mixer("retnet", dim=16, num_heads=16), "rotary='xpos' needs an even key width per head, got 1"),
    (lambda: build_mixer("retnet", rotary="alibi"), "unknown rotary 'alibi'; known: 'xpos', 'rope', 'none'"),
    (lambda: build_mixer("attention", dim=16, num_heads=3), "num_heads must divide dim=16, got 3"),
    (lambda: build_mixer("attention", dim=16, num_heads=16), "rotary positions need an even head width"),
    (lambda: build_mixer("attention", window=0), "window must be at least 1, got 0; remedy: None"),
    (lambda: Stack(DIM, 0, "hgrn1"), "a stack needs depth >= 1 and at least one mixer, got depth=0"),
    (lambda: Stack(DIM, 1, []), "a stack needs depth >= 1 and at least one mixer"),
    (lambda: Stack(DIM, 1, "hgrn3"), "unknown mixer 'hgrn3'"),
    (lambda: Stack(DIM, 1, {"name": "hgrn1", "dim": 8}), "the stack has dim=16, got a mixer with dim=8"),
    (
        lambda: Stack(DIM, 1, {"name": "hgrn1", "bidirectional": True}),
        "the stack has bidirectional=False, got a mixer with bidirectional=True; remedy: leave it out",
    ),
    (
        lambda: Stack(DIM, 1, "hgrn1", channel_mixer={"multipl": 2}),
        "unknown keyword of channel_mixer 'multipl'; did you mean",
    ),
    (lambda: Stack(DIM, 1, "hgrn1", norm="power"), "unknown norm 'power'"),
    (lambda: Stack(DIM, 1, "hgrn1", lower_bounds="skip"), "unknown lower bound convention 'skip'; known: 'skip_first'"),
    (lambda: LowerBounds(2, 3, "last"), "unknown lower bound convention 'last'"),
    (lambda: GLU(DIM, activation="relu"), "unknown activation 'relu'"),
    (lambda: GLU(DIM, multiplier=0), "the hidden width must be at least 1, got 0"),
]
OP_ERRORS = [
    (lambda: gated_scan(X[0], X), "x must be [B,T,D] with every size at least 1, got (5, 3)"),
    (lambda: gated_scan(X, X[:, :4]), "log_f must be [B,T,D]=(2, 5, 3), got (2, 4, 3)"),
    (lambda: gated_scan(X, X, X[0, 0]), "x must be complex exactly when theta is given"),
    (lambda: gated_scan(X.cfloat(), X), "x must be complex exactly when theta is given"),
    (lambda: gated_scan(X.cfloat(), X, X[0, 0, :2]), "theta must be [D]=(3,) or [B,T,D]=(2, 5, 3), got (2,)"),
    (lambda: gated_scan(X, X, initial_state=X[:, 0, :2]), "initial_state must be [B,D]=(2, 3), got (2, 2)"),
    (lambda: gated_scan(X, X, initial_state=X[:, 0], direction="both"), "initial_state must be [2,B,D]=(2, 2, 3)"),
    (lambda: gated_scan(X, X, in_place=True), "in_place=True needs an initial_state to write the final one into"),
    (
        lambda: gated_scan(X, X, initial_state=X[:, 0].bfloat16(), in_place=True),
        "in_place=True needs an initial_state in torch.float32, got torch.bfloat16",
    ),
    (lambda: gated_scan(X, X, initial_state=X[:, 0], in_place=True), "remedy: torch.no_grad(), or in_place=False"),
    (lambda: gated_scan(X, X, direction="left"), "unknown direction 'left'; known: causal, reverse, both"),
    (lambda: gated_scan(X, X, cu_seqlens=torch.tensor([0, 5])), "cu_seqlens needs one packed row, B=1, got B=2"),
    (
        lambda: gated_scan(X[:1], X[:1], cu_seqlens=torch.tensor([0, 4])),
        "cu_seqlens must rise from 0 to T=5, got [0, 4]",
    ),
    (lambda: gated_scan(X[:1], X[:1], cu_seqlens=torch.tensor([0, 4, 3, 5])), "cu_seqlens must rise from 0 to T=5"),
    (lambda: gated_scan(X[:1], X[:1], cu_seqlens=torch.tensor([0.0, 5.0])), "cu_seqlens must be integers [N+1]"),
    (lambda: gated_linear_attention(X, X, X, X), "q, k and v must be [B,T,H,K], [B,T,H,K] and [B,T,H,V]"),
    (
        lambda: gated_linear_attention(*(Q.expand(2, 5, h, 4) for h in (1, 2, 3, 3))),
        "the 2 heads of k must divide the 3 heads that share them",
    ),
    (
        lambda: gated_linear_attention(*(Q.expand(2, 5, h, 4) for h in (3, 2, 2, 2))),
        "the 2 heads of the state must divide the 3 heads of q",
    ),
    (lambda: gated_scan(X, X, valid=X[..., 0]), "valid must be bool [B,T]=(2, 5), got torch.float32 (2, 5)"),
    (
        lambda: gated_scan(X[:1], X[:1], valid=X[:1, :, 0] > 0, cu_seqlens=torch.tensor([0, 5])),
        "valid and cu_seqlens exclude each other; remedy: leave padding out of the packed row",
    ),
    (lambda: gated_linear_attention(Q, Q[..., :3], Q, Q), "k must be [B,T,H,K]=(2, 5, 1, 4), got (2, 5, 1, 3)"),
    (lambda: gated_linear_attention(Q, Q, Q[:1], Q), "v must be [B,T,H,V]=(2, 5, 1, 4), got (1, 5, 1, 4)"),
    (lambda: gated_linear_attention(Q, Q, Q, Q[..., :2]), "log_f must be [B,T,H,K]=(2, 5, 1, 4) or [B,T,H,1]"),
    (lambda: gated_linear_attention(Q, Q, Q, Q, initial_state=Q), "initial_state must be [B,H,K,V]=(2, 1, 4, 4)"),
    (lambda: hgrn2(Q, Q[:, :4], Q), "logits must be [B,T,H,K]=(2, 5, 1, 4), got (2, 4, 1, 4)"),
    (lambda: hgrn2(Q, Q, Q, 1.0), "lower_bound must lie in [0, 1), got 1.0"),
    (lambda: hgrn2(Q, Q, Q, torch.zeros(3)), "lower_bound must broadcast to [H,K]=(1, 4), got (3,)"),
    (lambda: softmax_attention(X, X, X), "q, k, v must be [B,T,H,K], [B,S,G,K], [B,S,G,V]"),
    (lambda: softmax_attention(Q, Q[:, :4], Q), "v must be [B,S,G,V]=(2, 4, 1, 4), got (2, 5, 1, 4)"),
    (lambda: softmax_attention(Q, Q[:, :4], Q[:, :4]), "q and k have T=5 and S=4; remedy: give query_position"),
    (lambda: softmax_attention(Q, Q, Q, window=0), "window must be at least 1, got 0"),
    (
        lambda: softmax_attention(Q, Q, Q, query_position=torch.zeros(2, 5)),
        "query_position and key_position go together",
    ),
    (
        lambda: softmax_attention(Q.expand(2, 5, 3, 4), Q.expand(2, 5, 2, 4), Q.expand(2, 5, 2, 4)),
        "the 2 kv heads must divide the 3 query heads",
    ),
]


def raises(text: str):
    return pytest.raises(ValueError, match=re.escape(text))


@pytest.mark.parametrize(
    ("call", "text"), [pytest.param(*error, id=error[1]) for error in CONFIGURATION_ERRORS + OP_ERRORS]
)
def test_mistakes_are_named(call, text: str) -> None:
    with raises(text):
        call()


@each_mixer("causal", needs=("padding", "packing"), only="plain")
def test_wrong_inputs_are_named(config: dict) -> None:
    mixer, x = build(config), tokens(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    with raises(f"x must be [B,T,D] with B, T >= 1 and D={DIM}, got (2, 5, 15)"):
        mixer(x[..., :-1])
    with raises(f"x must be [B,T,D] with B, T >= 1 and D={DIM}, got (2, 0, {DIM})"):
        mixer(x[:, :0])
    with raises(f"x must be [B,T,D] with B, T >= 1 and D={DIM}, got (5, {DIM})"):
        mixer(x[0])
    with raises("mask must be bool [B,T]=(2, 5), True = token, got torch.float32 (2, 5)"):
        mixer(x, mask=mask.float())
    with raises("mask must be bool [B,T]=(2, 5), True = token, got torch.bool (2, 4)"):
        mixer(x, mask=mask[:, :4])
    with raises("mask and cu_seqlens exclude each other"):
        mixer(x[:1], mask=mask[:1], cu_seqlens=torch.tensor([0, 5]))
    with raises("cu_seqlens needs one packed row, B=1, got B=2"):
        mixer(x, cu_seqlens=torch.tensor([0, 5]))
    with raises("cu_seqlens must rise from 0 to T=5, got [0, 6]"):
        mixer(x[:1], cu_seqlens=torch.tensor([0, 6]))
    with raises("x_t must be [B,D], got (2, 5, 16); remedy: prefill takes [B,T,D]"):
        mixer.step(x, mixer.init_state(2))
    with raises("the state is for 3 sequences, got x with B=2"):
        mixer.prefill(x, mixer.init_state(3))


@each_mixer("bidirectional", only="plain")
def test_a_bidirectional_mixer_has_no_state(config: dict) -> None:
    mixer, x = build(config), tokens(2, 5)
    for method, call in (
        ("init_state", lambda: mixer.init_state(2)),
        ("prefill", lambda: mixer.prefill(x)),
        ("prefill", lambda: mixer.step(x[:, 0], None)),
    ):
        remedy = "bidirectional=False" if "causal" in mixer.spec.capabilities else "a causal mixer"
        with raises(f"{method} needs a causal mixer, this one has bidirectional=True; remedy: {remedy}"):
            call()


def test_a_full_cache_is_named() -> None:
    mixer, x = build_mixer("attention", dim=DIM, num_heads=2), tokens(2, 5, torch.float32)
    state = mixer.prefill(x, mixer.init_state(2, max_length=5)).state
    with raises("the cache holds max_length=5 tokens, got 6; remedy: "):
        mixer.step(x[:, 0], state)


@each_mixer(needs=("backends", "length"), only="plain")
def test_an_unknown_backend_is_named(config: dict) -> None:
    with raises("unknown backend 'cuda'; known: reference, torch, triton, fla, auto"), use_backend("cuda"):
        build(config)(tokens(2, 5))


@each_mixer(needs=("backends", "length"), only="plain")
def test_a_backend_that_cannot_run_is_never_replaced(config: dict) -> None:
    mixer, x = build(config), tokens(2, 5)
    reasons = "backend 'fla' can't run .* here. reference: can run; torch: can run; triton: .+; fla: (?!can run)"
    with pytest.raises(ValueError, match=reasons), use_backend("fla"):
        mixer(x)
