"""The token tasks agree with solvers that read from left to right and share nothing with the generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixerzoo.tasks import BackboneConfig, build_task
from mixerzoo.tasks.diagnostics.memory import Compression, Memorization, SelectiveCopy
from mixerzoo.tasks.diagnostics.mqar import MQAR
from mixerzoo.tasks.diagnostics.recall import FuzzyRecall, InContextRecall, Induction, NoisyRecall
from mixerzoo.tasks.models.language_model import IGNORED
from tests.tolerances import assert_close, assert_statistic

TASKS = [
    Induction(length=20, vocab_size=5),
    Induction(length=4),
    InContextRecall(length=24, vocab_size=6),
    InContextRecall(length=4, vocab_size=8),
    NoisyRecall(length=40, vocab_size=8, noise_vocab_size=3),
    FuzzyRecall(length=60, vocab_size=6, pairs=4),
    FuzzyRecall(length=12, vocab_size=4, pairs=1),
    SelectiveCopy(length=24, num_copy=5),
    SelectiveCopy(length=11, num_copy=5),
    Memorization(length=12, vocab_size=10),
    Compression(length=9, vocab_size=4),
]


def solve_induction(task: Induction, tokens: list[int]) -> list[int]:
    first = tokens.index(task.vocab_size)
    assert tokens.count(task.vocab_size) == 2
    assert tokens[-1] == task.vocab_size
    return [*[IGNORED] * (len(tokens) - 1), tokens[first + 1]]


def solve_recall(task: InContextRecall, tokens: list[int]) -> list[int]:
    """Answers a key with what stood after it last time; values and noise ask nothing."""
    value_of: dict[int, int] = {}
    labels = [IGNORED] * len(tokens)
    for place, token in enumerate(tokens):
        if token < task.vocab_size // 2:
            if token in value_of:
                labels[place] = value_of[token]
            value_of[token] = tokens[place + 1]
    return labels


def solve_fuzzy(task: FuzzyRecall, tokens: list[int]) -> list[int]:
    """Splits a row into runs of keys' and of values' symbols; a known run of keys asks for the run after it."""
    half, labels = task.vocab_size // 2, [IGNORED] * len(tokens)
    kinds = ["key" if token < half else "value" if token < task.vocab_size else "padding" for token in tokens]
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    place = 0
    while place < len(tokens):
        if kinds[place] == "padding":
            place += 1
            continue
        start = place
        while place < len(tokens) and kinds[place] == "key":
            place += 1
        key = tuple(tokens[start:place])
        assert 1 <= len(key) <= task.longest
        middle = place
        while place < len(tokens) and kinds[place] == "value":
            place += 1
        value = tuple(tokens[middle:place])
        if key in known:
            for index, symbol in enumerate(known[key]):
                labels[middle - 1 + index] = symbol
            assert place == len(tokens) or value == known[key]
        known.setdefault(key, value)
    return labels


def solve_copy(task: SelectiveCopy, tokens: list[int]) -> list[int]:
    bar = tokens.index(task.vocab_size - 1)
    kept = [token for token in tokens[:bar] if token != task.vocab_size - 2]
    assert len(kept) == task.num_copy
    assert set(tokens[bar + 1 :]) == {task.vocab_size - 2}
    return [*[IGNORED] * (bar + 1), *kept]


def solve_memorization(task: Memorization, tokens: list[int]) -> list[int]:
    answers = [IGNORED] * len(tokens)
    for place in range(1, len(tokens), 2):
        assert tokens[place] == task.vocab_size
        answers[place] = KNOWN_MAP[tokens[place - 1]]
    return answers


# What the first thousand sequences of seed 0 teach of the map; every other sequence must agree.
KNOWN_MAP = {
    key: value
    for tokens, labels in zip(
        *(part.tolist() for part in Memorization(length=12, vocab_size=10).generate(np.random.default_rng(0), 1000)),
        strict=True,
    )
    for key, value in zip(tokens[0::2], labels[1::2], strict=True)
}


def solve_compression(task: Compression, tokens: list[int]) -> list[int]:
    assert tokens[-1] == task.vocab_size
    return [*tokens[:-1], IGNORED]


SOLVERS = {
    Induction: solve_induction,
    InContextRecall: solve_recall,
    NoisyRecall: solve_recall,
    FuzzyRecall: solve_fuzzy,
    SelectiveCopy: solve_copy,
    Memorization: solve_memorization,
    Compression: solve_compression,
}


TOKEN_TASKS = ["mqar", *(task.name for task in SOLVERS)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.length}")
def test_labels_agree_with_a_solver_that_reads_token_by_token(task) -> None:
    tokens, labels = task.generate(np.random.default_rng(3), 300)
    assert tokens.shape == labels.shape == (300, task.length)
    assert tokens.min() >= 0
    assert tokens.max() < task.model_vocabulary
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        assert SOLVERS[type(task)](task, row) == wanted
        assert any(label != IGNORED for label in wanted)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.length}")
def test_splits_are_fixed_and_share_no_random_stream(task) -> None:
    def inputs(split: str, batch_size: int) -> torch.Tensor:
        return torch.cat([batch["inputs"] for batch in task.batches(split, seed=0, batch_size=batch_size)])

    assert len(inputs("valid", 64)) == task.valid_sequences
    assert torch.equal(inputs("valid", 64), inputs("valid", 100))
    assert not torch.equal(inputs("valid", 64), inputs("test", 64))
    first = [next(task.batches("train", seed=seed, batch_size=512))["inputs"] for seed in (1, 1, 2)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    with pytest.raises(ValueError, match="seed must be from 0 to"):
        next(task.batches("train", seed=2**31, batch_size=1))


def test_the_trigger_stands_anywhere() -> None:
    tokens, _ = Induction(length=12).generate(np.random.default_rng(0), 20_000)
    places = np.bincount((tokens == 16).argmax(1), minlength=12) / 20_000
    assert not places[10:].any()
    for place in range(10):
        assert_statistic(f"place {place}", places[place], 0.1, deviation=0.3, count=20_000)


def test_blanks_go_before_every_token_equally_and_none_before_the_bar() -> None:
    """MAD's way is the comparison: numpy.insert at random places among the tokens."""
    task = SelectiveCopy(length=31, num_copy=5, vocab_size=6)
    tokens, _ = task.generate(np.random.default_rng(0), 5000)
    context = tokens[:, :25]
    assert (context[:, -1] != 4).all()
    places = np.nonzero(context != 4)[1].reshape(5000, 5)
    blanks = np.diff(places, axis=1, prepend=-1) - 1
    assert (blanks.sum(1) == 20).all()
    for token in range(5):  # 20 blanks, each with one chance in five
        assert_statistic("blanks", blanks[:, token].mean(), 4.0, deviation=(20 * 0.2 * 0.8) ** 0.5, count=5000)


