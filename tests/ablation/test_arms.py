"""Laws of arms, filters and comparisons say: different things are never averaged, and only comparable ones compared."""

from __future__ import annotations

import pytest

from mixerzoo.ablation.reading.arms import arms
from mixerzoo.ablation.reading.baseline import comparisons
from mixerzoo.ablation.reading.columns import Condition, columns, identity, select
from mixerzoo.ablation.reading.ranking import average_ranks, unranked
from mixerzoo.tasks.config import flatten
from tests.ablation.rows import row, search, study


def test_an_arm_is_what_differs_in_the_seed_alone():
    rows = [row(seed=seed, lr=lr) for seed in (0, 1) for lr in (1e-3, 1e-2)] + [row(mixer="retnet")]
    found = arms(rows)
    assert sorted(arm.label for arm in found) == ["gla, train.lr=0.001", "gla, train.lr=0.01", "retnet"]
    assert sorted(len(arm.rows) for arm in found) == [1, 2, 2]
    assert sum(len(arm.rows) for arm in found) == len(rows)


def test_what_a_matching_solved_for_is_no_name_unless_nothing_else_tells_arms_apart():
    wide = row(mixer="hgrn2", expand=128)
    wide.config["backbone"]["channel_mixer"]["hidden"] = 90
    assert sorted(arm.label for arm in arms([row(mixer="hgrn2", expand=16), wide])) == [
        "hgrn2, mixer.expand=128",
        "hgrn2, mixer.expand=16",
    ]
    other = row(mixer="hgrn2", expand=16, seed=1)
    other.config["backbone"]["channel_mixer"]["hidden"] = 90
    labels = sorted(arm.label for arm in arms([row(mixer="hgrn2", expand=16), other]))
    assert labels == [f"hgrn2, backbone.channel_mixer.hidden={hidden}" for hidden in (165, 90)]


def test_the_best_comes_first_whichever_direction_is_good():
    assert [arm.mixer for arm in arms([row(0.2), row(0.9, mixer="retnet")])] == ["retnet", "gla"]
    assert [arm.mixer for arm in arms([row(2.0, task="lm"), row(3.0, task="lm", mixer="retnet")])] == ["gla", "retnet"]
    assert [arm.mixer for arm in arms([row(status="failed"), row(0.1, mixer="retnet")])] == ["retnet", "gla"]


def test_regrouping_pools_all_that_is_not_asked_for():
    rows = [row(value, mixer=mixer, lr=lr, seed=seed) for value, mixer, lr, seed in GRID]
    (gla, retnet) = sorted(arms(rows, by=("backbone.mixer",)), key=lambda arm: arm.mixer)
    assert (sorted(gla.values), retnet.mean) == ([0.1, 0.2, 0.3, 0.4], 0.5)
    assert gla.by_seed == {0: pytest.approx(0.2), 1: pytest.approx(0.3)}
    by_rate = arms(rows, by=("train.lr",))
    assert [(arm.mixer, dict(arm.variant), len(arm.rows)) for arm in by_rate] == [
        ("gla", {"train.lr": 0.01}, 2),
        ("gla, retnet", {"train.lr": 0.001}, 3),
    ]


GRID = [(0.1, "gla", 1e-3, 0), (0.2, "gla", 1e-3, 1), (0.3, "gla", 1e-2, 0), (0.4, "gla", 1e-2, 1)]
GRID += [(0.5, "retnet", 1e-3, 0)]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("mixer=gla", {"gla"}),
        ("mixer=gla,retnet", {"gla", "retnet"}),
        ("mixer!=gla", {"hgrn2", "retnet", "hgrn2+attention"}),
        ("task.name=lm", {"retnet"}),
        ("task=lm", {"retnet"}),
        ("mixer.expand=16", {"hgrn2"}),
        ("backbone.mixer.expand>=16", {"hgrn2"}),
        ("optimizer.lr=3e-3", {"gla", "hgrn2+attention"}),
        ("train.lr > 0.003", {"retnet", "hgrn2"}),
        ("seed<1", {"gla", "retnet", "hgrn2"}),
        ("status!=done", {"hgrn2+attention"}),
        ("value>0.6", {"retnet"}),
    ],
)
def test_a_filter_speaks_of_any_dotted_path(condition, kept):
    rows = [
        row(0.5),
        row(2.0, mixer="retnet", task="lm", lr=1e-2),
        row(0.6, mixer="hgrn2", expand=16, lr=1e-2),
        row(mixer="hgrn2+attention", status="failed", seed=1),
    ]
    assert {columns(kept)["backbone.mixer"] for kept in select(rows, [condition])} == kept


