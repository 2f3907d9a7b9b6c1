"""Text reads reviews from folders or a data set, as bytes or characters; errors name the file."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mixerzoo.tasks import BackboneConfig, TrainConfig, build_task
from mixerzoo.tasks.lra.characters import character_encoder, frequent_characters
from mixerzoo.tasks.lra.text import Text
from mixerzoo.tasks.train import fit

REVIEWS = {
    (part, name, number): f"{name} review {number} of {part}: café, “film” {'very ' * number}good.<br />"
    for part in ("train", "test")
    for name in ("neg", "pos")
    for number in range(20 if part == "train" else 6)
}
BACKBONE = BackboneConfig("attention", dim=16, depth=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    for (part, name, number), text in REVIEWS.items():
        file = tmp_path / "lra" / "aclImdb" / part / name / f"{number}_7.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "lra"


def seen(task: Text, split: str) -> set[tuple[tuple[int, ...], int]]:
    rows = set()
    for batch in islice(task.batches(split, seed=0, batch_size=4), 10):
        for ids, mask, label in zip(batch["inputs"], batch["mask"], batch["labels"], strict=True):
            assert not ids[~mask].any()
            assert ids[mask].all()
            rows.add((tuple(ids[mask].tolist()), int(label)))
    return rows


def as_bytes(part: str) -> set[tuple[tuple[int, ...], int]]:
    return {
        (tuple(byte + 1 for byte in text.encode()), int(name == "pos"))
        for (where, name, _), text in REVIEWS.items()
        if where == part
    }


def test_standard_reads_bytes_and_holds_a_tenth_of_the_training_reviews_out(folder) -> None:
    task = Text(lra_dir=str(folder))
    train, valid, test = (seen(task, split) for split in ("train", "valid", "test"))
    assert test == as_bytes("test")
    assert train | valid == as_bytes("train")
    assert not train & valid
    assert (len(train), len(valid)) == (36, 4)
    assert task.input_keywords["vocab_size"] == 257


def test_hgrn_reads_characters_and_validates_on_the_test(folder) -> None:
    task = Text(lra_dir=str(folder), protocol="hgrn")
    assert seen(task, "valid") == seen(task, "test")
    assert len(seen(task, "train")) == 40
    assert task.input_keywords["vocab_size"] == 135
    lengths = {len(text) + 1 for (part, *_), text in REVIEWS.items() if part == "test"}
    assert {len(ids) for ids, _ in seen(task, "test")} == lengths
    assert {ids[-1] for ids, _ in seen(task, "test")} == {2}  # a text's end


def test_characters_have_ids_by_their_frequency() -> None:
    texts = ["aab é".encode(), b"aaac"]
    alphabet = frequent_characters(texts, 3, max_tokens=6)
    assert alphabet == "a b"  # of b, c, the blank and é, seen once each, the lower ones
    encode = character_encoder(alphabet, max_tokens=5)
    assert encode("é ba".encode()).tolist() == [0, 3, 4, 2, 1]
    assert encode(b"aaaaaaaa").tolist() == [2, 2, 2, 2, 1]
    assert encode(b"\xff\xfe").tolist() == [0, 0, 1]
    assert frequent_characters([b"aaaaab"], 9, max_tokens=4) == "a"  # what is cut off isn't counted
    assert encode("😀😀😀😀😀😀".encode()).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("protocol", ["standard", "hgrn"])
def test_long_reviews_are_cut(folder, protocol) -> None:
    batch = next(Text(lra_dir=str(folder), max_tokens=10, protocol=protocol).batches("test", seed=0, batch_size=12))
    assert batch["inputs"].shape == (12, 10)
    assert batch["mask"].all()


def test_the_folder_may_be_given_itself(folder) -> None:
    assert Text(lra_dir=str(folder / "aclImdb")).fingerprint == Text(lra_dir=str(folder)).fingerprint


def test_reviews_come_from_a_data_set_as_well(tmp_path, folder, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for part in ("train", "test"):
        rows = [{"text": text, "label": int(n == "pos")} for (p, n, _), text in REVIEWS.items() if p == part]
        (tmp_path / "hub").mkdir(exist_ok=True)
        (tmp_path / "hub" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = Text(hub_name=str(tmp_path / "hub"))
    assert seen(task, "test") == as_bytes("test")
    assert seen(task, "train") | seen(task, "valid") == as_bytes("train")


def test_training_runs_and_measures_the_test(folder) -> None:
    task = build_task({"name": "lra/text", "lra_dir": str(folder), "max_tokens": 40})
    model = task.build_model(BACKBONE)
    points = list(fit(model, task, TrainConfig(steps=2, batch_size=4, evaluate_every=2), seed=0))
    assert points[-1].metric is not None
    measured = task.measure(model, BACKBONE)
    labels = torch.cat([batch["labels"] for batch in task.batches("test", seed=0, batch_size=4)]).double()
    share = float(labels.mean())
    assert measured.values == {"majority class": max(share, 1 - share)}
    assert "Protocol standard. 100% of the training reviews reach 40 tokens" in measured.note


def test_reviews_are_read_once_and_again_when_changed(folder, monkeypatch) -> None:
    first = Text(lra_dir=str(folder))
    assert isinstance(first._data["train"]["tokens"], np.memmap)
    (folder / "aclImdb" / "test" / "pos" / "0_7.txt").write_text("another review altogether")
    assert Text(lra_dir=str(folder)).fingerprint != first.fingerprint
    monkeypatch.setattr("mixerzoo.tasks.lra.text.read_reviews", lambda folder: 1 / 0)
    assert next(Text(lra_dir=str(folder)).batches("test", seed=0, batch_size=2))["labels"].tolist() == [0, 0]


def test_protocols_differ_in_their_fingerprint_and_seeds_in_their_batches(folder) -> None:
    standard, hgrn = (Text(lra_dir=str(folder), protocol=protocol) for protocol in ("standard", "hgrn"))
    assert standard.fingerprint != hgrn.fingerprint
    first, again, other = (next(standard.batches("train", seed=s, batch_size=8))["labels"] for s in (0, 0, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda top: top.rename(top.with_name("other")), r"aclImdb/train/neg is missing; remedy: unpack aclImdb_v1"),
        (lambda top: [f.unlink() for f in (top / "test" / "pos").iterdir()], r"test/pos has no .txt files; remedy"),
        (lambda top: (top / "train" / "neg" / "3_7.txt").write_text(""), r"train/neg/3_7.txt is empty; remedy"),
    ],
)
def test_broken_folders_are_named(folder, break_it, message) -> None:
    break_it(folder / "aclImdb")
    with pytest.raises(ValueError, match=message):
        _ = Text(lra_dir=str(folder)).fingerprint


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"protocol": "s4"}, "unknown task.protocol 's4'; known: 'standard', 'hgrn'"),
        ({"max_tokens": 1}, "task.max_tokens must be at least 2, got 1"),
    ],
)
def test_mistakes_are_explained(keywords, message) -> None:
    with pytest.raises(ValueError, match=message):
        Text(**keywords)
