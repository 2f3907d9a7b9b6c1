"""Laws of evaluation say: every token is judged once, by its definition, and other programs agree."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mixerzoo.cli import main
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM
from mixerzoo.tasks.lm.build import load_model
from mixerzoo.tasks.lm.data.token_files import Tokens, byte_tokenizer, encode
from mixerzoo.tasks.lm.evaluation import (
    by_position,
    evaluate_text,
    growing,
    plot_lengths,
    score_tasks,
    sliding,
    token_losses,
)
from tests.tolerances import assert_close

from .models import model_of, plain_layers

TEXT = "It was the best of times, it was the worst of times. Ö!\n" * 3
HGRN2 = {"name": "hgrn2", "expand": 8}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Makes a checkpoint with its tokenizer, and a text."""
    byte_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def byte_model() -> MixerForCausalLM:
    config = MixerConfig(HGRN2, vocab_size=257, hidden_size=16, num_hidden_layers=2, max_position_embeddings=16)
    return MixerForCausalLM(config).eval()


def ids_of(length: int) -> np.ndarray:
    return torch.randint(1, 60, (length,)).numpy()


def nats(model: MixerForCausalLM, ids: np.ndarray) -> np.ndarray:
    """Returns the nats of ids[1:], from the logits of one plain call."""
    row = torch.from_numpy(ids)
    return F.cross_entropy(model(row[None, :-1]).logits[0].float(), row[1:], reduction="none").double().detach().numpy()


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert_close(torch.from_numpy(actual).float(), torch.from_numpy(expected).float())


def mixerzoo(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mixerzoo", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    output = capsys.readouterr()
    return exit.value.code or 0, output.out, output.err


@plain_layers
def test_a_tokens_loss_is_that_of_its_logits(mixer, monkeypatch):
    """The same holds if the logits are made in parts that end inside a row."""
    model = model_of(mixer)
    rows = np.stack([ids_of(14), ids_of(14)])
    expected = np.stack([nats(model, row) for row in rows])
    close(token_losses(model, rows), expected)
    monkeypatch.setattr("mixerzoo.tasks.lm.evaluation.LOGITS_AT_ONCE", 5 * model.config.vocab_size)
    close(token_losses(model, rows), expected)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 24, 25, 31])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_sliding_windows_predict_every_token_from_the_first_window_that_holds_it(length, stride, monkeypatch):
    monkeypatch.setattr("mixerzoo.tasks.lm.evaluation.TOKENS_AT_ONCE", 20)
    model, ids, context = model_of(HGRN2), ids_of(length), 8
    losses = sliding(model, ids, context, stride)
    assert losses.shape == (length - 1,)
    for target in range(1, length):
        start = next(s for s in range(0, length, stride) if s < target <= s + context)
        close(losses[target - 1 : target], nats(model, ids[start : target + 1])[-1:])


def test_a_text_without_end_has_no_windows():
    model, ids = model_of(HGRN2), ids_of(21)
    close(sliding(model, ids, 20, 7), nats(model, ids))
    close(growing(model, ids, 20)[0], nats(model, ids))
    close(sliding(model, ids, 5, 5), growing(model, ids, 5).ravel())
    with pytest.raises(ValueError, match="the stride must lie between 1 and the context, 8, got 9"):
        sliding(model, ids, 8, 9)
    with pytest.raises(ValueError, match="the text has 21 tokens, a piece needs 22; remedy: smaller lengths"):
        growing(model, ids, 21)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 100])
def test_positions_are_grouped_without_gaps(length):
    losses = np.random.default_rng(0).normal(size=(3, length))
    groups = by_position(losses)
    assert [group["first"] for group in groups] == [1, *(group["last"] + 1 for group in groups[:-1])]
    assert groups[0]["last"] == 1 and groups[-1]["last"] == length
    total = sum(group["loss"] * (group["last"] - group["first"] + 1) for group in groups)
    close(np.array([total / length]), np.array([losses.mean()]))
    close(np.array([groups[0]["loss"]]), losses[:, :1].mean(0))


