"""Laws of matching say: models of one task have equal sizes, in the requested measure and amount."""

from __future__ import annotations

import pytest

from mixerzoo import list_mixers
from mixerzoo.ablation.question import matching
from mixerzoo.ablation.question.cost import estimate_seconds, model_cost
from mixerzoo.ablation.question.dry_run import cost_table, summary
from mixerzoo.ablation.question.grid import Grid
from mixerzoo.ablation.question.matching import Matching, target_size
from mixerzoo.ablation.question.plan import describe, describe_matching, plan
from mixerzoo.ablation.running.carry_out import expected
from mixerzoo.ablation.running.store import Store
from mixerzoo.tasks import BackboneConfig

TINY = {"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}


def planned(**question):
    return plan(Grid.of(**{"mixers": list_mixers(), "tasks": [TINY], "seeds": 1, **question}))


@pytest.mark.parametrize("task", ["lm", "mqar", "diagnostics/parity"])
@pytest.mark.parametrize("quantity", ["params", "flops"])
def test_the_glu_brings_every_model_within_a_percent(task, quantity):
    found = planned(mixers=[*list_mixers(), "hgrn2+attention"], tasks=[task], match=quantity)
    for match in found.matches:
        assert abs(match.mismatch) <= 0.01
        model = match.run.task.build_model(match.run.backbone)
        parameters, (_, flops) = sum(p.numel() for p in model.parameters()), match.run.task.cost(model)
        assert match.size == (parameters if quantity == "params" else flops)


@pytest.mark.parametrize("solve", ["width", "depth"])
def test_the_width_or_depth_that_is_nearest(solve):
    key = {"width": "dim", "depth": "depth"}[solve]
    for match in planned(match="params:200000", solve=solve).matches:
        size = getattr(match.run.backbone, key)
        step = {"hgrn2": 16}.get(match.run.backbone.label, 8) if solve == "width" else 1  # expand=16 divides the width
        for other in (size - step, size + step):
            changed = planned(mixers=[match.run.backbone.label], set={f"backbone.{key}": other}, match="none")
            neighbour = model_cost(changed.runs[0].task, changed.runs[0].backbone).parameters
            assert abs(match.size - 200_000) <= abs(neighbour - 200_000)


def test_the_state_is_matched_by_the_width():
    found = planned(mixers=["hgrn1", "hgrn2", "gla", "retnet"], match="state:hgrn2", set={"mixer.short_conv": 0})
    for match in found.matches:
        model = match.run.task.build_model(match.run.backbone)
        assert match.size == 4 * match.run.task.state_size(model, 1024)
        assert abs(match.mismatch) < 0.2
    (line,) = describe_matching(found)
    assert line.startswith("mqar: bytes of state matched to 8,192 by the width; farthest is ")


@pytest.mark.parametrize("target", [1, 1000, 29_000, 29_001, 10**9])
def test_the_nearest_is_found_among_sizes_that_cannot_all_be_built(target, monkeypatch):
    built: list[int] = []

    def measure(task, backbone, quantity):
        if backbone.dim % 3:
            raise ValueError("3 must divide the width")
        built.append(backbone.dim)
        return 10 * backbone.dim**2

    monkeypatch.setattr(matching, "measure", measure)
    widths = [BackboneConfig(dim=dim) for dim in range(1, 2001)]
    found = matching._nearest(widths, planned(mixers=["gla"], match="none").runs[0], "state", target).dim
    assert abs(10 * found**2 - target) == min(abs(10 * dim**2 - target) for dim in range(3, 2001, 3))
    assert len(built) < 20, "a model as wide as attention's cache would take minutes to find"


def test_the_target_is_a_mixers_model_or_a_number():
    (run,) = planned(mixers=["retnet"], match="none").runs
    (attention,) = planned(mixers=["attention"], match="none").runs
    cost = model_cost(attention.task, attention.backbone)
    assert target_size(run, Matching()) == cost.parameters
    assert target_size(run, Matching("flops")) == cost.flops
    for number in ("90000", "9e4", "90_000"):
        assert planned(mixers=["retnet"], match=f"params:{number}").matches[0].target == 90_000
    with pytest.raises(
        ValueError, match=r"retnet on mqar cannot be brought to 100 parameters: the nearest GLU width, 1"
    ):
        planned(mixers=["retnet"], match="params:100")
    with pytest.raises(ValueError, match=r"has no channel mixer, so its width cannot be solved for; remedy: --match"):
        planned(mixers=["gla"], set={"backbone.channel_mixer": None})


def test_a_mixer_that_cannot_be_matched_is_left_out_and_the_others_go_on():
    """RetNet's projections alone have more parameters than the target."""
    mixers = ["hgrn1", "gla", "retnet"]
    found = planned(mixers=mixers, match="params:66000")
    assert [run.backbone.label for run in found.runs] == ["hgrn1", "gla"]
    (told,) = map(str, found.left_out)
    assert told.startswith("retnet on mqar is left out: retnet on mqar cannot be brought to 66,000 parameters: ")
    varied = planned(mixers=mixers, match="params:66000", vary={"train.lr": [0.1, 0.2], "train.steps": [1, 2]})
    assert list(map(str, varied.left_out)) == [told], "one sentence for all of a mixer's cells"
    both = r"^gla on mqar cannot .* --match none; and retnet on mqar cannot .* --match none$"
    with pytest.raises(ValueError, match=both):
        planned(mixers=["gla", "retnet"], match="params:100")
    with pytest.raises(ValueError, match=r"^unknown mixer 'gal'; did you mean gla\?"):
        planned(match="params:gal")


@pytest.mark.parametrize("solve", ["width", "depth"])
def test_a_width_or_depth_too_far_from_the_target_is_no_match(solve):
    found = planned(mixers=["attention", "hgrn2"], match="state:hgrn2", solve=solve)
    (match,) = found.matches
    assert match.run.backbone.label == "hgrn2" and match.mismatch == 0
    size = {"width": 8, "depth": 1}[solve]
    told = f"attention on mqar cannot be brought to {match.target:,} bytes of state: the nearest {solve}, {size}, "
    assert found.left_out[0].reason.startswith(told)
    assert found.left_out[0].reason.endswith("%, at most 20%); remedy: another target, or --match none")


def test_a_vector_state_is_not_matched_to_a_cache():
    """Four layers of the widest model allowed, of one number a channel, are a quarter of 1 MiB."""
    with pytest.raises(ValueError, match=r"the nearest width, 16384, gives 262,144 \(-75%, at most 20%\)"):
        planned(mixers=["hgrn1"], tasks=["lm"], match="state:1048576", set={"model.depth": 4, "mixer.complex": False})


@pytest.mark.parametrize("quantity", ["params", "flops"])
@pytest.mark.parametrize("solve", ["width", "depth"])
def test_four_layers_of_width_128_are_fine_enough_for_every_mixer(quantity, solve):
    found = planned(match=quantity, solve=solve, set={"backbone.dim": 128, "backbone.depth": 4})
    assert not found.left_out and max(abs(match.mismatch) for match in found.matches) < 0.1


def test_flops_are_those_of_the_formulas():
    """A language model has its stack's FLOPs, and the head's 2 T D V."""
    for run in planned(match="none").runs:
        model = run.task.build_model(run.backbone)
        tokens, flops = run.task.cost(model)
        assert (tokens, flops) == (16, model.stack.flops(16) + 2 * 16 * 64 * 20)


def test_a_dry_run_prices_every_run():
    found = planned(mixers=["hgrn2", "gla"], seeds=3, vary={"mixer.expand": [8, 16]}, tune={"train.lr": [1e-3, 1e-2]})
    table, seconds = cost_table(found)
    assert [str(column.header) for column in table.columns][:4] == ["run", "mixer.expand", "train.lr", "mismatch"]
    assert table.row_count == 6 and seconds > 0
    assert "then 6 further seeds with what the search chose" in summary(found, seconds, 2)
    cost = model_cost(found.runs[0].task, found.runs[0].backbone)
    assert cost.training_flops(found.runs[0]) == 3 * cost.flops * 32 * found.runs[0].train.steps


def test_a_dry_run_prices_every_arm_whose_trials_are_yet_to_be_drawn():
    search = {"tune": {"train.lr": "1e-4..1e-1"}, "search": "asha", "trials": 4}
    found = planned(mixers=["hgrn2", "gla"], seeds=2, **search)
    table, seconds = cost_table(found)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["mqar-hgrn2-s0, 4 trials", "mqar-gla-s0, 4 trials"] and cells[1] == ["0.0001..0.1"] * 2
    assert summary(found, seconds, 2).startswith("8 trials, at most about ")
    assert describe(found) == "8 trials, 4 an arm, then 2 runs with what they choose"


def test_trials_are_counted_on_every_seed_that_a_choice_is_made_on(tmp_path):
    found = planned(mixers=["hgrn2", "gla"], seeds=3, tune={"train.lr": [1e-3, 1e-2]}, choose_on=2)
    assert describe(found) == "8 trials, 4 an arm, then 2 runs with what they choose"
    assert expected(found, Store(tmp_path))[0] == len(found.trials) + found.later == 10


def test_what_is_too_large_to_try_is_not_tried():
    (run,) = planned(mixers=["gla"], set={"train.batch_size": 10**9}, match="none").runs
    assert estimate_seconds(run) is None
    table, _ = cost_table(planned(mixers=["gla"], set={"train.batch_size": 10**9}, match="none"))
    assert table.caption == "1 run too large to try: no time is counted for them"
