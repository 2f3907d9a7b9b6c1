"""Laws of tasks, configuration and training say: strict, deterministic, and right about what they claim to measure."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from mixerzoo import list_mixers
from mixerzoo.ablation.question.settings import mixer_config
from mixerzoo.tasks import BackboneConfig, RunConfig, TrainConfig, build_task, list_tasks
from mixerzoo.tasks.config import assign, canonical, flatten, from_dict, parse_setting, parse_values, readable
from mixerzoo.tasks.diagnostics.mqar import MQAR
from mixerzoo.tasks.lm.data.corpus import read_corpus
from mixerzoo.tasks.lm.text import TextLM
from mixerzoo.tasks.models.language_model import IGNORED, LanguageModel
from mixerzoo.tasks.train import Point, fit, learning_rate, parameter_groups

TINY = BackboneConfig(mixer="attention", dim=16, depth=1)
SHORT = TrainConfig(steps=4, batch_size=2, log_every=2, evaluate_every=4)


def small_backbone(mixer: str) -> BackboneConfig:
    return BackboneConfig(mixer_config(mixer, MQAR()), dim=32, depth=2)


def small_task(name: str, tmp_path):
    if name == "vision/digits":
        return build_task(name)
    if name == "mqar":
        return build_task({"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8})
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(256)) * 8)
    return build_task({"name": "lm", "path": str(text), "length": 16, "valid_windows": 4})


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("train.lr=3e-3", ("train.lr", 0.003)),
        ("backbone.mixer.expand=16", ("backbone.mixer.expand", 16)),
        ("task.path=some file.txt", ("task.path", "some file.txt")),
        ("backbone.channel_mixer=null", ("backbone.channel_mixer", None)),
        ("x=true", ("x", True)),
        ("x=a=b", ("x", "a=b")),
        ("train.betas=(0.9, 0.99)", ("train.betas", (0.9, 0.99))),
    ],
)
def test_a_setting_is_a_dotted_path_and_a_value(text, setting):
    assert parse_setting(text) == setting


def test_short_forms_of_paths_and_back():
    assert canonical("mixer.expand") == canonical("backbone.mixer.expand") == "backbone.mixer.expand"
    assert canonical("model.dim") == "backbone.dim" and canonical("optimizer.lr") == "train.lr"
    assert canonical("mixer") == "backbone.mixer" and canonical("task.length") == "task.length"
    assert readable("backbone.mixer.expand") == "mixer.expand" and readable("train.lr") == "train.lr"
    assert parse_values("1, 2") == [1, 2] and parse_values("row,none") == ["row", "none"]


@pytest.mark.parametrize("text", ["train.lr", "=3", ""])
def test_a_malformed_setting_says_what_it_should_look_like(text):
    with pytest.raises(ValueError, match=r"must read path=value, got .*example: train.lr=3e-3"):
        parse_setting(text)


def test_assign_is_undone_by_flatten_and_changes_nothing_in_place():
    values = {"train": {"lr": 1}, "mixer": [{"name": "a"}, {"name": "b"}]}
    changed = assign(assign(values, "train.lr", 2), "mixer.1.expand", 4)
    assert flatten(changed) == {"train.lr": 2, "mixer.0.name": "a", "mixer.1.name": "b", "mixer.1.expand": 4}
    assert values == {"train": {"lr": 1}, "mixer": [{"name": "a"}, {"name": "b"}]}
    with pytest.raises(ValueError, match=r"cannot set train.lr.x: there is no 'x' in 1"):
        assign(values, "train.lr.x", 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stesp": 3}, r"unknown configuration key 'train.stesp'; did you mean train.steps.*known: train.accumulate"),
        ({"steps": "many"}, r"train.steps must be int, got 'many'"),
        ({"steps": True}, r"train.steps must be int, got True"),
        ({"steps": 0}, r"train.steps must be at least 1, got 0"),
        ({"lr": -1.0}, r"train.lr must be at least 0, got -1.0"),
        ({"precision": "fp8"}, r"train.precision must be 'no' or 'bf16' or 'fp16', got 'fp8'"),
        ({"betas": [0.9]}, r"train.betas must be tuple\[float, float\], got \[0.9\]"),
    ],
)
def test_configuration_is_strict(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values, "train")


def test_whole_numbers_are_floats_where_a_float_is_wanted():
    assert isinstance(from_dict(TrainConfig, {"clip": 1}, "train").clip, float)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("mqra", r"unknown task 'mqra'; did you mean mqar\? known: "),
        ({"num_pairs": 4}, r"a task configuration needs a 'name'"),
        ({"name": "mqar", "pairs": 4}, r"unknown configuration key 'task.pairs'"),
        ({"name": "mqar", "length": 63}, r"task.length must be even and at least 4 \* num_pairs = 16, got 63"),
        ({"name": "mqar", "vocab_size": 32}, r"task.vocab_size must be larger than length = 32, got 32"),
    ],
)
def test_task_mistakes_are_explained(task, message):
    with pytest.raises(ValueError, match=message):
        build_task(task)


def test_a_backbone_takes_a_name_a_configuration_or_a_pattern():
    assert BackboneConfig("gla").mixer == BackboneConfig({"name": "gla"}).mixer == {"name": "gla"}
    assert BackboneConfig(["hgrn2", {"name": "attention"}]).label == "hgrn2+attention"
    with pytest.raises(ValueError, match=r"backbone.mixer must be a name, a configuration with a 'name', or a list"):
        BackboneConfig({"expand": 3})


@pytest.mark.parametrize("mixer", ["hgrn2", [{"name": "hgrn2", "expand": 4}, "attention"]])
def test_a_run_survives_its_dictionary_and_keeps_its_id(mixer):
    run = RunConfig(MQAR(num_pairs=2), replace(TINY, mixer=mixer), SHORT, seed=3)
    again = RunConfig.from_dict(run.to_dict())
    assert again == run
    assert again.run_id == run.run_id


def test_the_run_id_depends_on_every_part_and_on_the_data(tmp_path):
    def text_run(content: bytes) -> RunConfig:
        (tmp_path / "text").write_bytes(content)
        return RunConfig(TextLM(path=str(tmp_path / "text"), length=16), TINY, SHORT)

    run = RunConfig(MQAR(), TINY, SHORT)
    variants = [
        run,
        replace(run, seed=1),
        replace(run, task=MQAR(num_pairs=2)),
        replace(run, train=replace(SHORT, lr=1.0)),
        replace(run, backbone=replace(TINY, depth=2)),
        text_run(b"a" * 500),
    ]
    ids = [variant.run_id for variant in variants]
    ids.append(text_run(b"b" * 500).run_id)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", list_tasks())
def test_the_same_seed_gives_the_same_batches_whatever_the_mixer(name, tmp_path):
    """The model's random numbers, their amount and order, never reach the data."""

    def first_batches(mixer: str, seed: int) -> list[torch.Tensor]:
        task = small_task(name, tmp_path)
        torch.manual_seed(seed)
        task.build_model(small_backbone(mixer))
        seen = []
        for batch in islice(task.batches("train", seed=seed, batch_size=3), 4):
            torch.rand(len(mixer))
            seen.append(torch.cat([batch["inputs"].flatten(), batch["labels"].flatten()]))
        return seen

    reference = first_batches("attention", 1)
    for mixer in list_mixers():
        assert all(map(torch.equal, first_batches(mixer, 1), reference)), mixer
    assert not all(map(torch.equal, first_batches("attention", 2), reference))


