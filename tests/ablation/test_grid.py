"""Laws of grids say: every combination comes once, a setting reaches what has it, a mistake is explained."""

from __future__ import annotations

import pytest

from mixerzoo import list_mixers
from mixerzoo.ablation.question.grid import Grid, expand, read_grid
from mixerzoo.ablation.question.plan import plan
from mixerzoo.ablation.question.settings import Axis, Setting
from mixerzoo.ablation.question.studies import list_studies, read_question

TINY = {"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}


def runs(**question):
    return expand(Grid.of(**{"mixers": ["gla"], "tasks": [TINY], "seeds": 1, "match": "none", **question}))


def test_a_grid_is_every_combination_one_seed_after_the_other():
    found = runs(mixers=["gla", "hgrn2+attention"], tasks=["mqar", "lm"], seeds=[0, 1])
    assert [(run.seed, run.task.name, run.backbone.label) for run in found] == [
        (seed, task, mixer) for seed in (0, 1) for task in ("mqar", "lm") for mixer in ("gla", "hgrn2+attention")
    ]
    assert len({run.run_id for run in found}) == 8


def test_axes_multiply():
    found = runs(vary={"train.lr": [0.1, 0.2], "backbone.depth": [1, 2, 3]}, seeds=[5])
    assert [(run.train.lr, run.backbone.depth) for run in found] == [(lr, d) for lr in (0.1, 0.2) for d in (1, 2, 3)]
    assert {run.seed for run in found} == {5}


def test_a_mixers_keyword_reaches_the_mixers_that_have_it():
    found = runs(mixers=["hgrn2", "gla", "gla+hgrn2"], vary={"mixer.expand": [8, 16]})
    asked = [(run.backbone.label, run.backbone.mixer) for run in found]
    assert [label for label, _ in asked] == ["hgrn2", "gla", "gla+hgrn2", "hgrn2", "gla+hgrn2"]
    assert [mixer["expand"] for label, mixer in asked if label == "hgrn2"] == [8, 16]
    assert [
        (gla.get("expand"), hgrn2["expand"])
        for label, (gla, hgrn2) in ((label, mixer) for label, mixer in asked if label == "gla+hgrn2")
    ] == [(None, 8), (None, 16)]


def test_a_tasks_field_reaches_the_tasks_that_have_it():
    found = runs(tasks=["mqar", "lm"], vary={"task.num_pairs": [2, 4]})
    assert [(run.task.name, getattr(run.task, "num_pairs", None)) for run in found] == [
        ("mqar", 2),
        ("mqar", 4),
        ("lm", None),
    ]


@pytest.mark.parametrize("scope", ["mqar", "diagnostics/mqar"])
def test_settings_reach_the_runs_they_name(scope):
    settings = {"train.lr": 1, "gla:train.lr": 2, f"{scope}:train.steps": 7}
    found = runs(mixers=["gla", "retnet"], tasks=["mqar", "lm"], set=settings)
    assert {(run.task.name, run.backbone.label): (run.train.lr, run.train.steps == 7) for run in found} == {
        ("mqar", "gla"): (2, True),
        ("mqar", "retnet"): (1, True),
        ("lm", "gla"): (2, False),
        ("lm", "retnet"): (1, False),
    }


def test_a_tasks_keywords_go_to_the_mixers_that_are_capable_of_them():
    asked = {run.backbone.label: run.backbone.mixer.get("short_conv") for run in runs(mixers=list_mixers())}
    assert asked == {"attention": None, "gla": 4, "hgrn1": 4, "hgrn2": 4, "retnet": 4}


def test_short_forms_mean_the_long_ones():
    short = runs(mixers=["hgrn2"], set={"mixer.expand": 8, "model.depth": 1, "optimizer.lr": 0.5})
    long = runs(mixers=["hgrn2"], set={"backbone.mixer.expand": 8, "backbone.depth": 1, "train.lr": 0.5})
    assert [run.run_id for run in short] == [run.run_id for run in long]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"mixers": ["gal"]}, r"unknown mixer 'gal'; did you mean gla\?"),
        ({"mixers": []}, "a grid needs at least one mixer"),
        ({"tasks": []}, "a grid needs at least one task"),
        ({"seeds": []}, "a grid needs at least one seed"),
        ({"mixers": "gla"}, "mixers must be a list of names, got 'gla'"),
        ({"mixer": ["gla"]}, r"unknown key of a grid 'mixer'; did you mean mixers"),
        ({"set": {"train.stesp": 3}}, r"unknown configuration key 'train.stesp'; did you mean train.steps"),
        ({"set": {"retnet:train.steps": 3}}, r"retnet:train.steps fits no run; known prefixes here: diagn"),
        ({"set": {"lr": 1}}, r"unknown setting 'lr'; did you mean train.lr\?"),
        ({"set": {"mixer.0.num_heads": 1}}, r"unknown setting 'mixer.0.num_heads'; did you mean mixer.num_heads\?"),
        ({"set": {"seed": 3}}, r"seed is no setting; remedy: --seeds, or seeds in a question file"),
        ({"vary": {"mixer": ["gla"]}}, r"backbone.mixer is no setting; remedy: --mixers"),
        ({"vary": {"task": ["lm"]}}, r"task is no setting; remedy: --tasks"),
        ({"vary": {"mixer.num_heads": 4}}, r"mixer.num_heads must be a list of values, got 4"),
        ({"vary": ["mixer.num_heads=4"]}, r"vary must be a table of paths and values, got \['mixer"),
        ({"tasks": "mqar"}, r"tasks must be a list of names and tables, got 'mqar'"),
        ({"seeds": 2.0}, r"seeds must be a count or a list, got 2.0"),
        ({"match": None}, r"match must be a text such as .*, got None"),
        ({"match": "params:0"}, r"the params to match must be at least 1, got 0"),
        ({"tune": {"train.lr": 1e-3}}, r"train.lr needs a list of values or a range such as 1e-4..1e-1, got 0.001"),
        ({"tune": {"train.lr": [1, 2]}, "vary": {"optimizer.lr": [1, 2]}}, r"train.lr is both varied and tuned"),
        ({"tune": {"train.lr": [1, 2]}, "choose_on": 2}, r"a choice on 2 seeds needs as many, got 1"),
        ({"tune": {"train.lr": [1, 2]}, "search": "asha", "choose_on": 2, "seeds": 2}, r"it chooses on one, got 2"),
        ({"vary": {"mixer.num_heds": [1]}}, r"unknown setting 'mixer.num_heds'; did you mean mixer.num_heads"),
        ({"vary": {"mixer.expand": [1]}}, r"unknown setting 'mixer.expand'; did you mean mixer.expand_v"),
        ({"vary": {"task.lenght": [1]}}, r"unknown setting 'task.lenght'; did you mean task.length"),
        ({"vary": {"train.lr": []}}, r"train.lr needs at least one value"),
        ({"vary": {"train.lr,train.steps": [1, 2]}}, r"values of train.lr,train.steps must be lists of 2, one for"),
        ({"vary": {"train.lr,train.steps": [[1]]}}, r"must be lists of 2, one for each, got \[1\]"),
        ({"vary": {"train.lr,optimizer.lr": [[1, 1]]}}, r"train.lr,optimizer.lr sets something twice"),
        ({"vary": {"train.lr,task.lenght": [[1, 1]]}}, r"unknown setting 'task.lenght'; did you mean task.length"),
        ({"vary": {"train.lr,train.steps": [[1, 1]], "train.lr": [1]}}, r"train.lr set the same; remedy: one axis"),
        ({"tune": {"train.lr": [1]}, "vary": {"train.steps,train.lr": [[1, 1]]}}, r"train.lr is both varied and tuned"),
        ({"match": "parms"}, r"unknown quantity to match 'parms'; did you mean params"),
        ({"match": "params:"}, r"--match params: names no reference; remedy: params:MIXER or params:NUMBER"),
        ({"match": "none", "solve": "width"}, r"nothing is matched, so there is no width to solve for; remedy: leave"),
        ({"match": "state", "solve": "glu"}, r"the state doesn't depend on the GLU; remedy: --solve width"),
        ({"baseline": "retnet"}, r"the baseline must be one of the mixers gla, got 'retnet'"),
        ({"tune": {"mixer.num_heads": [1, 2]}}, r"only settings of the training can be tuned"),
        ({"tune": {"train.lr": "1e-3..1e-2"}}, r"a grid search needs lists of values, got a range for train.lr"),
        ({"tune": {"train.lr": "1e-3..1e-2"}, "search": "asha"}, r"needs a number of trials; remedy: --trials 8"),
        ({"tune": {"train.lr": "1e-2..1e-3"}, "search": "asha", "trials": 2}, r"a range with 0 < low < high"),
        ({"tune": {"train.lr": [1, 2]}, "trials": 2}, r"listed values are tried once each"),
        ({"search": "asha"}, r"nothing is tuned; remedy: tune.train.lr"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(question, message):
    with pytest.raises(ValueError, match=message):
        runs(**question)


@pytest.mark.parametrize("tried", [["a"], "8..64"])
def test_values_that_cannot_be_tuned_are_told_before_anything_runs(tried):
    search = {"search": "asha", "trials": 2} if isinstance(tried, str) else {}
    remedy = "; remedy: a list of values" if isinstance(tried, str) else ""
    with pytest.raises(ValueError, match=f"train.batch_size must be int, got .*{remedy}"):
        plan(Grid.of(mixers=["gla"], tasks=[TINY], seeds=1, tune={"train.batch_size": tried}, **search))


def test_a_place_in_a_pattern_is_set_there_alone_and_not_in_the_model_that_is_matched():
    pattern = "hgrn2+attention+hgrn2"
    (found,) = plan(Grid.of(mixers=[pattern], tasks=[TINY], seeds=1, set={"mixer.2.expand": 8})).runs
    assert [mixer.get("expand") for mixer in found.backbone.mixer] == [16, None, 8]


def test_the_last_axis_of_a_path_holds_whatever_its_spelling():
    found = runs(vary={"optimizer.lr": [0.1, 0.2], "train.lr": [0.3]})
    assert [run.train.lr for run in found] == [0.3]
    found = runs(vary={"train.lr,train.steps": [[0.1, 1]], "train.steps, optimizer.lr": [[2, 0.2]]})
    assert [(run.train.lr, run.train.steps) for run in found] == [(0.2, 2)]


def test_settings_that_go_together_make_one_axis():
    vary = {"task.length, gla:train.steps": [[8, 5], [16, 9], [16, 9]], "backbone.depth": [1, 2]}
    found = runs(mixers=["gla", "hgrn2"], vary=vary)
    assert {(run.backbone.label, run.task.length, run.backbone.depth, run.train.steps) for run in found} == {
        ("gla", 8, 1, 5),
        ("gla", 8, 2, 5),
        ("gla", 16, 1, 9),
        ("gla", 16, 2, 9),
        *(("hgrn2", length, depth, 900) for length in (8, 16) for depth in (1, 2)),
    }
    question = Grid.of(mixers=["gla", "hgrn2"], tasks=[TINY], vary=vary)
    assert question.to_dict()["vary"]["task.length,gla:train.steps"] == [[8, 5], [16, 9]]
    assert Grid.of(**question.to_dict()) == question
    assert Axis.parse("task.length,gla:optimizer.steps=[8,5],[16,9]") == question.vary[0]


def test_axes_are_read_as_values():
    assert Axis.parse("mixer.expand=16,64") == Axis.of("backbone.mixer.expand", [16, 64])
    assert Axis.parse("x:backbone.lower_bounds=skip_first,null").cases == (
        (Setting("backbone.lower_bounds", "skip_first", "x"),),
        (Setting("backbone.lower_bounds", None, "x"),),
    )
    assert Axis.parse("train.betas=[0.9, 0.95],[0.9, 0.99]").values == [[0.9, 0.95], [0.9, 0.99]]
    assert Axis.parse("train.lr=1e-3,1e-3").values == [1e-3]
    assert str(Setting.parse("gla:backbone.mixer.num_heads=2")) == "gla:mixer.num_heads"


def test_a_question_file_is_the_same_as_its_keywords(tmp_path):
    file = tmp_path / "question.toml"
    file.write_text(
        'mixers = ["hgrn2", "gla"]\ntasks = ["lm", {name = "mqar", num_pairs = 2}]\nseeds = [3]\nset.train.steps = 9\n'
        'set."gla:train.lr" = 0.5\n[vary]\nmixer.expand = [8, 16]\n[tune]\ntrain.lr = [1e-3, 1e-2]\n'
    )
    keywords = {
        "mixers": ["hgrn2", "gla"],
        "tasks": ["lm", {"name": "mqar", "num_pairs": 2}],
        "seeds": [3],
        "set": {"train.steps": 9, "gla:train.lr": 0.5},
        "vary": {"mixer.expand": [8, 16]},
        "tune": {"optimizer.lr": [1e-3, 1e-2]},
    }
    assert Grid.of(**read_grid(file)) == Grid.of(**keywords) == Grid.of(**Grid.of(**keywords).to_dict())
    file.write_text("mixers = [")
    with pytest.raises(ValueError, match=r"question.toml' is not TOML: "):
        read_grid(file)
    with pytest.raises(ValueError, match=r"cannot read the question '.*missing.toml': No such file"):
        read_grid(tmp_path / "missing.toml")


def test_null_stands_for_nothing():
    asked = Grid.of(mixers=["hgrn1"], tasks=[TINY], vary={"backbone.lower_bounds": ["null", "random"]})
    assert [run.backbone.lower_bounds for run in expand(asked)[:2]] == [None, "random"]
    assert asked.to_dict()["vary"] == {"backbone.lower_bounds": [None, "random"]}


def test_a_value_that_a_mixer_refuses_is_left_out_and_told():
    planned = plan(Grid.of(mixers=["hgrn2", "gla"], tasks=[TINY], vary={"mixer.expand": [16, 128]}, seeds=2))
    assert [(run.backbone.label, run.backbone.mixer.get("expand"), run.seed) for run in planned.runs] == [
        ("hgrn2", 16, 0),
        ("gla", None, 0),
        ("hgrn2", 16, 1),
        ("gla", None, 1),
    ]
    told = "hgrn2 on mqar with mixer.expand=128 is left out: expand must divide dim=64, got 128"
    assert list(map(str, planned.left_out)) == [told]
    pattern = plan(Grid.of(mixers=["hgrn2+gla"], tasks=[TINY], vary={"mixer.expand": [16, 128]}, seeds=1))
    assert str(pattern.left_out[0]).startswith("hgrn2+gla on mqar with mixer.expand=128 is left out: ")
    with pytest.raises(ValueError, match="expand must divide dim=64, got 128"):
        plan(Grid.of(mixers=["hgrn2"], tasks=[TINY], set={"mixer.expand": 128}))


def test_the_packages_studies_can_be_run():
    studies = list_studies()
    assert set(studies) == {
        *("expansion", "hybrid-ratio", "length", "lower-bound", "mqar-zoology", "recall", "speed", "tied-key")
    }
    for name, asks in studies.items():
        planned = plan(Grid.of(**read_question(name)))
        assert planned.grid.question == asks and not planned.left_out, name
        assert all(abs(found.mismatch) <= 0.01 for found in planned.matches), name
    with pytest.raises(ValueError, match=r"unknown study 'recal'; did you mean recall\?"):
        read_question("recal")


def test_zoologys_grid_is_the_published_one():
    grid = Grid.of(**read_question("mqar-zoology"))
    cells = expand(grid)
    assert (len(cells), grid.search.trials_per_arm) == (5 * 4 * 4, 4)
    assert {run.backbone.dim for run in cells} == {64, 128, 256, 512}
    assert {(run.task.length, run.task.num_pairs) for run in cells} == {(64, 4), (128, 8), (256, 16), (512, 64)}
    for run in cells:
        assert run.train.steps * run.train.batch_size == 64 * 100_000
        assert run.backbone.channel_mixer is None
        if run.backbone.label == "hgrn2":
            assert run.backbone.mixer["expand"] == min(run.backbone.dim, 128)


def test_what_studies_vary_is_what_they_are_about():
    bounds = plan(Grid.of(**read_question("lower-bound"))).runs
    assert {run.backbone.lower_bounds for run in bounds} == {"skip_first", None, "random", "decreasing"}
    expands = {run.backbone.mixer["expand"] for run in plan(Grid.of(**read_question("expansion"))).runs}
    assert expands == {1, 2, 4, 8, 16, 32, 64, 128}
    tied = plan(Grid.of(**read_question("tied-key"))).runs
    states = {
        4 * run.task.state_size(run.task.build_model(run.backbone), 1024) for run in tied if run.task.name == "lm"
    }
    assert len(states) == 1