def test_a_pattern_has_the_settings_of_its_mixers_where_a_mixer_alone_has_them():
    rows = [row(0.5, mixer="hgrn2", expand=8), row(0.6, mixer="hgrn2+attention", expand=8), row(0.7, mixer="gla")]
    assert select(rows, ["mixer.expand=8"]) == rows[:2]
    pooled = {arm.variant["mixer.expand"]: arm.mixer for arm in arms(rows, by=["backbone.mixer.expand"])}
    assert pooled == {8: "hgrn2, hgrn2+attention", None: "gla"}


def test_mistakes_in_a_filter_are_explained():
    rows = [row()]
    for text, message in (
        ("train.rl=3", r"unknown path 'train.rl'; did you mean train.lr"),
        ("optimzer.lr=3", r"unknown path 'optimzer.lr'; did you mean train.lr\?"),
        ("lr=3", r"unknown path 'lr'; did you mean train.lr\?"),
        ("gla", r"a filter must read PATH=VALUE, .* got 'gla'"),
        ("seed<two", "< compares with one number, got 'two'"),
        ("seed=9", "none of 1 runs has seed=9"),
    ):
        with pytest.raises(ValueError, match=message):
            select(rows, [text])
    assert str(Condition.parse("backbone.mixer.expand = 1,2")) == "mixer.expand=1,2"


def test_a_runs_columns_are_its_flattened_configuration_and_result():
    hybrid = row(mixer="hgrn2+attention")
    record = columns(hybrid)
    assert flatten(hybrid.config).items() <= record.items()
    assert (
        record["backbone.mixer"] == "hgrn2+attention" and record["mixer.0.name".replace("mixer", "backbone.mixer", 1)]
    )
    assert record["metric.name"] == "accuracy" and not any("series" in path for path in record)


def test_equal_settings_have_equal_identities():
    assert identity(row(seed=0)) == identity(row(seed=1)) != identity(row(lr=1.0))
    tuned = ("seed", "train.lr")
    assert identity(row(seed=0), tuned) == identity(row(seed=1, lr=1.0), tuned) != identity(row(data="d1"), tuned)


def test_an_arms_baseline_has_the_same_values_wherever_both_were_varied():
    rows = [
        row(0.5 + skill + lr, mixer=mixer, lr=lr, seed=seed)
        for mixer, skill in (("gla", 0.0), ("hgrn2", 0.1))
        for lr in (1e-3, 1e-2)
        for seed in (0, 1)
    ]
    found = comparisons(arms(rows), "gla")
    assert set(found) == {"hgrn2, train.lr=0.001", "hgrn2, train.lr=0.01"}
    assert all(comparison.difference == pytest.approx(0.1) for comparison in found.values())
    by_label = comparisons(arms(rows), "gla, train.lr=0.01")
    assert by_label["gla, train.lr=0.001"].difference == pytest.approx(-0.009)
    assert len(by_label) == 3
    expanded = [row(0.8, mixer="hgrn2", expand=expand) for expand in (1, 2)]
    assert set(comparisons(arms([*expanded, row(0.5)]), "gla")) == {"hgrn2, mixer.expand=1", "hgrn2, mixer.expand=2"}
    assert comparisons(arms([*expanded, row(0.5)]), "hgrn2") == {}


def test_variants_of_a_task_are_tasks_of_their_own():
    rows = []
    for length in (64, 128):
        for mixer, value in (("gla", 0.5), ("retnet", 0.4)):
            own = row(value - length / 1000, mixer=mixer, data=str(length))
            own.config["task"]["length"] = length
            rows.append(own)
    found = arms(rows)
    assert {arm.task_label for arm in found} == {"mqar, task.length=64", "mqar, task.length=128"}
    assert {arm.model_label for arm in found} == {"gla", "retnet"}
    assert {label: round(c.difference, 3) for label, c in comparisons(found, "gla").items()} == {
        "retnet, task.length=64": -0.1,
        "retnet, task.length=128": -0.1,
    }
    assert average_ranks(found) == {"gla": 1.0, "retnet": 2.0}
    assert "at least 3 tasks; here are 2" in unranked(found)[0]


def test_only_models_with_a_value_on_every_task_are_ranked():
    found = arms(study())
    assert average_ranks(found) == {"attention": 1.0, "gla": 2.0, "retnet": 3.0, "hgrn1": 4.0}
    assert unranked(found)[0].startswith("Not ranked, for want of a value on every task: hgrn2; hgrn2, mixer.expand=")


def test_what_a_search_decides_makes_no_arms():
    found = arms([own for own in search() if own.config["train"]["lr"] == 1e-2], tuned=("train.lr",))
    assert {arm.label: dict(arm.chosen) for arm in found} == {
        mixer: {"train.lr": 0.01} for mixer in ("attention", "gla", "hgrn2")
    }
