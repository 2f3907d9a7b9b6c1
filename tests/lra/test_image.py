"""CIFAR-10 is read in each of its layouts, as sequences of pixels under either protocol; sequential digits too."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from sklearn.datasets import load_digits

from mixerzoo.tasks import BackboneConfig, TrainConfig, build_task
from mixerzoo.tasks.lra.image import Image, augmented
from mixerzoo.tasks.lra.pathfinder.tasks import Pathfinder
from mixerzoo.tasks.train import fit

BACKBONE = BackboneConfig("attention", dim=16, depth=1)
ROWS = 8  # images a batch file
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


def cifar() -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N,32,32,3] and labels of all six batches, one after the other."""
    rng = np.random.default_rng(0)
    count = ROWS * len(BATCHES)
    return rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10


def write(root: Path, kind: str) -> Path:
    images, labels = cifar()
    for number, batch in enumerate(BATCHES):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        flat = images[rows].transpose(0, 3, 1, 2).reshape(ROWS, -1)
        if kind == "python":
            file = root / "cifar-10-batches-py" / batch
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pickle.dumps({b"data": flat, b"labels": labels[rows].tolist()}, protocol=2))
        elif kind == "binary":
            file = root / "cifar-10-batches-bin" / f"{batch}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(np.concatenate([labels[rows, None].astype(np.uint8), flat], 1).tobytes())
        else:
            for index, (image, label) in enumerate(zip(images[rows], labels[rows], strict=True)):
                file = root / ("test" if batch == "test_batch" else "train") / f"class{label}" / f"{number}_{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Picture.fromarray(image).save(file)
    for label in range(10) if kind == "folder" else ():  # ten classes in the test as well
        (root / "test" / f"class{label}").mkdir(exist_ok=True)
        Picture.fromarray(images[label]).save(root / "test" / f"class{label}" / "more.png")
    return root


def everything(task: Image, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(task.batches(split, seed=0, batch_size=5))
    return torch.cat([b["inputs"] for b in batches]), torch.cat([b["labels"] for b in batches])


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_standard_reads_greys_row_after_row(tmp_path, kind) -> None:
    inputs, labels = everything(Image(lra_dir=str(write(tmp_path, kind))), "test")
    images, all_labels = cifar()
    assert inputs.shape == (ROWS, 1024, 1)
    assert labels.tolist() == all_labels[-ROWS:].tolist()
    for pixels, image in zip(inputs, images[-ROWS:], strict=True):
        greys = np.asarray(Picture.fromarray(image).convert("L")).reshape(-1)
        assert np.abs(np.round(pixels[:, 0].numpy() * 61 + 122.6) - greys).max() <= 1  # Pillow rounds its weights


def test_hgrn_reads_colours(tmp_path) -> None:
    task = Image(lra_dir=str(write(tmp_path, "python")), protocol="hgrn")
    inputs, _ = everything(task, "test")
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.243, 0.261])
    found = ((inputs * std + mean) * 255).round().to(torch.uint8)
    assert torch.equal(found, torch.from_numpy(cifar()[0][-ROWS:]).flatten(1, 2))
    assert task.input_keywords["channels"] == 3


def test_a_folder_of_images_is_the_same_data(tmp_path) -> None:
    found = []
    for kind in ("folder", "python"):
        data = Image(lra_dir=str(write(tmp_path / kind, kind)))._data
        rows = zip(np.asarray(data["train_images"]), np.asarray(data["train_labels"]), strict=True)
        found.append({(image.tobytes(), int(label)) for image, label in rows})
    assert found[0] == found[1]


def test_a_fixed_tenth_validates(tmp_path) -> None:
    task = Image(lra_dir=str(write(tmp_path, "binary")))
    train, valid = task._rows("train"), task._rows("valid")
    assert sorted([*train, *valid]) == list(range(5 * ROWS))
    assert len(valid) == 4
    assert len(everything(task, "valid")[0]) == 4


