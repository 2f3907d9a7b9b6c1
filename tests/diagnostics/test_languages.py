"""Formal languages agree with Python's own arithmetic and automata, and are drawn in the stated lengths."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from mixerzoo.tasks import BackboneConfig, build_task
from mixerzoo.tasks.diagnostics.languages import (
    BracketedArithmetic,
    EvenPairs,
    LengthExtrapolation,
    ModularArithmetic,
    Parity,
)
from tests.tolerances import assert_statistic

LANGUAGES = [Parity, EvenPairs, ModularArithmetic, BracketedArithmetic]


def solve(language: type[LengthExtrapolation], word: str) -> int:
    if language is Parity:
        return word.count("1") % 2
    if language is EvenPairs:
        return sum(a != b for a, b in pairwise(word)) % 2
    return eval(word) % 5


def words(task: LengthExtrapolation, split: str, count: int, batch_size: int = 50) -> list[tuple[str, int]]:
    found = []
    for batch in islice(task.batches(split, seed=0, batch_size=batch_size), count):
        assert (batch["inputs"][~batch["mask"]] == 0).all()
        for ids, mask, label in zip(batch["inputs"], batch["mask"], batch["labels"].tolist(), strict=True):
            found.append(("".join(task.symbols[token - 1] for token in ids[mask].tolist()), label))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", ["train", "trained", "valid", "test"])
def test_classes_agree_with_an_independent_solver(language, split) -> None:
    for word, label in words(language(valid_words=20), split, 8):
        assert solve(language, word) == label


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_short_length_gives_its_words(language) -> None:
    task = language()
    rng = np.random.default_rng(0)
    for length in range(1, 30):
        word, label = task.draw(rng, task.nearest(length))
        assert len(word) == task.nearest(length) <= length
        assert solve(language, word) == label


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_is_short_and_the_test_is_long(language) -> None:
    task = language(valid_words=10)
    trained = {len(word) for split in ("train", "trained") for word, _ in words(task, split, 40)}
    assert min(trained) >= 3
    assert 39 <= max(trained) <= 40
    valid, test = (words(task, split, 10**6, batch_size=10) for split in ("valid", "test"))
    lengths = [len(word) for word, _ in valid]
    assert (min(lengths), max(lengths), len(set(lengths))) == (41, task.nearest(256), 8)
    assert {lengths.count(length) for length in lengths} == {10}
    assert lengths == [len(word) for word, _ in test]
    assert valid != test
    assert {len(word) for word, _ in words(task, "length-57", 9)} == {57}


def test_lengths_of_training_words_are_uniform() -> None:
    lengths = [len(word) for word, _ in words(Parity(), "train", 100, batch_size=100)]
    for length in range(3, 41):
        assert_statistic(f"length {length}", lengths.count(length) / 10_000, 1 / 38, deviation=0.16, count=10_000)


@pytest.mark.parametrize("language", [Parity, EvenPairs])
def test_two_classes_are_balanced(language) -> None:
    labels = [label for _, label in words(language(), "train", 50, batch_size=100)]
    assert_statistic("ones", sum(labels) / len(labels), 0.5, deviation=0.5, count=len(labels))


def test_brackets_are_cut_anywhere() -> None:
    """`(A+B)` of 11 symbols has a first operand of 1 to 7, each as often."""
    task, rng = BracketedArithmetic(), np.random.default_rng(0)
    cuts = []
    for _ in range(3000):
        word, _ = task.draw(rng, 11)
        depth, place = 0, 1
        while depth or word[place] not in "+-*" or place == 1:  # a minus may begin the first operand
            depth += {"(": 1, ")": -1}.get(word[place], 0)
            place += 1
        cuts.append(place - 1)
    for length in range(1, 8):
        assert_statistic(f"cut {length}", cuts.count(length) / 3000, 1 / 7, deviation=0.35, count=3000)


class Oracle(torch.nn.Module):
    """Knows parity, but only of words up to 100 symbols; longer ones it gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        odd = (ids == 2).sum(1) % 2
        answer = torch.where(mask.sum(1) <= 100, odd, 1 - odd)
        return torch.nn.functional.one_hot(answer, 2).float()


def test_the_curve_shows_where_a_model_ends() -> None:
    task = Parity(valid_words=12)
    curve = task.accuracy_by_length(Oracle())
    assert curve == {20: 1, 40: 1, 64: 1, 128: 0, 256: 0}
    measured = task.measure(Oracle(), BackboneConfig())
    assert measured.values == {f"length {length}": accuracy for length, accuracy in curve.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_curve_begins_with_words_of_one_symbol(language) -> None:
    task = language(shortest=1, longest=1, test_longest=3, valid_words=2)
    assert set(task.accuracy_by_length(task.build_model(BackboneConfig("gla", dim=32, depth=1)))) <= {1, 2, 3}


@pytest.mark.parametrize("language", LANGUAGES)
def test_models_are_causal_and_read_the_last_symbol(language) -> None:
    task = language()
    model = task.build_model(BackboneConfig("gla", dim=32, depth=1)).eval()
    batch = next(task.batches("train", seed=0, batch_size=4))
    longer = torch.nn.functional.pad(batch["inputs"], (0, 7), value=1)
    mask = torch.nn.functional.pad(batch["mask"], (0, 7))
    assert torch.equal(model(longer, mask=mask).argmax(-1), model(batch["inputs"], mask=batch["mask"]).argmax(-1))
    assert model(batch["inputs"], mask=batch["mask"]).shape == (4, task.classes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"longest": 256}, "shortest <= task.longest < task.test_longest must hold, got 3, 256 and 256"),
        ({"shortest": 0}, "got 0, 40 and 256"),
        ({"valid_words": 0}, "task.valid_words must be at least 1, got 0"),
    ],
)
def test_mistakes_are_explained(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_task({"name": "diagnostics/parity", **settings})
    with pytest.raises(ValueError, match="unknown split 'dev'; known: train, valid, test, trained, length-N"):
        next(Parity().batches("dev", seed=0, batch_size=1))
