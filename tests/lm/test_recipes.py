"""Laws of the recipes for language models say: they build the published models, and they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixerzoo.tasks.lm import MixerForCausalLM
from mixerzoo.tasks.lm.build import model_config
from mixerzoo.tasks.lm.recipe import Training, list_recipes, resolve
from mixerzoo.tasks.lm.training import Trainer

RECIPES = list_recipes()
MILLION = 1e6
PUBLISHED = {  # millions of parameters, as exactly as their sources give them
    "wikitext103_hgrn1": (46.25, 0.005),
    "wikitext103_hgrn2": (44.66, 0.005),
    "pile_hgrn1_150m": (150, 5),
    "pile_hgrn2_150m": (150, 5),
    "pile_hgrn2_350m": (390, 5),
    "pile_hgrn2_1b": (1000, 50),
    "fla_hgrn2_1.3b": (1364.396032, 0),
    "fla_retnet_1.3b": (1351.727104, 0),
    # What flash-linear-attention 0.6 itself counts in the same configuration.
    "fla_gla_340m": (374.475776, 0),
    "fla_gla_1.3b": (1365.514240, 0),
    "fla_hgrn1_1.3b": (1364.396032, 0),
    "fla_hgrn2_340m": (373.916672, 0),
    # The embedding twice, and 24 blocks of 4 D^2, three maps to the GLU and two norms, and a last norm.
    "fla_transformer_340m": ((2 * 32000 + 24 * (4 * 1024 + 3 * 2816 + 2) + 1) * 1024 / MILLION, 0),
    "fla_transformer_1.3b": ((2 * 32000 + 24 * (4 * 2048 + 3 * 5632 + 2) + 1) * 2048 / MILLION, 0),
}
PILE = [name for name in RECIPES if name.startswith("pile")]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_the_published_model(name):
    run = resolve(recipe=name)
    with torch.device("meta"):
        parameters = MixerForCausalLM(model_config(run, vocab_size=1)).num_parameters()
    assert parameters == run.published["parameters_here"]
    millions, uncertainty = PUBLISHED[name]
    assert abs(parameters - millions * MILLION) <= uncertainty * MILLION


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, tmp_path):
    """Its model is narrower and shallower and trains on other text, for two updates: everything else is its own."""
    given = resolve(recipe=name).model
    mixer = given["mixer"] | ({"num_heads": 2} if "num_heads" in given["mixer"] else {})
    mixer |= {"expand": 16} if "expand" in mixer else {}
    glu = given.get("channel_mixer", {}) | {"hidden": 48}
    sizes = [f"model.mixer={mixer}", f"model.channel_mixer={glu}", "model.hidden_size=32", "model.num_hidden_layers=2"]
    vocabulary = ["model.vocab_size=257", "data.valid=null", "data.tokenizer=null", "data.valid_fraction=0.01"]
    batch = ["data.length=32", "train.batch_size=2", "train.grad_accum_steps=1", "train.steps=2", "train.eval_rows=2"]
    trainer = Trainer(resolve(recipe=name, data="embedded", settings=[*sizes, *vocabulary, *batch]), tmp_path, [])
    assert [progress.step for progress in trainer.run()] == [2]
    assert trainer.result["status"] == "done"


@pytest.mark.parametrize("name", ["wikitext103_hgrn1", "wikitext103_hgrn2"])
def test_the_wikitext_recipes_are_their_authors(name):
    run = resolve(recipe=name)
    assert run.train.batch_size * run.data.length == 65_536
    peak = run.train.warmup
    assert run.train.learning_rate(peak) == run.train.lr == 5e-4
    assert run.train.learning_rate(4 * peak) == pytest.approx(2.5e-4)
    assert run.train.learning_rate(peak // 2) == pytest.approx((5e-4 + 1e-7) / 2)
    assert run.train != Training() and run.data.tokenizer == "gpt2"


def test_published_perplexities_are_those_of_the_table():
    published = resolve(recipe="wikitext103_hgrn1").published
    assert (published["validation_perplexity"], published["test_perplexity"]) == (24.14, 24.82)
    assert not any(name.endswith("perplexity") for name in resolve(recipe="wikitext103_hgrn2").published)


@pytest.mark.parametrize("name", PILE)
def test_published_averages_are_averages(name):
    published = resolve(recipe=name).published
    tasks = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
    assert published["average"] == round(sum(published[task] for task in tasks) / 6, 2)


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("wikitext")])
def test_the_large_recipes_see_as_many_tokens_as_they_say(name):
    run = resolve(recipe=name)
    tokens = run.train.steps * run.train.batch_size * run.data.length
    assert round(tokens / 1e9, 2) == (15 if name.endswith("340m") else 100)
    assert Path(run.data.name.removeprefix("tokens:")).name in ("pile", "slimpajama")
