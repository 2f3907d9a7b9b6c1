"""The tasks ListOps and Pathfinder are generated or read from the released layout; errors name the file."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from mixerzoo.tasks import BackboneConfig, TrainConfig, build_task
from mixerzoo.tasks.lra.listops import ListOps
from mixerzoo.tasks.lra.listops_generator import SYMBOLS, TreeShape, write_listops
from mixerzoo.tasks.lra.pathfinder.image_files import write_pathfinder
from mixerzoo.tasks.lra.pathfinder.tasks import Pathfinder
from mixerzoo.tasks.train import fit

SHORT = TreeShape(max_depth=3, max_args=3, min_length=3, max_length=14)
GENERATED = {"min_length": 3, "max_length": 14, "max_depth": 3, "max_args": 3, "held_out_samples": 40}
SMALL = {"resolution": 16, "contour_length": 3, "samples": 40}
BACKBONE = BackboneConfig("attention", dim=16, depth=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def listops_dir(tmp_path):
    write_listops(tmp_path / "lra", 200, shape=SHORT, workers=1)
    return tmp_path / "lra"


@pytest.fixture
def pathfinder_dir(tmp_path):
    write_pathfinder(tmp_path / "lra", 16, 40, contour_length=3, workers=1)
    return tmp_path / "lra"


def small(name: str):
    return build_task({"name": name, **(GENERATED if name == "lra/listops" else SMALL)})


@pytest.mark.parametrize("name", ["lra/listops", "lra/pathfinder"])
def test_the_seed_alone_decides_the_batches(name) -> None:
    def first(seed: int) -> list[torch.Tensor]:
        return [
            part
            for batch in islice(small(name).batches("train", seed=seed, batch_size=5), 12)
            for part in batch.values()
        ]

    assert all(map(torch.equal, first(1), first(1)))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first(1), first(2), strict=True))


@pytest.mark.parametrize("name", ["lra/listops", "lra/pathfinder"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_held_out_splits_are_fixed_and_differ(name, split) -> None:
    def labels(which: str, batch_size: int) -> torch.Tensor:
        return torch.cat([batch["labels"] for batch in small(name).batches(which, seed=0, batch_size=batch_size)])

    assert torch.equal(labels(split, 3), labels(split, 16))
    inputs = [next(small(name).batches(which, seed=0, batch_size=4))["inputs"] for which in ("valid", "test")]
    assert inputs[0].shape != inputs[1].shape or not torch.equal(*inputs)


@pytest.mark.parametrize("name", ["lra/listops", "lra/pathfinder"])
def test_training_runs_and_is_deterministic(name) -> None:
    def run() -> list:
        task = small(name)
        torch.manual_seed(0)
        config = TrainConfig(steps=2, batch_size=4, log_every=1, evaluate_every=2)
        return [(p.loss, p.metric, p.tokens) for p in fit(task.build_model(BACKBONE), task, config, seed=0)]

    assert run() == run()


def test_listops_batches_are_the_lines_of_the_file(listops_dir) -> None:
    task = ListOps(lra_dir=str(listops_dir))
    (batch,) = task.batches("valid", seed=0, batch_size=64)
    lines = (listops_dir / "listops-1000" / "basic_val.tsv").read_text().splitlines()[1:]
    assert len(lines) == len(batch["labels"]) == 4
    for line, ids, mask, label in zip(lines, batch["inputs"], batch["mask"], batch["labels"], strict=True):
        source, answer = line.split("\t")
        words = [word.replace("]", "X") for word in source.split() if word not in "()"]
        assert [SYMBOLS[token - 1] for token in ids[mask].tolist()] == words
        assert not ids[~mask].any()
        assert int(answer) == label


def test_an_epoch_of_listops_has_every_line_once(listops_dir) -> None:
    task = ListOps(lra_dir=str(listops_dir))
    batches = list(islice(task.batches("train", seed=3, batch_size=16), 12))  # 192 lines
    seen = [
        tuple(ids[mask].tolist()) for batch in batches for ids, mask in zip(batch["inputs"], batch["mask"], strict=True)
    ]
    assert len(set(seen)) == len(seen) == 192


def test_long_expressions_are_cut(listops_dir) -> None:
    batch = next(ListOps(lra_dir=str(listops_dir), max_tokens=5).batches("valid", seed=0, batch_size=64))
    assert batch["inputs"].shape[1] == 5


@pytest.mark.parametrize("from_files", [False, True])
def test_listops_baselines_agree_with_counting(listops_dir, from_files) -> None:
    task = ListOps(lra_dir=str(listops_dir)) if from_files else ListOps(**{**GENERATED, "held_out_samples": 300})
    batches = list(task.batches("test", seed=0, batch_size=50))
    labels = torch.cat([batch["labels"] for batch in batches]).tolist()
    roots = torch.cat([batch["inputs"][:, 0] for batch in batches]).tolist()
    values = task.measure(task.build_model(BACKBONE), BACKBONE).values
    assert values["majority class"] in {labels.count(answer) / len(labels) for answer in range(10)}
    by_root = sum(
        max(values_of.count(answer) for answer in range(10))
        for root in set(roots)
        for values_of in [[label for r, label in zip(roots, labels, strict=True) if r == root]]
    )
    assert values["majority class"] <= values["root operator"] <= by_root / len(labels)


def test_full_length_baselines_are_the_published_ones() -> None:
    """The root operator scores 36.2 %, the majority class 17.0 %, at the published lengths."""
    task = ListOps(min_length=500, max_length=2000, max_depth=10, max_args=10, held_out_samples=2000)
    majority, root = task.baselines
    error = 4 * (0.36 * 0.64 / 2000) ** 0.5
    assert abs(root - 0.362) < error
    assert abs(majority - 0.170) < error


def test_pathfinder_batches_are_the_images(pathfinder_dir) -> None:
    task = Pathfinder(lra_dir=str(pathfinder_dir), **SMALL)
    batches = [next(task.batches(split, seed=0, batch_size=64)) for split in ("valid", "test")]
    folder = pathfinder_dir / "pathfinder16" / "curv_contour_length_3"
    lines = [line.split() for line in (folder / "metadata" / "0.npy").read_text().splitlines()]
    inputs, labels = (torch.cat([batch[part] for batch in batches]) for part in ("inputs", "labels"))
    assert inputs.shape == (8, 256, 1)
    for line, pixels, label in zip(lines[32:], inputs, labels, strict=True):
        image = np.asarray(Image.open(folder / line[0] / line[1]))
        assert np.array_equal(np.round(pixels.numpy().reshape(16, 16) * 255), image)
        assert int(line[3]) == label


def test_batches_of_metadata_are_read_in_the_order_of_their_numbers(pathfinder_dir) -> None:
    folder = pathfinder_dir / "pathfinder16" / "curv_contour_length_3"
    lines = (folder / "metadata" / "0.npy").read_text().splitlines(keepends=True)
    (folder / "metadata" / "0.npy").write_text("".join(lines[:20]))
    (folder / "metadata" / "10.npy").write_text("".join(lines[30:]))
    (folder / "metadata" / "9.npy").write_text("".join(lines[20:30]))
    labels = Pathfinder(lra_dir=str(pathfinder_dir), **SMALL)._data["labels"]
    assert labels.tolist() == [int(line.split()[3]) for line in lines]


def test_metadata_may_be_the_array_that_the_published_generator_saves(pathfinder_dir) -> None:
    file = pathfinder_dir / "pathfinder16" / "curv_contour_length_3" / "metadata" / "0.npy"
    labels = Pathfinder(lra_dir=str(pathfinder_dir), **SMALL)._data["labels"].tolist()
    np.save(file, np.array([line.split() for line in file.read_text().splitlines()]))
    assert Pathfinder(lra_dir=str(pathfinder_dir), **SMALL)._data["labels"].tolist() == labels
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"0.npy is not a whole array of texts"):
        _ = Pathfinder(lra_dir=str(pathfinder_dir), **SMALL)._data


def test_an_empty_image_file_is_left_out(pathfinder_dir) -> None:
    """The archive's pathfinder32/curv_baseline has one."""
    folder = pathfinder_dir / "pathfinder16" / "curv_contour_length_3"
    (folder / "imgs" / "0" / "sample_7.png").write_bytes(b"")
    assert len(Pathfinder(lra_dir=str(pathfinder_dir), **SMALL)._data["labels"]) == 39


