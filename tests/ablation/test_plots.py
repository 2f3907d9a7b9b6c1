"""Laws of the figures say: only what the runs support is drawn, and it is drawn as the runs have it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from mixerzoo.ablation.reading.arms import arms
from mixerzoo.ablation.reading.plots import draw, save
from mixerzoo.ablation.reading.plots.across import cliques, heat_map, rank_diagram
from mixerzoo.ablation.reading.plots.curves import best_of_each
from mixerzoo.ablation.reading.plots.style import geometric, spread, styles
from mixerzoo.ablation.reading.report import read_report
from mixerzoo.ablation.running.store import Store
from tests.ablation.rows import row, search, study, write


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    report = read_report(Store(write(tmp_path_factory.mktemp("runs") / "study", study())))
    return {drawing.name: drawing for drawing in draw(report)}


def lines(drawing, axes: int = 0) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in drawing.figure.axes[axes].lines}


def test_all_that_a_study_supports_is_drawn(drawings):
    tasks = ("diagnostics_parity", "diagnostics_selective-copy", "lm", "mqar")
    series = ("series-diagnostics_parity-by-length", "series-diagnostics_parity-speed")
    quality = ("quality-vs-state", "quality-vs-flops", "quality-vs-seconds")
    across = ("heat-map", "ranks")
    assert set(drawings) == {*(f"curves-{t}" for t in tasks), *series, *quality, *across, "mixer-expand-mqar"}
    assert all(drawing.title and drawing.caption.endswith(".") for drawing in drawings.values())


def test_a_single_run_has_a_curve_and_no_comparison(tmp_path):
    report = read_report(Store(write(tmp_path, [row(0.5)])))
    assert [drawing.name for drawing in draw(report)] == ["curves-mqar"]
    assert draw(read_report(Store(write(tmp_path / "none", [row(status="failed")])))) == []


def test_curves_are_means_over_seeds_with_a_band(drawings):
    gla = [own for own in study() if own.config["backbone"]["mixer"]["name"] == "gla" and own.run_id.startswith("lm")]
    means = [sum(run.curve[i]["metric"] for run in gla) / 3 for i in range(8)]
    tokens = [sum(run.curve[i]["tokens"] for run in gla) / 3 for i in range(8)]
    drawn = lines(drawings["curves-lm"])["gla"]
    assert [y for _, y in drawn] == pytest.approx(means) and [x for x, _ in drawn] == pytest.approx(tokens)
    assert len(drawings["curves-lm"].figure.axes[0].collections) == 5, "a band for every arm"


def test_the_training_length_is_marked(drawings):
    found = drawings["series-diagnostics_parity-by-length"]
    assert (64, 0) in [points[0] for points in lines(found).values()]
    assert "The dotted line is the length in training, 64." in found.caption
    assert found.figure.axes[0].get_xscale() == "log"
    assert "dotted" not in drawings["series-diagnostics_parity-speed"].caption


def test_a_varied_number_is_an_axis_and_mixers_without_it_are_level(drawings):
    axes = drawings["mixer-expand-mqar"].figure.axes[0]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "mixer.expand")
    hgrn2 = next(line for line in axes.lines if len(line.get_xdata()) == 5)
    assert list(hgrn2.get_xdata()) == [1, 4, 16, 64, 128]
    assert sum(line.get_linestyle() == "--" for line in axes.lines) == 4


def test_quality_has_a_panel_for_every_task_and_its_pareto_front(drawings):
    panels = drawings["quality-vs-state"].figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        *("diagnostics/parity", "diagnostics/selective-copy", "lm", "mqar")
    ]
    front = panels[2].lines[0]
    assert list(front.get_xdata()) == [512, 2**13, 2**19], "hgrn1, hgrn2, attention"
    texts = [text.get_text() for text in panels[2].texts]
    assert sorted(texts) == ["attention", "gla", "hgrn1", "hgrn2", "retnet"]


def test_a_search_shows_every_candidate_and_rings_the_chosen(tmp_path):
    question = {"tune": {"train.lr": [1e-3, 3e-3, 1e-2, 3e-2]}}
    report = read_report(Store(write(tmp_path, search(), question)))
    found = {drawing.name: drawing for drawing in draw(report)}["search-train-lr-mqar"]
    axes = found.figure.axes[0]
    rings = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_markersize() == 11)
    assert rings == [1e-3, 3e-3, 1e-2]
    crosses = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "x"]
    assert sorted(crosses) == [[], [], [3e-2]], "gla diverged there"


def test_a_heat_map_compares_within_each_task():
    rows = [row(v, mixer=m, task=t) for t, m, v in (("mqar", "gla", 0.4), ("mqar", "retnet", 0.6), ("lm", "gla", 2.0))]
    mesh = heat_map(arms([*rows, row(3.0, mixer="retnet", task="lm")])).figure.axes[0].collections[0]
    assert mesh.get_array().tolist() == [[1.0, 0.0], [0.0, 1.0]], "lower is better for lm, the first column"
    assert heat_map(arms(rows[:2])) is None and heat_map(arms([rows[0], rows[2]])) is None


def test_ranks_are_joined_if_they_are_not_told_apart():
    assert cliques([1.0, 1.5, 2.2, 3.9], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 3.0], 1.0) == [] and cliques([1.0, 1.2, 1.4], 1.0) == [(0, 2)]
    assert rank_diagram({"a": 1.0, "b": 2.0}, 2) is None and rank_diagram({"a": 1.0}, 9) is None
    assert "critical difference, 0.98 at" in rank_diagram({"a": 1.0, "b": 2.0}, 4).caption


def test_a_hundred_arms_are_cut_to_what_an_eye_can_follow(tmp_path):
    rng = random.Random(0)
    rows = [
        row(rng.random(), mixer=m, lr=1e-3 * (1 + i), result_state_bytes=2**i)
        for i in range(20)
        for m in ("gla", "hgrn1", "hgrn2", "retnet", "attention")
    ]
    found = {drawing.name: drawing for drawing in draw(read_report(Store(write(tmp_path, rows))))}
    assert "The 12 best of 100 arms, at least one a mixer." in found["curves-mqar"].caption
    mixers = {label.partition(",")[0] for label in lines(found["curves-mqar"])}
    assert mixers == {"gla", "hgrn1", "hgrn2", "retnet", "attention"}
    assert len(found["quality-vs-state"].figure.axes[0].lines) == 6, "a cloud a mixer, and the front"


def test_of_many_arms_every_mixer_has_its_best():
    found = arms([row(value, mixer=m, lr=lr) for value, m, lr in ((0.9, "a", 1), (0.8, "a", 2), (0.7, "b", 1))])
    assert [arm.label for arm in best_of_each(found, 2)] == ["a, train.lr=1", "b"]


def test_labels_are_moved_apart_and_no_further():
    assert spread([0.0, 1.0], 0.1) == [0.0, 1.0]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    moved = spread([0.1, 0.5, 0.52, 0.53, 0.9], 0.1)
    assert all(b - a > 0.0999 for a, b in pairwise(moved))
    assert sum(moved[1:4]) == pytest.approx(1.55), "a cluster stays where it was"


def test_axes_are_logarithmic_where_values_are_geometric():
    assert geometric([1, 4, 16, 64]) and geometric([1e-3, 3e-3, 1e-2]) and geometric([64, 512])
    assert not geometric([1, 2, 3, 4]) and not geometric([0, 1, 10]) and not geometric([5]) and not geometric([2, 3])


def test_a_mixer_keeps_its_colour_and_variants_get_shades():
    looks = styles(arms(study()))
    colours = {look["color"] for label, look in looks.items() if label.startswith("hgrn2")}
    assert len(colours) == 1 and len({look["color"] for look in looks.values()}) == 5
    shades = [looks[f"hgrn2, mixer.expand={expand}"]["alpha"] for expand in (1, 4, 16, 64, 128)]
    assert shades == sorted(shades) and shades[-1] == 1


def test_figures_are_saved_in_three_formats_and_the_same_every_time(tmp_path):
    report = read_report(Store(write(tmp_path / "runs", [row(0.5, seed=seed) for seed in (0, 1)])))
    (first,), (second,) = save(report, tmp_path), save(report, tmp_path)
    assert first == second and first.svg.startswith("<svg") and "<text" in first.svg
    assert (tmp_path / "curves-mqar.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "curves-mqar.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "figures" / "curves-mqar.svg").read_text().startswith("<?xml")
