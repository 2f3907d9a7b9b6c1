"""A spec's formulas compute what they say, and nothing that has weights inside a mixer goes uncounted."""

from __future__ import annotations

import pytest
from torch import nn

from mixerzoo.mixers.parts import MixerSpec, ShortConv
from mixerzoo.mixers.parts.formulas import evaluate, products_per_token


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("2*T*params + 5*T*D*e", 2 * 10 * 7 + 5 * 10 * 4 * 3),
        ("T*D**2 - D//3", 10 * 16 - 1),
        ("T/4", 2),
        ("min(T, W)*D", 40),
        ("max(D, e)", 4),
        ("2*D if wide else D", 4),
    ],
)
def test_a_formula_is_what_it_computes(formula: str, value: int) -> None:
    letters = {"T": 10, "D": 4, "e": 3, "params": 7, "W": float("inf"), "wide": False}
    assert evaluate(formula, letters) == value


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("2*T*E", "the formula '2.T.E' has the letter 'E'; known: D, T"),
        ("2 T D", "the formula '2 T D' can't be read: invalid syntax.*; remedy: write"),
        ("T.bit_length()", "the formula .* may hold numbers, letters, .* got 'T.bit_length\\(\\)'"),
        ("__import__('os')", "the formula .* may hold numbers, letters"),
        ("T if T > 3 else D", "the formula .* may hold numbers, letters, .* got 'T > 3'"),
    ],
)
def test_mistakes_in_a_formula_are_named(formula: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(formula, {"T": 2, "D": 3})


def test_maps_and_windows_are_counted_and_norms_are_not() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), ShortConv(6, 3, bias=True), nn.Dropout())
    assert products_per_token(module) == 4 * 6 + 6 * 3


def test_a_module_of_another_kind_says_what_it_costs_or_is_an_error() -> None:
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(nn.Linear(5, 1).weight.detach())

    with pytest.raises(ValueError, match="the FLOPs of a Diagonal inside a mixer aren't known; remedy: an attribute"):
        products_per_token(nn.Sequential(Diagonal()))
    with pytest.raises(ValueError, match="the FLOPs of a LSTM inside"):
        products_per_token(nn.Sequential(nn.LSTM(3, 3)))
    Diagonal.products_per_token = 5
    assert products_per_token(nn.Sequential(Diagonal(), nn.Linear(2, 2))) == 5 + 4


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"family": "magic"}, "unknown family 'magic'; known: attention, matrix state"),
        ({"capabilities": frozenset({"psychic"})}, r"unknown capabilities \['psychic'\]; known: bidirectional"),
        ({"cannot": frozenset({"fly"})}, r"unknown limits \['fly'\]; known: backends"),
        ({"capabilities": frozenset({"plane"})}, "a mixer is causal, bidirectional or both, got capabilities"),
    ],
)
def test_a_spec_refuses_what_nobody_knows(facts: dict, message: str) -> None:
    given = {"family": "attention", "capabilities": frozenset({"causal"}), **facts}
    with pytest.raises(ValueError, match=message):
        MixerSpec(paper="p", equation="e", ops=(), state="D", flops="T", **given)