@pytest.mark.parametrize("name", list_tasks())
def test_the_validation_split_never_changes(name, tmp_path):
    def inputs(seed: int, batch_size: int) -> torch.Tensor:
        batches = small_task(name, tmp_path).batches("valid", seed=seed, batch_size=batch_size)
        return torch.cat([batch["inputs"] for batch in batches])

    assert torch.equal(inputs(0, 2), inputs(5, 3))


def solve_by_hand(inputs: list[int], pairs: int) -> list[int]:
    """Follows MQAR's definition, one token at a time: in the questions' part, a known key is answered by its value."""
    value_of = {inputs[2 * i]: inputs[2 * i + 1] for i in range(pairs)}
    labels = [IGNORED] * len(inputs)
    for position in range(2 * pairs, len(inputs)):
        if position % 2 == 0 and inputs[position] in value_of:
            labels[position] = value_of[inputs[position]]
    return labels


@pytest.mark.parametrize(("length", "pairs"), [(64, 8), (64, 16), (16, 1), (32, 4)])
def test_mqar_agrees_with_a_solver_that_reads_token_by_token(length, pairs):
    task = MQAR(length=length, num_pairs=pairs, vocab_size=80)
    inputs, labels = task.generate(np.random.default_rng(0), 200)
    for row, answers in zip(inputs.tolist(), labels.tolist(), strict=True):
        assert answers == solve_by_hand(row, pairs)
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < 40 for key in keys)
        assert all(40 <= value < 80 for value in values)
        assert sorted(token for token in row[2 * pairs :] if token) == sorted(keys)
        assert sum(answer != IGNORED for answer in answers) == pairs


def test_mqar_gaps_follow_the_power_law():
    """The first drawn key's slot has probability `p(i) ~ i^(a-1)`, as in sequential sampling without replacement."""
    task = MQAR(length=32, num_pairs=2, vocab_size=40)
    inputs, _ = task.generate(np.random.default_rng(1), 20_000)
    slot = (inputs[:, 4::2] == inputs[:, :1]).argmax(1)
    wanted = np.arange(1, 15) ** (task.power - 1)
    assert np.abs(np.bincount(slot, minlength=14) / 20_000 - wanted / wanted.sum()).max() < 0.015