def test_an_evaluation_says_all_and_is_drawn(tmp_path):
    model, tokenizer = byte_model(), byte_tokenizer()
    ids = encode(tokenizer, [TEXT], 256)[0]
    results = evaluate_text(model, Tokens(ids, 257, 256, "bytes"), tokenizer)
    assert json.loads(json.dumps(results)) == results
    assert (results["sliding"]["context"], results["sliding"]["stride"]) == (16, 8)
    assert [entry["length"] for entry in results["lengths"]] == [4, 8, 16, 32, 64, 128]
    losses = sliding(model, ids, 16, 8)
    window = results["sliding"]
    assert window["loss"] == losses.mean() and window["perplexity"] == math.exp(losses.mean())
    assert window["bits_per_byte"] == losses.sum() / math.log(2) / (len(TEXT.encode()) - 1)  # the end is no byte
    assert results["growing"]["positions"][-1]["last"] == results["growing"]["length"] == 128
    plot_lengths(results, "a model", tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    short = evaluate_text(model, Tokens(ids, 257, 256, None), None, max_tokens=40, lengths=[10, 5], context=6, stride=6)
    assert short["tokens"] == 40 and "bits_per_byte" not in short["sliding"]
    assert [entry["length"] for entry in short["lengths"]] == [5, 10]
    with pytest.raises(ValueError, match="the text has 2 tokens, the largest 300; the model needs two and knows 257"):
        evaluate_text(model, Tokens(np.array([1, 300]), 301, None, None), None)


def test_checkpoints_of_all_kinds_load_and_others_do_not(tmp_path):
    model = byte_model()
    model.save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model")).config.mixer == model.config.mixer
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="gpt2 has model_type='gpt2'; known: mixerzoo, hgrn"):
        load_model(str(tmp_path / "gpt2"))
    for nowhere in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="there is no checkpoint"):
            load_model(str(nowhere))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), "it lacks lm_head.weight"),
        (lambda tensors: tensors.update(x=torch.ones(1)), "it has unknown x"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "it has misshapen model.norm.weight"),
    ],
)
def test_a_checkpoint_of_ours_is_loaded_whole_or_not_at_all(folder, damage, message):
    weights = folder / "model" / "model.safetensors"
    tensors = load_file(weights)
    damage(tensors)
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"doesn't hold the model of its config.json: {message}"):
        load_model(str(folder / "model"))
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"the weights of .*model are damaged: .*; remedy: fetch them again"):
        load_model(str(folder / "model"))


def test_the_command_evaluates_a_text(folder, capsys, monkeypatch):
    source = f"text:{folder / 'text.txt'}"
    code, out, _ = mixerzoo(capsys, monkeypatch, "eval", "lm", folder / "model", "--data", source, "--lengths", "8,32")
    assert code == 0
    results = json.loads((folder / "model" / "evaluation" / "results.json").read_text())
    expected = sliding(byte_from(folder), encode(byte_tokenizer(), [TEXT], 256)[0], 16, 8)
    close(np.array([results["sliding"]["loss"]]), expected.mean(keepdims=True))
    assert "windows of 16 tokens, 8 apart: perplexity" in out and "pieces of 32 tokens" in out
    assert {path.name for path in (folder / "model" / "evaluation").iterdir()} == {"results.json", "lengths.png"}


def byte_from(folder) -> MixerForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def test_the_command_makes_token_files(folder, capsys, monkeypatch):
    target = folder / "tokens" / "corpus"
    code, out, _ = mixerzoo(capsys, monkeypatch, "data", "tokens", f"text:{folder / 'text.txt'}", target)
    assert code == 0 and f"{len(TEXT.encode()) + 1} tokens" in out
    arguments = (
        "eval",
        "lm",
        folder / "model",
        "--data",
        f"tokens:{target}",
        "--lengths",
        "8",
        "--out",
        folder / "out",
    )
    assert mixerzoo(capsys, monkeypatch, *arguments)[0] == 0
    assert json.loads((folder / "out" / "results.json").read_text())["sliding"]["bits_per_byte"] > 7


