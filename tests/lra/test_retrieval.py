"""Retrieval makes pairs of papers from the released files; its proxy makes pairs of pieces of any documents."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mixerzoo.tasks import BackboneConfig, TrainConfig, build_task
from mixerzoo.tasks.lra.retrieval import SPLITS, Retrieval
from mixerzoo.tasks.lra.retrieval_proxy import RetrievalProxy, help_texts
from mixerzoo.tasks.train import fit

BACKBONE = BackboneConfig("attention", dim=16, depth=1)
COUNTS = {"train": 24, "valid": 6, "test": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


def pairs(split: str) -> list[tuple[int, str, str]]:
    """Writes few papers in many pairs, one of them empty, with quotes and a character that is not ASCII."""
    papers = ["", 'The "parser" of', *(f"Paper {number} — {'on trees ' * number}" for number in range(8))]
    rng = np.random.default_rng(list(COUNTS).index(split))
    return [
        (int(label), papers[first], papers[second])
        for label, first, second in zip(*rng.integers([[2], [10], [10]], size=(3, COUNTS[split])), strict=True)
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "lra" / "tsv_data").mkdir(parents=True)
    for split, name in SPLITS.items():
        lines = [f"{label:.1f}\t{n}\t{n + 1}\t{one}\t{two}\n" for n, (label, one, two) in enumerate(pairs(split))]
        (tmp_path / "lra" / "tsv_data" / name).write_text("".join(lines), encoding="utf-8")
    return tmp_path / "lra"


def rows(task, split: str, limit: int) -> list[tuple[int, list[int], list[int]]]:
    found = []
    for batch in islice(task.batches(split, seed=0, batch_size=4), -(-limit // 4)):
        for ids, mask, label in zip(batch["inputs"], batch["mask"], batch["labels"], strict=True):
            assert not ids[~mask].any()
            found.append((int(label), *(part[valid].tolist() for part, valid in zip(ids, mask, strict=True))))
    return found


@pytest.mark.parametrize("split", ["valid", "test"])
def test_standard_reads_the_lines_as_bytes(folder, split) -> None:
    expected = [
        (label, *([byte + 1 for byte in text.encode() or b" "] for text in texts)) for label, *texts in pairs(split)
    ]
    task = Retrieval(lra_dir=str(folder))
    assert rows(task, split, COUNTS[split]) == expected
    assert task.input_keywords["vocab_size"] == 257


def test_hgrn_reads_printable_characters_and_an_end(folder) -> None:
    def ids(text: str) -> list[int]:
        return [*(ord(c) - 32 + 3 if 32 <= ord(c) < 127 else 1 for c in text or " "), 2]

    task = Retrieval(lra_dir=str(folder), protocol="hgrn")
    assert rows(task, "test", 5) == [(label, ids(one), ids(two)) for label, one, two in pairs("test")]
    assert task.input_keywords["vocab_size"] == 98


def test_an_epoch_has_every_pair_once_and_papers_are_kept_once(folder) -> None:
    task = Retrieval(lra_dir=str(folder))
    assert sorted(rows(task, "train", 24)) == sorted(
        (label, *([byte + 1 for byte in text.encode() or b" "] for text in texts)) for label, *texts in pairs("train")
    )
    texts = {text for _, *both in pairs("train") for text in both}
    assert len(task._data["train"]["starts"]) == len(texts) + 1
    assert isinstance(task._data["train"]["tokens"], np.memmap)


def test_texts_are_cut(folder) -> None:
    for protocol in ("standard", "hgrn"):
        task = Retrieval(lra_dir=str(folder), max_tokens=6, protocol=protocol)
        assert max(max(len(one), len(two)) for _, one, two in rows(task, "train", 24)) == 6


@pytest.mark.parametrize("name", ["lra/retrieval", "lra/retrieval-proxy"])
@pytest.mark.parametrize("head", ["nli", "concat"])
def test_training_runs_and_is_deterministic(folder, name, head) -> None:
    extra = {"lra_dir": str(folder)} if name == "lra/retrieval" else {"max_tokens": 32, "held_out_samples": 10}

    def run() -> tuple:
        task = build_task({"name": name, "head": head, **extra})
        torch.manual_seed(0)
        model = task.build_model(BACKBONE)
        (point,) = fit(model, task, TrainConfig(steps=2, batch_size=4), seed=0)
        return point.loss, point.metric, point.tokens, task.measure(model, BACKBONE).values, task.fingerprint

    assert run() == run()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tsv_data/new_aan_pairs.eval.tsv is missing; remedy: unpack lra_release.gz"),
        ("", r"new_aan_pairs.eval.tsv has no pairs"),
        ("1.0\t1\t2\ta\tb\n1.0\t1\t2\ta\n", r"new_aan_pairs.eval.tsv line 2 must be: label .*; got 4 columns, '1.0"),
        ("2.0\t1\t2\ta\tb\n", r"new_aan_pairs.eval.tsv line 1 must be: label 0.0 or 1.0"),
    ],
)
def test_broken_files_are_named(folder, content, message) -> None:
    file = folder / "tsv_data" / "new_aan_pairs.eval.tsv"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ValueError, match=message):
        _ = Retrieval(lra_dir=str(folder)).fingerprint


def test_without_files_the_proxy_is_named_and_not_taken() -> None:
    with pytest.raises(ValueError, match=r"remedy: task.lra_dir .*or lra/retrieval-proxy, which is another task"):
        _ = Retrieval().fingerprint


def test_a_proxy_pair_is_of_one_document_or_of_two() -> None:
    """The documents themselves are the check: each piece is found in those that it can be from."""
    task = RetrievalProxy(max_tokens=64, held_out_samples=60)
    texts = help_texts()
    for label, one, two in rows(task, "valid", 60):
        assert len(one) == len(two) == 64
        assert one != two
        homes = [{n for n, text in enumerate(texts) if bytes(i - 1 for i in piece) in text} for piece in (one, two)]
        assert bool(homes[0] & homes[1]) == bool(label)


def test_the_proxys_splits_share_no_document_and_labels_are_even() -> None:
    task = RetrievalProxy(held_out_samples=600)
    pieces = {split: {row.tobytes() for d in documents for row in d} for split, documents in task._pieces.items()}
    assert not pieces["train"] & pieces["valid"]
    assert not pieces["train"] & pieces["test"]
    share = np.mean([label for label, *_ in rows(task, "test", 600)])
    assert abs(share - 0.5) < 4 * (0.25 / 600) ** 0.5
    with pytest.raises(ValueError, match="seed must be from 0 to"):
        next(task.batches("train", seed=2**31, batch_size=1))


def test_the_proxy_takes_documents_of_ones_own(tmp_path) -> None:
    for number in range(25):
        (tmp_path / "texts" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / str(number % 3) / f"{number}.txt").write_bytes(bytes([65 + number]) * 100)
    task = RetrievalProxy(documents=str(tmp_path / "texts"), max_tokens=40, held_out_samples=20)
    for label, one, two in rows(task, "test", 20):
        assert (one == two) == bool(label)
    with pytest.raises(ValueError, match="needs at least 20 documents of 120 bytes, got 0; remedy: a smaller"):
        _ = RetrievalProxy(documents=str(tmp_path / "texts"), max_tokens=60).fingerprint
    with pytest.raises(ValueError, match=r"nothing has no .txt files that aren't empty"):
        _ = RetrievalProxy(documents=str(tmp_path / "nothing")).fingerprint


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "lra/retrieval", "head": "dot"}, "unknown task.head 'dot'; known: 'nli', 'concat'"),
        ({"name": "lra/retrieval", "protocol": "s4"}, "unknown task.protocol 's4'"),
        ({"name": "lra/retrieval", "max_tokens": 1}, "task.max_tokens must be at least 2"),
        ({"name": "lra/retrieval-proxy", "held_out_samples": 0}, "task.held_out_samples must be at least 1, got 0"),
    ],
)
def test_mistakes_are_explained(config, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(config)
