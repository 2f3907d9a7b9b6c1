"""Every unfairness is reported in a sentence; a fair comparison has none."""

from __future__ import annotations

import pytest

from mixerzoo.ablation.reading.arms import arms
from mixerzoo.ablation.reading.fairness import warnings
from mixerzoo.ablation.reading.report.contents import Section
from mixerzoo.ablation.running.choice import choose
from tests.ablation.rows import ORIGIN, row, search


def told(rows) -> str:
    return "\n".join(warnings(arms(rows)))


def fair() -> list:
    return [row(v + s / 100, mixer=m, seed=s) for m, v in (("gla", 0.5), ("retnet", 0.8)) for s in range(3)]


def test_a_fair_comparison_needs_no_warning():
    assert told(fair()) == ""


@pytest.mark.parametrize(
    ("unfair", "sentence"),
    [
        ({"value": 0.9, "mixer": "gla", "seed": 3}, "different numbers of seeds with a value (4: gla | 3: retnet)"),
        ({"status": "failed", "seed": 3}, "1 of 7 runs have no value (1 failed)"),
        ({"status": "unfinished", "seed": 3}, "1 of 7 runs have no value (1 unfinished)"),
        ({"value": None, "status": "diverged", "seed": 3}, "(1 diverged); means are over the others"),
        ({"mixer": "hgrn2", "data": "other"}, "Runs on mqar did not see the same data: there are 2 fingerprints"),
        ({"mixer": "hgrn2", "result_split": "valid"}, "judged on different splits (test, valid)"),
        ({"mixer": "hgrn2", "result_tokens": 9}, "differ in training tokens: from 9 (hgrn2) to 819,600 ("),
        (
            {"mixer": "hgrn2", "result_parameters": 120_000},
            "differ in parameters: from 115,000 (retnet) to 120,000 (hgrn2)",
        ),
        (
            {"mixer": "hgrn2", "result_provenance": {**ORIGIN, "cpu": "Xeon"}},
            "different hardware (cpu, EPYC, 2 cores; ",
        ),
        ({"mixer": "hgrn2", "result_provenance": {**ORIGIN, "torch": "3"}}, "made with 2 different versions of"),
    ],
)
def test_what_is_unequal_is_told(unfair, sentence):
    assert sentence in told([*fair(), row(**unfair)])


def test_parameters_within_one_percent_are_equal():
    assert "parameters" not in told([*fair(), row(0.1, mixer="hgrn2", result_parameters=116_000)])


def test_the_first_and_the_second_must_be_far_enough_apart():
    near = [row(0.80 + s / 50, mixer="hgrn2", seed=s) for s in range(3)]
    assert "intervals of the first, hgrn2, and the second, retnet, overlap" in told([*fair(), *near])
    single = told([row(0.5), row(0.6, mixer="retnet")])
    assert "retnet is ahead of gla on a single seed, which may be chance" in single


def test_an_arm_that_still_improves_is_told_and_one_that_has_settled_is_not():
    rising = [row(0.9 + s / 1000, mixer="hgrn2", seed=s, settled=False) for s in range(3)]
    assert "Not converged: the validation metric of hgrn2 still improved notably" in told([*fair(), *rising])
    falling = [row(2.0 + s / 1000, task="lm", seed=s, settled=False) for s in range(3)]
    assert "Not converged: the validation metric of gla" in told(falling)
    noisy = [row(0.9 + s / 5, mixer="hgrn2", seed=s, settled=False) for s in range(3)]
    assert "Not converged" not in told(noisy), "it improves by less than its seeds differ"
    assert "Not converged" not in told([row(0.9, curve=2, settled=False)]), "two evaluations don't tell"


def test_the_best_learning_rate_must_not_be_at_the_edge():
    varied = [row(0.5 + i / 10, lr=lr) for i, lr in enumerate((1e-3, 3e-3, 1e-2))]
    assert "gla: the best train.lr, 0.01, is at the edge of what was tried (0.001 to 0.01)" in told(varied)
    inside = [row(value, lr=lr) for value, lr in ((0.5, 1e-3), (0.7, 3e-3), (0.6, 1e-2))]
    assert "edge" not in told(inside)


def test_a_searchs_edge_and_unequal_efforts_are_told():
    rows = search()
    choices = choose(rows, ["train.lr"])
    chosen = arms([own for choice in choices for own in choice.best.rows], tuned=("train.lr",))
    sentences = "\n".join(warnings(chosen, choices))
    assert "attention: the best train.lr, 0.001, is at the edge of what was tried (0.001 to 0.03)" in sentences
    assert "hgrn2: the best" not in sentences and "gla: the best" not in sentences
    fewer = [
        own for own in rows if own.config["backbone"]["mixer"]["name"] != "gla" or own.config["train"]["lr"] < 5e-3
    ]
    choices = choose(fewer, ["train.lr"])
    chosen = arms([own for choice in choices for own in choice.best.rows], tuned=("train.lr",))
    assert "searched with different numbers of candidates (2, 4)" in "\n".join(warnings(chosen, choices))


def test_every_run_without_a_value_has_a_sentence_and_few_seeds_a_note():
    rows = [row(0.5, seed=0), row(0.5, seed=1, result_notes=["out of memory at batch 64; ran as 2 x 32"])]
    rows += [row(status="failed", seed=2), row(status="failed", seed=3), row(status="unfinished", seed=4)]
    section = Section("mqar", *[tuple(arms(rows))] * 2, (), None, ("retnet",))
    assert section.problems == [
        "mqar gla seeds 2, 3: failed (RuntimeError: no luck)",
        "mqar gla seed 4: unfinished (no result yet)",
        "mqar retnet: missing (not started)",
    ]
    assert section.notes == [
        "gla: out of memory at batch 64; ran as 2 x 32",
        "An interval of 2 seeds is at most their range, which holds the true mean in 50 % of cases, not in 95 %.",
    ]
