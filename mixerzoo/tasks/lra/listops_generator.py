"""Generates ListOps as Long Range Arena does (lra_benchmarks/data/listops.py), many trees at a time.

    ( ( ( ( [MAX 4 ) ( ( ( ( [SM 7 ) 9 ) ] ) ) ) 2 ) ] )        Source: [MAX 4 [SM 7 9 ] 2 ], the answer is 6

A node above the greatest depth is an operator with probability 1/4, of an arity uniform from 2 to `max_args`, its
operands nodes again; all other nodes are digits, uniform. MED is the median rounded down, SM the sum modulo 10. A tree
is kept if its length (operators, digits and closing brackets) lies strictly between `min_length` and `max_length`,
which about one in twelve does. The parentheses, a binary left-nested reading of the tree, are part of the files alone.

A wave of trees is grown level by level: the operands of a level's operators are the next level, in blocks and in
order. From the last level up that gives sizes and values, from the first level down the places of the tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixerzoo.tasks.cores import Progress, in_order, silent
from mixerzoo.tasks.files import replacing

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SYMBOLS = (*"0123456789", "X", *OPERATORS)  # X stands for the closing bracket, as in LRA's loader
CLOSE, FIRST_OPERATOR = 10, 11
FOLDER, HEADER = "listops-1000", "Source\tTarget\n"
OPERATOR_SHARE = 0.25
WAVE, CHUNK = 400, 250  # trees grown at once; samples a chunk of work


@dataclass(frozen=True)
class TreeShape:
    """Says which trees are drawn, and which are kept. The defaults are LRA's."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        if self.max_depth < 2 or not 2 <= self.max_args <= 15:
            raise ValueError(f"ListOps needs max_depth >= 2 and max_args from 2 to 15, got {self}")
        longest = 1
        for _ in range(self.max_depth - 1):
            longest = 2 + self.max_args * longest
        if not self.min_length + 1 < self.max_length or self.max_length <= 4 or self.min_length >= longest:
            raise ValueError(
                f"ListOps needs lengths between min_length and max_length, both excluded, that such trees have (4 to "
                f"{longest}), got {self}"
            )


class Trees(NamedTuple):
    """Holds kept trees.

    Tree i has the tokens `tokens[starts[i]:starts[i+1]]`, indices into SYMBOLS, and an answer.

    arities: uint8 like tokens, an operator's number of operands, elsewhere 0.
    """

    tokens: np.ndarray
    arities: np.ndarray
    starts: np.ndarray
    answers: np.ndarray


class _Level(NamedTuple):
    """Holds nodes of one depth. symbol: the digit or operator; arity: 0 for digits."""

    tree: np.ndarray
    symbol: np.ndarray
    arity: np.ndarray

    def of(self, kept: np.ndarray) -> _Level:
        chosen = kept[self.tree]
        return _Level(*(part[chosen] for part in self))


def generate(shape: TreeShape, rng: np.random.Generator, count: int) -> Trees:
    """Generates `count` trees; equal generators give equal trees."""
    waves: list[Trees] = []
    while sum(len(wave.answers) for wave in waves) < count:
        waves.append(_lay_out(_grow(shape, rng)))
    lengths = np.concatenate([np.diff(wave.starts) for wave in waves])[:count]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens, arities = (np.concatenate([wave[part] for wave in waves])[: starts[-1]] for part in (0, 1))
    return Trees(tokens, arities, starts, np.concatenate([wave.answers for wave in waves])[:count])


def sources(trees: Trees) -> Iterator[str]:
    """Writes every tree as the released files have it, parentheses included."""
    keys = (trees.tokens.astype(np.int64) * 16 + trees.arities).tolist()
    for start, end in zip(trees.starts[:-1].tolist(), trees.starts[1:].tolist(), strict=True):
        text = " ".join(map(_PIECES.__getitem__, keys[start:end]))
        yield text[: -len(" )")]  # nothing encloses the root