def test_augmentation_shifts_and_flips_what_the_mirrored_border_holds() -> None:
    image = np.arange(32 * 32 * 3, dtype=np.int64).reshape(1, 32, 32, 3)
    wide = np.pad(image[0], ((4, 4), (4, 4), (0, 0)), mode="symmetric")
    windows = {
        wide[top : top + 32, left : left + 32][:, ::step].tobytes(): (top, left, step)
        for top in range(9)
        for left in range(9)
        for step in (1, -1)
    }
    found = [windows[row.tobytes()] for row in augmented(np.repeat(image, 3000, 0), np.random.default_rng(0))]
    assert len(set(found)) == 9 * 9 * 2
    assert abs(np.mean([step == 1 for *_, step in found]) - 0.5) < 4 * (0.25 / 3000) ** 0.5


def test_only_hgrn_and_only_training_is_augmented(tmp_path) -> None:
    root = str(write(tmp_path, "python"))
    plain = {tuple(row.flatten().tolist()) for row in everything(Image(lra_dir=root), "valid")[0]}
    assert plain == {tuple(row.flatten().tolist()) for row in everything(Image(lra_dir=root), "valid")[0]}
    for protocol, repeats in (("standard", True), ("hgrn", False)):
        task = Image(lra_dir=root, protocol=protocol)
        epochs = [next(task.batches("train", seed=seed, batch_size=36))["inputs"] for seed in (0, 0, 1)]
        assert torch.equal(epochs[0], epochs[1])
        first, other = ({row.numpy().tobytes() for row in epoch} for epoch in (epochs[0], epochs[2]))
        assert (first == other) == repeats


@pytest.mark.parametrize(
    ("protocol", "order", "used"),
    [("standard", None, "row"), ("standard", "row", "row"), ("hgrn", None, "both"), ("hgrn", "series", "series")],
)
def test_the_protocol_decides_the_scan(protocol, order, used) -> None:
    for task in (Image(protocol=protocol, scan_order=order), Pathfinder(protocol=protocol, scan_order=order)):
        model = task.build_model(BACKBONE)
        assert model.encoder.scan_order == used
        assert model.encoder.grid == task.size


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"protocol": "gray"}, "unknown task.protocol 'gray'; known: 'standard', 'hgrn'"),
        (
            {"scan_order": "both"},
            "under the protocol standard must be one of row, got 'both'; remedy: the other protocol",
        ),
        ({"protocol": "hgrn", "scan_order": "row"}, "under the protocol hgrn must be one of column, .*, got 'row'"),
        ({"scan_order": "zigzag"}, "unknown scan order 'zigzag'"),
    ],
)
def test_protocols_never_mix(keywords, message) -> None:
    for task in (Image, Pathfinder):
        with pytest.raises(ValueError, match=message):
            task(**keywords)


@pytest.mark.parametrize("protocol", ["standard", "hgrn"])
def test_training_runs_and_names_its_protocol(tmp_path, protocol) -> None:
    task = build_task({"name": "lra/image", "lra_dir": str(write(tmp_path, "binary")), "protocol": protocol})
    assert task.to_dict()["protocol"] == protocol
    model = task.build_model(BACKBONE)
    points = list(fit(model, task, TrainConfig(steps=1, batch_size=2), seed=0))
    assert points[-1].tokens == 2048
    measured = task.measure(model, BACKBONE)
    labels = torch.cat([batch["labels"] for batch in task.batches("test", seed=0, batch_size=64)])
    assert measured.values == {"majority class": labels.bincount().max() / len(labels)}
    assert f"Protocol {protocol}" in measured.note