def test_mqar_fillers_may_be_random_and_leave_pairs_and_answers_alone():
    plain, filled = MQAR(), MQAR(random_fillers=True)
    inputs, labels = plain.generate(np.random.default_rng(2), 8)
    noisy, same_labels = filled.generate(np.random.default_rng(2), 8)
    assert (labels == same_labels).all()
    assert (noisy[inputs != 0] == inputs[inputs != 0]).all()
    assert (noisy == 0).mean() < 0.1


def test_speed_is_told_at_every_length():
    task = build_task({"name": "speed", "shortest": 8, "longest": 32, "decoded": 2})
    model = task.build_model(TINY)
    told = task.measure(model, TINY)
    assert set(told.series) == {"training tokens/s", "prefill tokens/s", "decoding tokens/s", "training peak MiB"}
    for series in told.series.values():
        assert [length for length, _ in series.points] == [8, 16, 32] and all(value > 0 for _, value in series.points)
    peaks = [peak for _, peak in told.series["training peak MiB"].points]
    assert peaks == sorted(peaks) and peaks[2] > 2 * peaks[0]
    assert all(parameter.grad is None for parameter in model.parameters())
    (batch,) = task.batches("valid", seed=0, batch_size=64)
    tokens, seconds = task.score(model, batch)
    assert tokens == 32 and seconds > 0
    with pytest.raises(ValueError, match=r"1 <= task.shortest <= task.longest"):
        replace(task, shortest=64)


def test_mqar_splits_share_no_random_stream():
    splits = [next(MQAR().batches(split, seed=0, batch_size=8))["inputs"] for split in ("train", "valid", "test")]
    assert not any(torch.equal(a, b) for a, b in ((splits[0], splits[1]), (splits[0], splits[2]), splits[1:]))
    with pytest.raises(ValueError, match="seed must be from 0 to"):
        next(MQAR().batches("train", seed=2**31, batch_size=1))


def test_the_embedded_corpus_is_english_and_long_enough():
    corpus = read_corpus(None).tobytes()
    assert len(corpus) > 300_000
    assert b"statement" in corpus


def test_text_splits_do_not_overlap_and_labels_are_the_next_bytes(tmp_path):
    task = small_task("lm", tmp_path)
    train = next(task.batches("train", seed=0, batch_size=4))
    assert torch.equal(train["inputs"][:, 1:], train["labels"][:, :-1])
    assert sum(map(len, task._parts.values())) == 256 * 8
    assert len(task._parts["valid"]) == pytest.approx(256 * 8 * 0.05, abs=1)
    assert len(task._parts["test"]) == pytest.approx(256 * 8 * 0.05, abs=1)


def test_text_mistakes_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the text '.*missing': No such file"):
        _ = TextLM(path=str(tmp_path / "missing")).fingerprint
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"the text is too short: its train part has 3 bytes, a window needs 129"):
        _ = TextLM(path=str(tmp_path / "short")).fingerprint
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="the text is too short"):
        _ = TextLM(path=str(tmp_path / "empty")).fingerprint


def test_text_is_measured_in_longer_windows_when_asked(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(256)) * 32)
    task = TextLM(path=str(tmp_path / "text"), length=16, longest=4, valid_windows=8)
    series = task.measure(Counting(), TINY).series["length extrapolation"]
    assert [length for length, _ in series.points] == [16, 32, 64] and series.mark == 16
    assert all(bits == pytest.approx(0.0, abs=1e-6) for _, bits in series.points)
    assert not TextLM(path=str(tmp_path / "text"), length=16).measure(Counting(), TINY).series
    with pytest.raises(ValueError, match=r"its test part has \d+ bytes, a window needs 1025; remedy: .*task.longest"):
        _ = replace(task, longest=64).fingerprint
    with pytest.raises(ValueError, match=r"task.longest must be at least 1 and task.held_out between 0 and 1"):
        replace(task, longest=0)


class Counting(torch.nn.Module):
    """Predicts with certainty that the next byte is one more."""

    def __init__(self) -> None:
        super().__init__()
        self.sure = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.sure * torch.nn.functional.one_hot((ids + 1) % 256, 256)