def test_data_are_read_once_and_then_memory_mapped(listops_dir, monkeypatch) -> None:
    def forbidden(*arguments):
        raise AssertionError("read again")

    first = ListOps(lra_dir=str(listops_dir)).fingerprint
    monkeypatch.setattr("mixerzoo.tasks.lra.listops.read_listops", forbidden)
    again = ListOps(lra_dir=str(listops_dir))
    assert again.fingerprint == first
    assert isinstance(again._rows("train")["tokens"], np.memmap)


def test_a_changed_file_is_read_again(listops_dir) -> None:
    first = ListOps(lra_dir=str(listops_dir)).fingerprint
    with open(listops_dir / "listops-1000" / "basic_val.tsv", "a") as file:
        file.write("( ( ( [MIN 1 ) 2 ) ] )\t1\n")
    assert ListOps(lra_dir=str(listops_dir)).fingerprint != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"basic_test.tsv is missing; remedy: mixerzoo data listops --out DIR"),
        ("", r"basic_test.tsv line 1 must be the header Source, tab, Target, got ''"),
        ("Source\tTarget\n[MIN 1 2 ]\t1\n[MIN 1 % ]\t1\n", r"basic_test.tsv line 3 has the unknown symbol '%'"),
        ("Source\tTarget\n[MIN 1 2 ]\n", r"basic_test.tsv line 2 must be an expression, a tab and a digit"),
        ("Source\tTarget\n[MIN 1 2 ]\t11\n", r"basic_test.tsv line 2 must be an expression, a tab and a digit"),
        ("Source\tTarget\n", r"basic_test.tsv has no expressions"),
        ("Source\tTarget\n[MIN 1 \xe9 ]\t1\n", r"basic_test.tsv line 2 has the unknown symbol '\ufffd'"),
    ],
)
def test_broken_listops_files_are_named(listops_dir, content, message) -> None:
    file = listops_dir / "listops-1000" / "basic_test.tsv"
    file.unlink() if content is None else file.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        _ = ListOps(lra_dir=str(listops_dir)).fingerprint


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "metadata" / "0.npy").unlink(), r"metadata has no .npy files; remedy: mixerzoo data"),
        (
            lambda folder: (folder / "imgs" / "0" / "sample_5.png").unlink(),
            r"sample_5.png is missing, which .*0.npy line 6",
        ),
        (
            lambda folder: (folder / "imgs" / "0" / "sample_5.png").write_bytes(b"?"),
            r"sample_5.png is not a whole image",
        ),
        (
            lambda folder: (folder / "metadata" / "0.npy").write_text("imgs/0 a.png\n"),
            r"0.npy line 1 must be: folder file",
        ),
        (
            lambda folder: Image.new("L", (8, 16)).save(folder / "imgs" / "0" / "sample_5.png"),
            r"sample_5.png must have 16 x 16 pixels, got 8 x 16",
        ),
        (
            lambda folder: (folder / "metadata" / "0.npy").write_text("imgs/0 sample_5.png 5 1\n"),
            r"metadata must name at least 10 images, for a split of 80 / 10 / 10, got 1",
        ),
    ],
)
def test_broken_pathfinder_files_are_named(pathfinder_dir, break_it, message) -> None:
    break_it(pathfinder_dir / "pathfinder16" / "curv_contour_length_3")
    with pytest.raises(ValueError, match=message):
        _ = Pathfinder(lra_dir=str(pathfinder_dir), **SMALL).fingerprint


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_files_are_found_wherever_the_archive_was_unpacked(tmp_path, listops_dir, pathfinder_dir, depth) -> None:
    nested = tmp_path.joinpath("unpacked", *["lra_release"] * depth)
    nested.parent.mkdir(parents=True, exist_ok=True)
    assert listops_dir == pathfinder_dir
    listops_dir.rename(nested)
    assert ListOps(lra_dir=str(tmp_path / "unpacked")).fingerprint
    assert Pathfinder(lra_dir=str(tmp_path / "unpacked"), **SMALL).fingerprint


def test_images_of_another_size_are_not_taken(pathfinder_dir) -> None:
    with pytest.raises(ValueError, match=r"pathfinder16.*_5.*with the task.resolution and task.contour_length of its"):
        _ = Pathfinder(lra_dir=str(pathfinder_dir)).fingerprint


@pytest.mark.parametrize("field", ["held_out_samples", "max_tokens"])
def test_an_empty_listops_is_refused(field) -> None:
    with pytest.raises(ValueError, match=f"task.{field} must be at least 1, got 0"):
        build_task({"name": "lra/listops", field: 0})


def test_path_x_is_pathfinder_at_128(tmp_path) -> None:
    write_pathfinder(tmp_path / "lra", 128, 10, contour_length=3, workers=1)
    task = build_task({"name": "lra/path-x", "lra_dir": str(tmp_path / "lra"), "contour_length": 3})
    (batch,) = task.batches("valid", seed=0, batch_size=4)
    assert batch["inputs"].shape == (1, 16_384, 1)
    assert "Long Range Arena's have 128 x 128 and 14." in task.measure(task.build_model(BACKBONE), BACKBONE).note