def test_the_command_converts_checkpoints(tmp_path, capsys, monkeypatch):
    mixer = {"name": "hgrn2", "expand": 8, "scale": 8**-0.5, "norm": "rms"}
    MixerForCausalLM(
        MixerConfig(mixer, vocab_size=31, hidden_size=16, num_hidden_layers=2, intermediate_size=256)
    ).save_pretrained(tmp_path / "ours")
    ours, theirs, back = (tmp_path / name for name in ("ours", "theirs", "back"))
    for source, target in ((ours, theirs), (theirs, back)):
        code, out, _ = mixerzoo(capsys, monkeypatch, "convert", source, target)
        assert code == 0 and f"written: {target}" in out
    assert json.loads((theirs / "config.json").read_text())["model_type"] == "hgrn2"
    before, after = (load_file(path / "model.safetensors") for path in (ours, back))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    save_file({"x": torch.ones(1)}, theirs / "model.safetensors")
    code, _, err = mixerzoo(capsys, monkeypatch, "convert", theirs, tmp_path / "broken")
    assert code == 2 and err.startswith("error: ") and not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: nothing to evaluate; remedy: --data for a text, for example text:FILE, or --tasks"),
        (["--data", "txt:x"], "error: unknown data 'txt:x'; did you mean text"),
        (
            ["--data", "embedded", "--set", "data.length=9"],
            "error: unknown setting of how a text is read 'data.length'",
        ),
        (["--data", "embedded:x"], "error: embedded is one text and takes no name, got 'embedded:x'"),
        (["--data", "embedded", "--set", "train.lr=1"], "error: unknown setting of how a text is read 'train.lr'"),
        (["--data", "embedded", "--max-tokens", "9", "--lengths", "x"], "error: a length must be a whole number, got"),
        (["--data", "embedded", "--max-tokens", "9", "--lengths", "9"], "error: the text has 9 tokens, a piece needs"),
        (["--data", "embedded", "--max-tokens", "9", "--lengths", "0"], "error: a length must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, monkeypatch, arguments, message):
    code, _, err = mixerzoo(capsys, monkeypatch, "eval", "lm", folder / "model", *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith(message)
    assert not (folder / "model" / "evaluation").exists()


def test_tasks_whose_data_are_not_there_are_explained_and_the_text_is_kept(folder, capsys, monkeypatch):
    (folder / "away.yaml").write_text(
        "task: zoo_away\ndataset_path: json\ndataset_kwargs: {data_files: {test: nowhere.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: a\ndoc_to_target: b\n"
    )
    arguments = ["--tasks", "zoo_aw*", "--include-path", folder, "--data", f"text:{folder / 'text.txt'}"]
    code, _, err = mixerzoo(capsys, monkeypatch, "eval", "lm", folder / "model", *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: cannot read the data of zoo_away: Unable to find")
    written = {path.name for path in (folder / "model" / "evaluation").iterdir()}
    assert written == {"results.json", "lengths.png"}


def test_the_harness_scores_tasks_of_ones_own(tmp_path):
    """EleutherAI's harness runs offline: a multiple choice with an answer the test works out, and a free generation."""
    questions = [{"question": f"{a}+{b}=", "choices": ["1", "2", "34"], "answer": (a + b) % 3} for a, b in
                 ((1, 1), (2, 3), (4, 4), (0, 7), (5, 6))]  # fmt: skip
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    shared = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {tmp_path / "questions.jsonl"}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
    (tmp_path / "choice.yaml").write_text(
        f"task: zoo_choice{shared}output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (tmp_path / "generate.yaml").write_text(
        f'task: zoo_generate{shared}output_type: generate_until\ndoc_to_target: "{{{{choices[0]}}}}"\n'
        "generation_kwargs: {until: ['='], max_gen_toks: 3}\nmetric_list: [{metric: exact_match}]\n"
    )
    model, tokenizer = byte_model(), byte_tokenizer()
    found = score_tasks(model, tokenizer, ["zoo_choice", "zoo_gen*"], include_path=tmp_path, batch_size=2)

    def loglikelihood(question: str, choice: str) -> float:
        ids = np.array(list((question + choice).encode()))
        return -nats(model, ids)[len(question) - 1 :].sum()

    chosen = [np.argmax([loglikelihood(q["question"], choice) for choice in q["choices"]]) for q in questions]
    accuracy = np.mean([choice == q["answer"] for choice, q in zip(chosen, questions, strict=True)])
    assert found["results"]["zoo_choice"]["acc,none"] == accuracy
    assert found["results"]["zoo_generate"]["exact_match,none"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert found["samples"]["zoo_generate"]["effective"] == 5
    with pytest.raises(ValueError, match="lm-evaluation-harness knows no task zoo_chioce; remedy: --include-path"):
        score_tasks(model, tokenizer, ["zoo_chioce"], include_path=tmp_path)
