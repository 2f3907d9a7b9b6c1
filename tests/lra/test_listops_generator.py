"""Generated ListOps agree with an evaluator that reads the text, and with the statistics of LRA's own."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from mixerzoo.tasks.lra.listops_generator import (
    FIRST_OPERATOR,
    OPERATORS,
    SYMBOLS,
    Trees,
    TreeShape,
    generate,
    sources,
    write_listops,
)
from tests.tolerances import assert_statistic

SHORT = TreeShape(max_depth=4, max_args=4, min_length=5, max_length=40)

# Of 30,000 trees of the published generator, run as it is.
LENGTH_QUANTILES = {0.05: 538, 0.1: 577, 0.25: 701, 0.5: 952, 0.75: 1308, 0.9: 1642, 0.95: 1798}
ANSWERS = (0.1692, 0.0919, 0.0744, 0.0813, 0.0894, 0.0866, 0.0785, 0.0736, 0.0855, 0.1696)
ARITIES = (0.1093, 0.1097, 0.1107, 0.1112, 0.1112, 0.1117, 0.1119, 0.1119, 0.1124)
GIVEN_MIN, GIVEN_MAX = {0: 0.566, 1: 0.221, 2: 0.100, 3: 0.053}, {9: 0.565, 8: 0.208, 7: 0.107}


def evaluate(source: str) -> tuple[int, int]:
    """Returns (answer, depth of operators) of a Source by reducing pairs of parentheses, unaware of its generator."""
    stack: list[list] = []
    for word in source.split():
        if word == "(":
            stack.append([])
        elif word == ")":
            left, right = stack.pop()
            value = close(left) if right == "]" else (left[0], [*left[1], right])
            if not stack:
                return value
            stack[-1].append(value)
        elif word in OPERATORS:
            stack[-1].append((word, []))
        else:
            stack[-1].append(word if word == "]" else (int(word), 0))
    raise AssertionError("parentheses don't close")


def close(unfinished: tuple) -> tuple[int, int]:
    operator, operands = unfinished
    values = [value for value, _ in operands]
    answer = {
        "[MIN": min(values),
        "[MAX": max(values),
        "[MED": int(statistics.median(values)),
        "[SM": sum(values) % 10,
    }[operator]
    return answer, 1 + max(depth for _, depth in operands)


@pytest.fixture(scope="module")
def published() -> Trees:
    return generate(TreeShape(), np.random.default_rng(0), 4000)


def test_answers_agree_with_an_evaluator_that_reads_the_text() -> None:
    for shape, count in ((SHORT, 500), (TreeShape(), 60)):
        trees = generate(shape, np.random.default_rng(1), count)
        for source, answer in zip(sources(trees), trees.answers.tolist(), strict=True):
            assert evaluate(source)[0] == answer


def test_a_known_tree() -> None:
    """The example of the docstring goes from tokens to text and back."""
    words = ["[MAX", "4", "[SM", "7", "9", "X", "2", "X"]
    tokens = np.array([SYMBOLS.index(word) for word in words], np.uint8)
    arities = np.array([3, 0, 2, 0, 0, 0, 0, 0], np.uint8)
    (source,) = sources(Trees(tokens, arities, np.array([0, 8]), np.array([6])))
    assert source == "( ( ( ( [MAX 4 ) ( ( ( [SM 7 ) 9 ) ] ) ) 2 ) ] )"
    assert evaluate(source) == (6, 2)


def test_the_text_without_parentheses_is_the_tokens() -> None:
    trees = generate(SHORT, np.random.default_rng(2), 50)
    for index, source in enumerate(sources(trees)):
        words = [word.replace("]", "X") for word in source.split() if word not in "()"]
        tokens = trees.tokens[trees.starts[index] : trees.starts[index + 1]]
        assert words == [SYMBOLS[token] for token in tokens]
        assert SHORT.min_length < len(words) < SHORT.max_length


def test_lengths_are_those_of_the_published_generator(published: Trees) -> None:
    lengths = np.diff(published.starts)
    assert lengths.min() >= 501
    assert lengths.max() <= 1999
    assert_statistic("mean length", lengths.mean(), 1033.6, deviation=393.6, count=len(lengths))
    for share, length in LENGTH_QUANTILES.items():
        below = (lengths <= length).mean()
        assert_statistic(f"quantile {share}", below, share, deviation=(share * (1 - share)) ** 0.5, count=len(lengths))


def test_symbols_are_mixed_as_by_the_published_generator(published: Trees) -> None:
    """Digits have .0715 each, closing brackets .1423, operators .0356 each; roots and arities are nearly uniform."""
    frequency = np.bincount(published.tokens, minlength=15) / len(published.tokens)
    wanted = np.array([0.0715] * 10 + [0.1423] + [0.0356] * 4)
    for symbol, found, share in zip(SYMBOLS, frequency, wanted, strict=True):
        # tokens of a tree hang together; its number of operators is one draw in about ten of its tokens
        assert_statistic(symbol, found, share, deviation=share**0.5, count=len(published.tokens) / 10)
    roots = published.tokens[published.starts[:-1]]
    for operator in range(FIRST_OPERATOR, 15):
        assert_statistic("root", (roots == operator).mean(), 0.25, deviation=0.433, count=len(roots))
    arities = published.arities[published.arities > 0]
    for arity, share in zip(range(2, 11), ARITIES, strict=True):
        assert_statistic("arity", (arities == arity).mean(), share, deviation=share**0.5, count=len(arities))


def test_answers_are_distributed_as_by_the_published_generator(published: Trees) -> None:
    answers, roots = published.answers, published.tokens[published.starts[:-1]]
    for digit, share in enumerate(ANSWERS):
        assert_statistic(f"answer {digit}", (answers == digit).mean(), share, deviation=share**0.5, count=len(answers))
    for root, table in ((FIRST_OPERATOR, GIVEN_MIN), (FIRST_OPERATOR + 1, GIVEN_MAX)):
        given = answers[roots == root]
        for digit, share in table.items():
            assert_statistic(f"{digit} given {root}", (given == digit).mean(), share, deviation=0.5, count=len(given))


def test_the_deepest_operator_is_the_ninth(published: Trees) -> None:
    """All published ones have it: shallower trees are too short."""
    few = Trees(published.tokens, published.arities, published.starts[:41], published.answers[:40])
    assert {evaluate(source)[1] for source in sources(few)} == {9}


def test_files_are_as_released_and_do_not_depend_on_the_workers(tmp_path) -> None:
    first = write_listops(tmp_path / "a", 600, 7, shape=SHORT, workers=1)
    second = write_listops(tmp_path / "b", 600, 7, shape=SHORT, workers=2)
    other = write_listops(tmp_path / "c", 600, 8, shape=SHORT, workers=1)
    assert [path.relative_to(tmp_path / "a").as_posix() for path in first] == [
        f"listops-1000/basic_{split}.tsv" for split in ("train", "val", "test")
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes() != other[0].read_bytes()
    lines = [path.read_text().splitlines() for path in first]
    assert [len(split) - 1 for split in lines] == [576, 12, 12]
    assert {split[0] for split in lines} == {"Source\tTarget"}
    rows = [line for split in lines for line in split[1:]]
    assert len(set(rows)) == 600
    for row in rows[::20]:
        source, answer = row.split("\t")
        assert evaluate(source)[0] == int(answer)


def test_existing_files_are_left_alone(tmp_path) -> None:
    write_listops(tmp_path, 3, shape=SHORT, workers=1)
    with pytest.raises(ValueError, match=r"basic_train.tsv is there already; remedy: another --out, or remove it"):
        write_listops(tmp_path, 3, shape=SHORT, workers=1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_depth": 1}, "max_depth >= 2 and max_args from 2 to 15, got TreeShape"),
        ({"max_args": 16}, "max_args from 2 to 15"),
        ({"max_depth": 2, "max_args": 3}, r"that such trees have \(4 to 5\)"),
        ({"min_length": 30, "max_length": 31}, "lengths between min_length and max_length"),
    ],
)
def test_impossible_trees_are_refused(keywords, message) -> None:
    with pytest.raises(ValueError, match=message):
        TreeShape(**keywords)


def test_too_few_samples_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least 3 samples and a seed >= 0, got samples=2"):
        write_listops(tmp_path, 2)
