"""Computes statistics of a few seeds: intervals, paired comparisons, ranks over tasks, Pareto fronts.

Everything is pure and deterministic: numbers go in and come out, and nothing here knows of runs. The quantiles of
Student's t and of the studentized range are computed by quadrature, so numpy is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
EXACT = 5  # up to so many values all n^n resamples are enumerated
RESAMPLES = 10_000
ENTRIES = 4_000_000  # of the table of resamples: above 400 values there are fewer of them
SEED = 0
WORDS = ("better", "worse", "not told apart")


class Interval(NamedTuple):
    """Holds a 95 % interval of a mean."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


class Comparison(NamedTuple):
    """Holds a mean difference to a baseline over `seeds` common seeds.

    word: better, worse, or not told apart.
    """

    difference: float
    interval: Interval | None
    seeds: int
    word: str


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float | None:
    """Returns the sample's standard deviation (n-1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def interval(values: Sequence[float]) -> Interval | None:
    """Returns the 95 % bootstrap interval of the mean, by expanded percentiles; None for fewer than two values.

    The plain percentile interval is too narrow for few values. Hesterberg (The American Statistician 69, 2015,
    section 4.4) takes its quantiles at `Phi(-sqrt(n/(n-1)) t)` instead of 2.5 %, t the quantile of Student's t with
    n-1 degrees of freedom. So for normal data it is as wide as Student's interval. BCa corrects skewness, which
    a handful of values can't tell. No bootstrap interval reaches beyond the values: see `coverage_of_the_range`.
    """
    n = len(values)
    if n < 2:
        return None
    means = _weights(n) @ np.asarray(values, dtype=np.float64)
    level = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(n - 1))
    low, high = np.quantile(means, (level, 1 - level), method="inverted_cdf")
    return Interval(float(low), float(high))


def coverage_of_the_range(n: int) -> float:
    """Returns how often the range of n values holds a symmetric distribution's mean.

    No bootstrap interval exceeds the range.
    """
    return 1 - 2.0 ** (1 - n)


def compare(values: Mapping[int, float], baseline: Mapping[int, float], *, higher_is_better: bool) -> Comparison | None:
    """Compares values by seed with a baseline's, paired over the seeds that both have; None if they share none.

    Values are told apart if two 95 % intervals of the mean difference exclude zero: the bootstrap's and Student's.
    Student's is the wider one where there are few seeds. One seed tells nothing apart.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    difference, spread = mean(differences), interval(differences)
    word = "not told apart"
    if spread is not None and not spread.low <= 0 <= spread.high:
        error = (std(differences) or 0.0) / math.sqrt(len(seeds))
        if abs(difference) > t_quantile(len(seeds) - 1) * error:
            word = "better" if (difference > 0) == higher_is_better else "worse"
    return Comparison(difference, spread, len(seeds), word)


def ranks(values: Sequence[float], *, higher_is_better: bool) -> list[float]:
    """Returns 1 for the best; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=np.float64) * (-1 if higher_is_better else 1)
    smaller = (array[None, :] < array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    return [float(rank) for rank in smaller + (equal + 1) / 2]


def critical_difference(arms: int, tasks: int) -> float:
    """Returns Nemenyi's: average ranks over `tasks` that lie further apart differ at the 5 % level.

    `q sqrt(k (k+1) / (6 N))`, q the studentized range's quantile over sqrt(2) (Demsar, JMLR 7, 2006, section 3.2.2).
    """
    return studentized_range_quantile(arms) / math.sqrt(2) * math.sqrt(arms * (arms + 1) / (6 * tasks))


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """Returns the (cost, quality) points that no other beats in one and equals in the other, by ascending cost."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        cost, quality = points[index]
        best = points[front[-1]] if front else None
        if best is None or sign * quality > sign * best[1] or (cost, quality) == best:
            front.append(index)
    return front


@lru_cache
def t_quantile(degrees: int) -> float:
    """Returns the 97.5 % quantile of Student's t: the width of a two-sided 95 % interval in standard errors."""
    t = np.linspace(0, 13, 130_001)  # 12.71 is the largest, at one degree of freedom
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)
    return float(np.interp(CONFIDENCE / 2, _cumulative(density, t), t))


@lru_cache
def studentized_range_quantile(count: int) -> float:
    """Returns the 95 % quantile of the studentized range, infinite degrees of freedom.

    It is the range of `count` standard normals:

    `P(range <= r) = k int phi(x) (Phi(x) - Phi(x-r))^(k-1) dx`, x the largest; solved for r by bisection.
    """
    x = np.linspace(-9, 9, 18_001)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    below = _cumulative(density, x)
    low, high = 0.0, 9.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        inside = below - np.interp(x - middle, x, below)
        probability = _cumulative(count * density * inside ** (count - 1), x)[-1]
        low, high = (middle, high) if probability < CONFIDENCE else (low, middle)
    return low


def _cumulative(density: np.ndarray, x: np.ndarray) -> np.ndarray:
    steps = (density[1:] + density[:-1]) / 2 * np.diff(x)
    return np.concatenate([[0.0], np.cumsum(steps)])


@lru_cache(maxsize=8)
def _weights(n: int) -> np.ndarray:
    """Returns each value's share in every resample [R,n]: all n^n of few values, else as many as drawn.

    They are the same every time.
    """
    if n <= EXACT:
        drawn = np.indices((n,) * n).reshape(n, -1).T
        return (drawn[:, :, None] == np.arange(n)).mean(axis=1)
    draws = min(RESAMPLES, ENTRIES // n)
    return np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), draws) / n