class Fixed(torch.nn.Module):
    """Returns the logits that it was given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_bits_per_byte_of_a_uniform_model_is_eight(tmp_path):
    batch = next(small_task("lm", tmp_path).batches("valid", seed=0, batch_size=2))
    total, count = TextLM().score(Fixed(torch.zeros(2, 16, 256)), batch)
    assert total / count == pytest.approx(8.0)


def test_accuracy_counts_queries_only():
    batch = {"inputs": torch.zeros(1, 4, dtype=torch.long), "labels": torch.tensor([[IGNORED, 3, IGNORED, 5]])}
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 3, 3, 3]]), 8).float()
    total, count = MQAR().score(Fixed(logits), batch)
    assert (total.item(), count.item()) == (1, 2)


@pytest.mark.parametrize("mixer", list_mixers())
def test_greedy_generation_is_the_argmax_of_the_parallel_forward(mixer):
    torch.manual_seed(0)
    model = LanguageModel.from_backbone(11, small_backbone(mixer)).double()
    prompt = torch.randint(11, (3, 5))
    new = model.generate(prompt, 6)
    full = torch.cat([prompt, new], 1)
    assert torch.equal(model(full)[:, 4:-1].argmax(-1), new)


@pytest.mark.parametrize("mixer", list_mixers())
def test_padding_of_prompts_changes_no_generated_token(mixer):
    torch.manual_seed(0)
    model = LanguageModel.from_backbone(11, small_backbone(mixer)).double()
    prompt = torch.randint(11, (2, 4))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt], 1)
    mask = torch.arange(7).expand(2, 7) >= 3
    assert torch.equal(model.generate(padded, 5, mask=mask), model.generate(prompt, 5))
    assert torch.equal(model.generate(padded.roll(-3, 1), 5, mask=mask.roll(-3, 1)), model.generate(prompt, 5))


def test_sampling_follows_its_generator():
    torch.manual_seed(0)
    model = LanguageModel(11, dim=16, depth=1, mixer="gla")
    prompt = torch.zeros(1, 1, dtype=torch.long)
    draw = [model.generate(prompt, 20, temperature=1.0, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert model.generate(prompt, 0).shape == (1, 0)
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        model.generate(prompt[:, :0], 1)


def test_the_loss_leaves_out_ignored_labels_and_embeddings_tie():
    torch.manual_seed(0)
    model = LanguageModel(11, dim=16, depth=1, mixer="gla")
    assert model.head.weight is model.embedding.weight
    assert LanguageModel(11, 16, 1, "gla", tie_embeddings=False).head.weight is not model.embedding.weight
    ids = torch.randint(11, (2, 6))
    labels = ids.clone()
    labels[:, 3:] = IGNORED
    expected = torch.nn.functional.cross_entropy(model(ids)[:, :3].flatten(0, 1), ids[:, :3].flatten())
    torch.testing.assert_close(model.loss(ids, labels), expected)


@pytest.mark.parametrize("name", list_tasks())
def test_training_is_deterministic_and_reports_every_token(name, tmp_path):
    def run() -> list[Point]:
        task = small_task(name, tmp_path)
        torch.manual_seed(0)
        return list(fit(task.build_model(TINY), task, SHORT, seed=0))

    first, second = run(), run()
    assert [(p.step, p.tokens, p.loss, p.metric) for p in first] == [
        (p.step, p.tokens, p.loss, p.metric) for p in second
    ]
    assert [p.step for p in first] == [2, 4]
    assert first[-1].tokens == 4 * 2 * 16  # windows of 16 bytes, sequences of 16 keys and values, images of 16 patches
    assert first[0].metric is None
    assert first[-1].metric is not None


def test_training_learns(tmp_path):
    """The text repeats all bytes in order, so the next byte is certain."""
    task = small_task("lm", tmp_path)
    config = TrainConfig(steps=40, batch_size=16, lr=1e-2, evaluate_every=40)
    torch.manual_seed(0)
    points = list(fit(task.build_model(small_backbone("hgrn2")), task, config, seed=0))
    assert points[-1].loss < 0.7 * points[0].loss
    assert points[-1].metric < 5


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged():
    task = MQAR(length=16, num_pairs=2, vocab_size=20, valid_sequences=8)
    torch.manual_seed(0)
    model = task.build_model(TINY)
    torch.nn.init.constant_(model.stack.norm.weight, math.inf)
    points = list(fit(model, task, replace(SHORT, steps=100), seed=0))
    assert len(points) == 1
    assert points[0].diverged


def test_the_learning_rate_warms_up_and_decays_to_its_floor():
    config = TrainConfig(steps=100, lr=1.0, warmup=0.1, final_lr=0.2)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_weight_decay_spares_norms_biases_embeddings_and_what_asks_for_it():
    model = LanguageModel(11, dim=16, depth=1, mixer="attention", tie_embeddings=False)
    spared = model.stack.blocks[0].mixer.q_proj.weight
    spared._no_weight_decay = True
    decayed, free = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert len(decayed) + len(free) == len(list(model.parameters()))
    assert {id(spared), id(model.embedding.weight), id(model.stack.norm.weight)} <= free
    assert {id(model.head.weight), id(model.stack.blocks[0].mixer.k_proj.weight)} <= decayed
