"""Each statistic agrees with an independent computation, with a published table, or with brute force."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import scipy.stats

from mixerzoo.ablation.reading import statistics
from mixerzoo.ablation.reading.statistics import (
    Interval,
    compare,
    coverage_of_the_range,
    critical_difference,
    interval,
    pareto_front,
    ranks,
    std,
    studentized_range_quantile,
    t_quantile,
)


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 30, 200])
def test_students_quantile_is_scipys(degrees):
    assert t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees))


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20])
def test_the_studentized_range_is_scipys(count):
    assert studentized_range_quantile(count) == pytest.approx(scipy.stats.studentized_range.ppf(0.95, count, np.inf))


def test_nemenyis_critical_values_are_the_published_ones():
    """They are Demsar's, JMLR 7 (2006), table 5a, alpha = 0.05; its third decimal is off by one in two places."""
    published = dict(zip(range(2, 11), (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164), strict=True))
    found = {k: studentized_range_quantile(k) / math.sqrt(2) for k in published}
    assert {k: f"{q:.2f}" for k, q in found.items()} == {k: f"{q:.2f}" for k, q in published.items()}


def test_the_critical_difference_is_that_of_demsars_example():
    """The example is his section 3.2.2: four classifiers on 14 data sets, CD 1.25."""
    assert f"{critical_difference(4, 14):.2f}" == "1.25"


@pytest.mark.parametrize("values", [(0.5, 0.7), (0.1, 0.4, 0.45), (1.0, 3.0, 3.5, 9.0)])
def test_the_interval_of_few_values_is_that_of_all_their_resamples(values):
    n = len(values)
    means = sorted(sum(drawn) / n for drawn in itertools.product(values, repeat=n))
    level = scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    low, high = means[math.ceil(level * len(means)) - 1], means[math.ceil((1 - level) * len(means)) - 1]
    assert interval(values) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_many_values_is_near_students():
    values = np.random.default_rng(0).normal(5, 2, 50)
    low, high = interval(list(values))
    half = scipy.stats.t.ppf(0.975, 49) * values.std(ddof=1) / math.sqrt(50)
    assert abs(low - (values.mean() - half)) < half / 10 and abs(high - (values.mean() + half)) < half / 10


def test_the_interval_covers_as_often_as_it_says():
    """It covers 95 % from about eight values on; fewer can't, and then their range's own coverage is reported."""
    rng = np.random.default_rng(1)

    def share(n: int) -> float:
        found = (interval(list(rng.normal(size=n))) for _ in range(1500))
        return sum(low <= 0 <= high for low, high in found) / 1500

    assert 0.93 < share(8) < 0.97
    assert abs(share(3) - coverage_of_the_range(3)) < 0.03
    assert coverage_of_the_range(2) == 0.5


def test_statistics_know_their_limits_and_repeat_themselves():
    assert (interval([0.3]), std([0.3]), interval([])) == (None, None, None)
    assert interval([0.25] * 4) == (0.25, 0.25)
    values = [random.Random(0).random() for _ in range(9)]
    first = interval(values)
    statistics._weights.cache_clear()
    assert interval(values) == first
    assert std([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_intervals_that_touch_overlap():
    assert Interval(0, 1).overlaps(Interval(1, 2)) and not Interval(0, 1).overlaps(Interval(1.1, 2))


def test_a_comparison_is_paired_by_seed():
    """The seeds differ far more than the arms, so only pairs show the difference."""
    baseline = {0: 0.2, 1: 0.5, 2: 0.8, 3: 0.9}
    arm = {0: 0.22, 1: 0.521, 2: 0.819, 7: 0.1}
    found = compare(arm, baseline, higher_is_better=True)
    assert (found.seeds, found.word) == (3, "better")
    assert found.difference == pytest.approx(0.02)
    assert found.interval == (pytest.approx(0.019), pytest.approx(0.021))
    assert compare(arm, baseline, higher_is_better=False).word == "worse"
    assert compare(baseline, arm, higher_is_better=True).word == "worse"


def test_what_chance_explains_is_not_told_apart():
    """Equal arms have three differences of one sign in one case of four; Student's interval allows for that."""
    baseline = {0: 0.5, 1: 0.5, 2: 0.5}
    assert compare({0: 0.51, 1: 0.6, 2: 0.9}, baseline, higher_is_better=True).word == "not told apart"
    assert compare({0: 0.4, 1: 0.6, 2: 0.5}, baseline, higher_is_better=True).word == "not told apart"
    single = compare({0: 0.9}, baseline, higher_is_better=True)
    assert (single.interval, single.seeds, single.word) == (None, 1, "not told apart")
    assert compare({5: 0.9}, baseline, higher_is_better=True) is None
    assert compare(baseline, baseline, higher_is_better=True).word == "not told apart"


def test_equal_arms_are_told_apart_in_one_case_of_twenty():
    rng = np.random.default_rng(2)
    told = 0
    for _ in range(2000):
        found = compare(dict(enumerate(rng.normal(size=4))), dict.fromkeys(range(4), 0.0), higher_is_better=True)
        told += found.word != "not told apart"
    assert 0.03 < told / 2000 < 0.07


def test_ranks_are_scipys():
    values = [0.3, 0.9, 0.3, 0.1, 0.9, 0.5]
    assert ranks(values, higher_is_better=False) == list(scipy.stats.rankdata(values))
    assert ranks(values, higher_is_better=True) == list(scipy.stats.rankdata([-value for value in values]))


@pytest.mark.parametrize("higher", [True, False])
def test_the_pareto_front_is_what_nothing_dominates(higher):
    rng, sign = random.Random(3), 1 if higher else -1
    points = [(rng.randrange(8), rng.randrange(8)) for _ in range(60)]

    def dominated(point) -> bool:
        return any(other != point and other[0] <= point[0] and sign * other[1] >= sign * point[1] for other in points)

    front = pareto_front(points, higher_is_better=higher)
    assert sorted(front) == [i for i, point in enumerate(points) if not dominated(point)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