def write_listops(
    out: Path,
    samples: int = 100_000,
    seed: int = 0,
    *,
    shape: TreeShape = TreeShape(),
    workers: int | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Writes `out/listops-1000/basic_{train,val,test}.tsv`, 96 %, 2 % and 2 % of the samples, no two of them equal.

    The files depend on `samples`, `seed` and `shape` alone, not on `workers` (all usable cores by default). Raises
    ValueError for too few samples and, before anything is generated, if there are such files already.
    """
    held_out = samples // 50 or 1
    if samples < 3 or seed < 0:
        raise ValueError(f"ListOps needs at least 3 samples and a seed >= 0, got samples={samples} and seed={seed}")
    folder = out if out.name == FOLDER else out / FOLDER
    sizes = {"train": samples - 2 * held_out, "val": held_out, "test": held_out}
    paths = [folder / f"basic_{split}.tsv" for split in sizes]
    for path in paths:
        if path.exists():
            raise ValueError(f"{path} is there already; remedy: another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    lines = _distinct_lines(samples, partial(_chunk, shape, seed), workers)
    done = 0
    with ExitStack() as stack:
        for path, size in zip(paths, sizes.values(), strict=True):
            file = stack.enter_context(replacing(path))
            file.write(HEADER.encode())
            for _ in range(size):
                file.write(next(lines).encode())
                done += 1
                if done % CHUNK == 0 or done == samples:
                    progress(done, samples)
    return paths


def _distinct_lines(count: int, make: Callable[[int], list[str]], workers: int | None) -> Iterator[str]:
    seen: set[bytes] = set()
    chunk = 0
    while len(seen) < count:
        last = chunk + -(-(count - len(seen)) // CHUNK)
        for lines in in_order(make, chunk, last, workers):
            for line in lines:
                digest = hashlib.blake2b(line.encode(), digest_size=16).digest()
                if digest not in seen and len(seen) < count:
                    seen.add(digest)
                    yield line
        chunk = last


def _chunk(shape: TreeShape, seed: int, chunk: int) -> list[str]:
    trees = generate(shape, np.random.default_rng((seed, chunk)), CHUNK)
    return [f"{source}\t{answer}\n" for source, answer in zip(sources(trees), trees.answers.tolist(), strict=True)]


def _grow(shape: TreeShape, rng: np.random.Generator) -> list[_Level]:
    """Grows a wave and returns its kept trees.

    Every root is an operator: a digit alone would never be kept.
    """
    parents = np.arange(WAVE)
    levels: list[_Level] = []
    while len(parents):
        depth = len(levels) + 1
        share = 1.0 if depth == 1 else OPERATOR_SHARE if depth < shape.max_depth else 0.0
        is_operator = rng.random(len(parents)) < share
        arity = np.where(is_operator, rng.integers(2, shape.max_args + 1, len(parents)), 0)
        operator = FIRST_OPERATOR + rng.integers(len(OPERATORS), size=len(parents))
        digit = rng.integers(10, size=len(parents))
        levels.append(_Level(parents, np.where(is_operator, operator, digit), arity))
        parents = np.repeat(parents, arity)
    nodes = np.concatenate([level.tree for level in levels])
    brackets = np.concatenate([level.tree[level.arity > 0] for level in levels])
    length = np.bincount(nodes, minlength=WAVE) + np.bincount(brackets, minlength=WAVE)
    kept = (shape.min_length < length) & (length < shape.max_length)
    return [level.of(kept) for level in levels if kept[level.tree].any()]


def _lay_out(levels: list[_Level]) -> Trees:
    """Builds trees from their levels: values and sizes from the leaves up, then places from the roots down."""
    if not levels:
        return Trees(*(np.zeros(n, np.int64) for n in (0, 0, 1, 0)))
    sizes, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for level in reversed(levels):
        size, value = np.ones_like(level.symbol), level.symbol.copy()
        operators = np.flatnonzero(level.arity)
        if len(operators):
            arity = level.arity[operators]
            size[operators] = 2 + np.add.reduceat(sizes[-1], np.cumsum(arity) - arity)
            value[operators] = _apply(level.symbol[operators] - FIRST_OPERATOR, values[-1], arity)
        sizes.append(size)
        values.append(value)
    starts = np.concatenate([[0], np.cumsum(sizes[-1])])
    tokens, arities = np.full(starts[-1], CLOSE, np.uint8), np.zeros(starts[-1], np.uint8)
    place = starts[:-1]
    for level, below in zip(levels, reversed(sizes[:-1]), strict=True):
        tokens[place], arities[place] = level.symbol, level.arity
        before = np.cumsum(below) - below
        blocks = np.flatnonzero(level.arity)
        arity = level.arity[blocks]
        first = before[np.cumsum(arity) - arity] if len(blocks) else before
        place = np.repeat(place[blocks] + 1 - first, arity) + before
    return Trees(tokens, arities, starts, values[-1])


def _apply(operator: np.ndarray, operands: np.ndarray, arity: np.ndarray) -> np.ndarray:
    """Applies operator i to the operands in block i, `arity[i]` of them."""
    first = np.cumsum(arity) - arity
    ordered = np.sort(np.repeat(np.arange(len(arity)), arity) * 16 + operands) % 16
    median = (ordered[first + (arity - 1) // 2] + ordered[first + arity // 2]) // 2
    total = np.add.reduceat(operands, first) % 10
    return np.choose(operator, [ordered[first], ordered[first + arity - 1], median, total])


_PIECES = (
    {digit * 16: f"{digit} )" for digit in range(10)}
    | {CLOSE * 16: "] ) )"}
    | {
        (FIRST_OPERATOR + index) * 16 + arity: "( " * (arity + 1) + operator
        for index, operator in enumerate(OPERATORS)
        for arity in range(2, 16)
    }
)