@pytest.mark.parametrize(
    ("kind", "break_it", "message"),
    [
        ("python", lambda r: (r / "cifar-10-batches-py" / "test_batch").unlink(), r"py/test_batch is missing; remedy"),
        (
            "binary",
            lambda r: (r / "cifar-10-batches-bin" / "data_batch_3.bin").unlink(),
            r"data_batch_3.bin is missing",
        ),
        (
            "binary",
            lambda r: (r / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"123"),
            r"data_batch_3.bin is not a whole batch of CIFAR-10: 3 bytes, which is no multiple of 3073",
        ),
        (
            "binary",
            lambda r: (r / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(bytes([11] * 3073)),
            r"test_batch.bin must have labels from 0 to 9, got 11 to 11",
        ),
        (
            "python",
            lambda r: (r / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"broken"),
            r"data_batch_1 is not a whole batch of CIFAR-10",
        ),
        (
            "python",
            lambda r: (r / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Path("x"))),
            r"data_batch_1 is not a whole batch of CIFAR-10: it holds pathlib",
        ),
        (
            "python",
            lambda r: (r / "cifar-10-batches-py" / "data_batch_1").write_bytes(
                pickle.dumps({b"data": np.zeros((2, 7), np.uint8), b"labels": [1, 2]})
            ),
            r"data_batch_1 must hold uint8 rows of 3072 and a label each, got uint8 \(2, 7\) and 2 labels",
        ),
        (
            "folder",
            lambda r: (r / "train" / "class1" / "0_1.png").write_bytes(b"?"),
            r"class1/0_1.png is not a whole image",
        ),
        (
            "folder",
            lambda r: Picture.new("RGB", (8, 32)).save(r / "train" / "class1" / "0_1.png"),
            r"class1/0_1.png must have 32 x 32 pixels, got 8 x 32",
        ),
        (
            "folder",
            lambda r: (r / "test").rename(r / "validation"),
            r"test must have images in 10 folders, one a class, got 0",
        ),
        (
            "folder",
            lambda r: (r / "test" / "class1").rename(r / "test" / "Class1"),
            r"test must have the classes of .*train, \['class0', 'class1', .* got \['Class1', 'class0'",
        ),
        ("python", lambda r: (r / "cifar-10-batches-py").rename(r / "data"), r"has neither cifar-10-batches-py"),
    ],
)
def test_broken_files_are_named(tmp_path, kind, break_it, message) -> None:
    break_it(write(tmp_path, kind))
    with pytest.raises(ValueError, match=message):
        _ = Image(lra_dir=str(tmp_path)).fingerprint


def test_without_files_there_is_no_image_task() -> None:
    with pytest.raises(ValueError, match=r"lra/image needs CIFAR-10; remedy: task.lra_dir"):
        _ = Image().fingerprint


def test_digits_are_sequences_of_64_greys() -> None:
    digits = load_digits()
    plain, permuted = (build_task({"name": "diagnostics/digits", "permuted": p}) for p in (False, True))
    batches = [next(task.batches("test", seed=0, batch_size=360)) for task in (plain, permuted)]
    published = {
        (tuple(row), label) for row, label in zip(digits.data.astype(int).tolist(), digits.target, strict=True)
    }
    found = zip(batches[0]["inputs"].tolist(), batches[0]["labels"].tolist(), strict=True)
    assert {(tuple(row), label) for row, label in found} <= published
    assert batches[0]["inputs"].shape == (360, 64)
    assert torch.equal(batches[0]["inputs"].sort(1).values, batches[1]["inputs"].sort(1).values)
    assert not torch.equal(batches[0]["inputs"], batches[1]["inputs"])
    assert plain.fingerprint != permuted.fingerprint
    everything = [
        tuple(row)
        for split, size in {"train": 1293, "valid": 144, "test": 360}.items()
        for row in next(plain.batches(split, seed=0, batch_size=size))["inputs"].tolist()
    ]
    assert sorted(everything) == sorted(map(tuple, digits.data.astype(int).tolist()))


def test_digits_are_learned_in_two_hundred_steps() -> None:
    task = build_task("diagnostics/digits")
    torch.manual_seed(0)
    backbone = BackboneConfig({"name": "attention", "num_heads": 2}, dim=32, depth=2)
    model = task.build_model(backbone)
    *_, last = fit(model, task, TrainConfig(steps=200, batch_size=64, lr=3e-3, evaluate_every=200), seed=0)
    assert last.metric > 0.75
    assert last.tokens == 200 * 64 * 64
    assert task.measure(model, backbone).values["majority class"] < 0.2