def test_noise_takes_a_fifth_of_the_pairs() -> None:
    task = NoisyRecall(length=128)
    tokens, _ = task.generate(np.random.default_rng(0), 500)
    noisy = (tokens[:, 2:-2:2] >= task.vocab_size).mean()
    assert_statistic("noise", noisy, 0.2, deviation=0.4, count=500 * 62)


def test_values_of_recall_are_independent_of_keys_and_change_between_sequences() -> None:
    tokens, _ = InContextRecall(length=32, vocab_size=8).generate(np.random.default_rng(0), 8000)
    first = np.histogram2d(tokens[:, 0], tokens[:, 1], bins=[range(5), range(4, 9)])[0] / 8000
    for share in first.flat:
        assert_statistic("pair", share, 1 / 16, deviation=(1 / 16 * 15 / 16) ** 0.5, count=8000)


def test_the_map_of_memorization_is_one_for_all_seeds() -> None:
    task = Memorization()
    assert (task.value_of == Memorization().value_of).all()
    assert set(KNOWN_MAP) == set(range(5))
    assert len(set(Memorization().value_of.tolist())) > 60


def test_compression_decodes_from_the_last_vector_alone() -> None:
    """The decoder's answer at one place changes with any token, and only through the last output of the stack."""
    task = Compression(length=6, vocab_size=5)
    model = task.build_model(BackboneConfig("gla", dim=32, depth=1))
    tokens = torch.tensor(task.generate(np.random.default_rng(0), 2)[0])
    summary = model.stack(model.embedding(tokens))[:, -1]
    place = model.place[2].expand(2, -1)
    assert_close(model(tokens)[:, 2], model.decoder(torch.cat([summary, place], -1)))


def test_mqar_has_a_second_name() -> None:
    assert build_task("diagnostics/mqar") == build_task("mqar") == MQAR()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        *(({"name": name, "valid_sequences": 0}, "valid_sequences must be at least 1, got 0") for name in TOKEN_TASKS),
        ({"name": "mqar", "num_pairs": 0}, "task.num_pairs must be at least 1, got 0"),
        ({"name": "diagnostics/induction", "length": 3}, "task.length must be at least 4"),
        ({"name": "diagnostics/in-context-recall", "length": 9}, "must be even and at least 2 and 4, got 16 and 9"),
        ({"name": "diagnostics/in-context-recall", "noise": 0.5}, "above 0 just if task.noise_vocab_size is"),
        ({"name": "diagnostics/fuzzy-recall", "length": 11}, r"task.length must be at least 4 \* longest = 12, got 11"),
        ({"name": "diagnostics/fuzzy-recall", "vocab_size": 5}, "an even vocab_size >= 4"),
        ({"name": "diagnostics/selective-copy", "num_copy": 32}, r"from 1 to \(length - 1\) / 2 = 31"),
        ({"name": "diagnostics/memorization", "length": 7}, "must be even, got 256 and 7"),
        ({"name": "diagnostics/compression", "length": 1}, "must be at least 2, got 1 and 16"),
    ],
)
def test_mistakes_are_explained(task, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(task)
