"""`text.py` uses these runs: models of one size, their learning rates, trainings and tests.

Every run is one of `mixerzoo train lm`, in a folder of its own: a finished run is read from it, a stopped one resumes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mixerzoo import list_mixers
from mixerzoo.tasks.files import read_json, to_json, write_atomically
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM
from mixerzoo.tasks.lm.build import load_model
from mixerzoo.tasks.lm.data.sources import documents
from mixerzoo.tasks.lm.data.text_data import load_tokens
from mixerzoo.tasks.lm.data.token_files import END
from mixerzoo.tasks.lm.evaluation import sliding
from mixerzoo.tasks.lm.recipe import DataConfig, LMRun, Training
from mixerzoo.tasks.lm.training import Trainer, read_history

REFERENCE = "attention"  # its model, with a GLU of 8/3, sets the size of all
SETTINGS = {"hgrn2": {"expand": 64}}  # heads of width 64, as many as the others have
STATE_LENGTH = 1024


@dataclass(frozen=True)
class Sizes:
    vocabulary: int = 4096
    width: int = 256
    depth: int = 4
    heads: int = 4
    length: int = 256
    batch: int = 2
    updates: int = 600
    search_updates: int = 160
    learning_rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    search_seed: int = 0
    seeds: tuple[int, ...] = (1, 2)
    test_tokens: int = 2**16


SMOKE = Sizes(
    vocabulary=300, width=64, depth=1, heads=1, length=32, updates=4, search_updates=2, learning_rates=(1e-3, 1e-2),
    seeds=(1,),
)  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Names the files for training and validation, and of every test by its name: patterns, every file one document."""

    train: str
    valid: str
    tests: dict[str, str]


def read(files: str) -> list[str]:
    return list(documents(DataConfig(), f"text:{files}"))


def make_tokenizer(texts: Texts, sizes: Sizes, runs: Path) -> Path:
    """Learns a tokenizer of byte pairs on the training text. Returns its folder."""
    folder = runs / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=sizes.vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(read(texts.train), trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    return folder


class Comparison:
    """Compares all mixers on the same texts: `search` finds their learning rates, `rows` trains and tests with them."""

    def __init__(self, texts: Texts, sizes: Sizes, runs: Path) -> None:
        self.texts, self.sizes, self.runs = texts, sizes, runs
        self.tokenizer = make_tokenizer(texts, sizes, runs)
        self.models = {mixer: matched(mixer, sizes) for mixer in list_mixers()}

    def search(self) -> list[dict[str, Any]]:
        """Returns the validation loss of every mixer and learning rate; None if it diverged."""
        updates, seed = self.sizes.search_updates, self.sizes.search_seed
        return [
            {
                "mixer": mixer,
                "lr": lr,
                "loss": self._train(mixer, lr, updates, seed, f"search/{mixer}-{lr:g}").get("loss"),
            }
            for mixer in self.models
            for lr in self.sizes.learning_rates
        ]

    def rows(self, search: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns a row for every mixer and seed. All mixers finish a seed before the next one begins."""
        return [self._row(mixer, best(mixer, search), seed) for seed in self.sizes.seeds for mixer in self.models]

    def _row(self, mixer: str, lr: float, seed: int) -> dict[str, Any]:
        name = f"{mixer}-{seed}"
        result = self._train(mixer, lr, self.sizes.updates, seed, name)
        return {
            "mixer": mixer,
            "seed": seed,
            "lr": lr,
            "state_bytes": state_bytes(self.models[mixer]),
            "tests": test(self.runs / name, self.texts, self.sizes),
            **{key: result[key] for key in ("status", "parameters", "tokens", "seconds", "config")},
            "curve": [
                {key: entry[key] for key in ("tokens", "loss", "valid")} for entry in read_history(self.runs / name)
            ],
        }

    def _train(self, mixer: str, lr: float, updates: int, seed: int, name: str) -> dict[str, Any]:
        """Returns a run's result: the run is made, resumed, or read if it is already finished."""
        if (done := read_json(self.runs / name / "result.json")) is not None:
            return done
        trainer = Trainer(self._run(mixer, lr, updates, seed), self.runs / name, sys.argv)
        for progress in trainer.run():
            if progress.valid is not None:
                bits = f"{progress.valid['bits_per_byte']:.4f} bits per byte"
                speed = f"{progress.tokens_per_second:,.0f} tokens/s"
                print(f"{name}: {progress.tokens:,} tokens, {bits}, {speed}", file=sys.stderr, flush=True)
        assert trainer.result is not None
        return trainer.result

    def _run(self, mixer: str, lr: float, updates: int, seed: int) -> LMRun:
        texts, sizes = self.texts, self.sizes
        data = DataConfig(
            name=f"text:{texts.train}", valid=f"text:{texts.valid}", tokenizer=str(self.tokenizer), length=sizes.length
        )
        schedule = Training(
            steps=updates,
            batch_size=sizes.batch,
            lr=lr,
            warmup=updates // 10,
            log_every=max(1, updates // 40),
            eval_every=max(1, sizes.updates // 10),
            save_every=max(1, updates // 4),
            keep=1,
        )
        return LMRun(model=self.models[mixer], data=data, train=schedule, seed=seed)


def best(mixer: str, search: Sequence[dict[str, Any]]) -> float:
    tried = [entry for entry in search if entry["mixer"] == mixer]
    return min(tried, key=lambda entry: math.inf if entry["loss"] is None else entry["loss"])["lr"]


def matched(mixer: str, sizes: Sizes) -> dict[str, Any]:
    """Returns keywords of the mixer's model, with the GLU width that brings it closest to the reference's size.

    Size is affine in that width, so that two counts determine it.
    """
    first, second = (count(keywords(mixer, hidden, sizes)) for hidden in (1, 2))
    target = count(keywords(REFERENCE, None, sizes))
    return keywords(mixer, 1 + round((target - first) / (second - first)), sizes)


def keywords(mixer: str, hidden: int | None, sizes: Sizes) -> dict[str, Any]:
    return {
        "mixer": {"name": mixer, **SETTINGS.get(mixer, {})},
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "intermediate_size": hidden,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": True,
    }


def count(model: dict[str, Any]) -> int:
    with torch.device("meta"):
        return MixerForCausalLM(MixerConfig(**model)).num_parameters()


def state_bytes(model: dict[str, Any]) -> int:
    """Returns the bytes of all layers' states after a sequence of 1,024 tokens, in fp32."""
    with torch.device("meta"):
        built = MixerForCausalLM(MixerConfig(**model))
    return 4 * sum(block.mixer.state_size(STATE_LENGTH) for block in built.model.layers)  # type: ignore[union-attr]


def test(out: Path, texts: Texts, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Scores the run's model on every test. A run that diverged has no model and no scores."""
    if (done := read_json(out / "tests.json")) is not None or not (out / "model").exists():
        return done or {}
    model, scores = load_model(str(out / "model")).eval(), {}
    for name, files in texts.tests.items():
        ids, size = excerpt(files, out / "model", sizes)
        scores[name] = score(float(sliding(model, ids, sizes.length, sizes.length).sum()), size)
    write_atomically(out / "tests.json", to_json(scores))
    return scores


def excerpt(files: str, tokenizer: Path, sizes: Sizes) -> tuple[np.ndarray, dict[str, int]]:
    """Returns the first tokens of a test, after an end of text, and the size of their text."""
    tokens, known = load_tokens(DataConfig(tokenizer=str(tokenizer)), f"text:{files}")
    assert known is not None and tokens.end is not None
    ids = np.asarray(tokens.ids[: sizes.test_tokens])
    parts = np.split(ids, np.flatnonzero(ids == tokens.end))
    size = measure([str(known.decode(part.tolist(), skip_special_tokens=True)) for part in parts])
    return np.append(np.asarray([tokens.end], ids.dtype), ids), size


def score(nats: float, size: dict[str, int]) -> dict[str, float]:
    return {
        "word_perplexity": math.exp(nats / size["words"]),
        "bits_per_byte": nats / math.log(2) / size["bytes"],
    }


def measure(texts: Sequence[str]) -> dict[str, int]:
    """Counts bytes and words. As in WikiText's own count, ends of lines are words too."""
    return {
        "bytes": sum(len(text.encode()) for text in texts),
        "words": sum(len(text.split()) + text.count("\n") for text in texts),
    }


def token_counts(texts: Texts, tokenizer: Path) -> np.ndarray:
    """Returns the count of every token in the training text."""
    tokens, _ = load_tokens(DataConfig(tokenizer=str(tokenizer)), f"text:{texts.train}")
    return np.bincount(tokens.ids, minlength=tokens.vocab_size)


def frequencies(counts: np.ndarray, texts: Texts, tokenizer: Path, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Scores token frequencies alone on every test; each token's count is one more than in the text."""
    counts = counts + 1
    nats = np.log(counts.sum()) - np.log(counts)
    found = {name: excerpt(files, tokenizer, sizes) for name, files in texts.tests.items()}
    return {name: score(float(nats[ids[1:]].sum()), size) for name, (ids, size) in found.items()}
