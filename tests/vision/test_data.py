"""Laws of image data say: splits never change or overlap, loaders lose no image, mistakes are explained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import mixerzoo.tasks.vision  # noqa: F401 (registers the models)
from mixerzoo.tasks.vision.image_data import (
    Images,
    digit_arrays,
    load_data,
    test_loader,
    train_loader,
    transforms,
)
from mixerzoo.tasks.vision.recipe import DataConfig, Training

from .images import TRAIN_IMAGES, VALID_IMAGES, fashion_mnist, image_folder

test_loader.__test__ = False  # its name is its meaning, not pytest's
PLAIN = Training(batch_size=4, mixup=0.0, cutmix=0.0, aug_repeats=1, workers=0)


def numbers(images: Images) -> list[int]:
    return [int(index) for index in images.indices]


def pixels(images: Images) -> list[bytes]:
    return [np.asarray(image).tobytes() for image, _ in (images[index] for index in range(len(images)))]


def test_digits_are_the_real_ones_in_fixed_parts():
    data, again = load_data(DataConfig("digits")), load_data(DataConfig("digits"))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [1293, 144, 360]
    assert (data.num_classes, data.in_chans, data.tested_on) == (10, 1, "test")
    assert not set(numbers(data.train)) & set(numbers(data.valid))
    assert numbers(data.valid) == numbers(again.valid)
    assert pixels(data.test) == pixels(again.test)
    image, _ = data.train[0]
    assert (image.size, image.mode, image.getextrema()[0] >= 0) == ((8, 8), "L", True)
    arrays = digit_arrays()
    assert {len(images) for images, _ in arrays.values()} == {1437, 360}
    counts = np.bincount(arrays["test"][1])
    assert counts.min() >= 34 and counts.max() <= 37  # a fifth of every class
    images = np.concatenate([images for images, _ in arrays.values()])
    assert images.shape == (1797, 8, 8) and images.max() == 255


def test_an_image_folder_without_a_test_part_is_tested_on_its_validation_part(tmp_path):
    data = load_data(DataConfig(f"imagefolder:{image_folder(tmp_path)}"))
    assert (data.num_classes, data.in_chans, data.tested_on) == (2, 3, "validation")
    assert (len(data.train), len(data.valid), len(data.test)) == (2 * TRAIN_IMAGES, 2 * VALID_IMAGES, 2 * VALID_IMAGES)
    assert load_data(DataConfig("imagefolder", dir=str(tmp_path))).num_classes == 2


def test_an_image_folder_with_a_test_part_only_validates_on_training_images(tmp_path):
    data = load_data(DataConfig(f"imagefolder:{image_folder(tmp_path, splits=('train', 'test'))}", valid_fraction=0.25))
    assert data.tested_on == "test"
    assert (len(data.train), len(data.valid)) == (9, 3)
    assert sorted(numbers(data.train) + numbers(data.valid)) == list(range(12))


def test_a_class_without_validation_images_keeps_the_others_labels(tmp_path):
    image_folder(tmp_path, classes=3)
    for path in (tmp_path / "val" / "class_1").iterdir():
        path.unlink()
    data = load_data(DataConfig(f"imagefolder:{tmp_path}"))
    assert {data.valid[index][1] for index in range(len(data.valid))} == {0, 2}


def test_torchvisions_data_are_read_from_an_existing_folder(tmp_path):
    data = load_data(DataConfig("fashion_mnist", dir=str(fashion_mnist(tmp_path))))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [18, 2, 10]
    assert (data.num_classes, data.in_chans) == (10, 1)
    image, label = data.test[3]
    assert image.getextrema() == (25 * label, 25 * label)
    assert load_data(DataConfig("fashion_mnist", dir=str(tmp_path)), in_chans=3).test[0][0].mode == "RGB"


def test_a_hub_data_set_is_read_from_a_local_folder(tmp_path):
    import datasets

    folder = image_folder(tmp_path / "images", splits=("train", "test"))
    for split in ("train", "test"):
        files = sorted(str(path) for path in (folder / split).rglob("*.png"))
        columns = {"picture": files, "kind": [int("class_1" in file) for file in files]}
        features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dark", "bright"])}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(tmp_path / "hub" / f"{split}.parquet")
    config = DataConfig(f"hfds:{tmp_path / 'hub'}", dir=str(tmp_path / "cache"), image_key="picture", label_key="kind")
    data = load_data(config)
    assert (data.num_classes, data.tested_on, len(data.test)) == (2, "test", 2 * VALID_IMAGES)
    assert data.test[0][0].size == (16, 16)
    with pytest.raises(ValueError, match=r"cannot read the data set '.*hub' of the Hugging Face hub: .*image_key"):
        load_data(replace(config, image_key="image"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("digit"), "unknown data 'digit'; did you mean digits.*known: cifar10, digits"),
        (DataConfig("cifar10", dir="nowhere"), r"cifar10 is not in 'nowhere'; remedy: --data-dir .* or --download"),
        (DataConfig("imagefolder"), "imagefolder needs a folder; remedy: --data imagefolder:DIR"),
        (DataConfig("imagefolder:nowhere"), "there is no train folder in 'nowhere'; remedy: DIR/train and DIR/val"),
    ],
)
def test_missing_data_are_named_with_their_remedy(monkeypatch, tmp_path, config, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_data(config)
    assert not list(tmp_path.iterdir())


def test_folders_that_lack_a_part_are_explained(tmp_path):
    image_folder(tmp_path / "alone", splits=("train",))
    with pytest.raises(ValueError, match=r"there is no val or test folder in '.*alone'"):
        load_data(DataConfig(f"imagefolder:{tmp_path / 'alone'}"))
    for split in ("train", "val"):
        (tmp_path / "empty" / split).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"there are no images in '.*train'"):
        load_data(DataConfig(f"imagefolder:{tmp_path / 'empty'}"))
    with pytest.raises(ValueError, match=r"data.valid_fraction must lie between 0 and 1, got 1.5"):
        DataConfig(valid_fraction=1.5)
    with pytest.raises(ValueError, match=r"model.in_chans must be 1 \(grey\) or 3 \(colour\).* got 2"):
        load_data(DataConfig("digits"), in_chans=2)


@pytest.fixture
def counted() -> Images:
    """Makes 36 images of one grey each, labelled by their number."""
    from PIL import Image

    images = Images([(Image.new("L", (4, 4), number), number) for number in range(36)], "L")
    images.transform = np.array
    return images


def labels(loader: torch.utils.data.DataLoader) -> list[int]:
    return [int(label) for _, batch in loader for label in batch]


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_image_is_tested_once_over_all_processes(counted, processes):
    seen = [labels(test_loader(counted, PLAIN, rank=rank, processes=processes)) for rank in range(processes)]
    assert sorted(label for share in seen for label in share) == list(range(36))


@pytest.mark.parametrize("processes", [1, 3])
def test_an_epoch_shuffles_every_image_into_one_share(counted, processes):
    train = replace(PLAIN, batch_size=4 * processes)
    loaders = [train_loader(counted, train, seed=0, rank=rank, processes=processes) for rank in range(processes)]
    first, again, second = ([], [], [])
    for epoch, seen in ((0, first), (0, again), (1, second)):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
            seen += labels(loader)
    assert first == again != second
    assert sorted(first) == sorted(second) == list(range(36))


def test_repeated_augmentation_shows_a_third_of_the_images_three_times(counted):
    seen = labels(train_loader(counted, replace(PLAIN, aug_repeats=3), seed=0, rank=0, processes=1))
    assert len(seen) == 36
    assert {seen.count(label) for label in set(seen)} == {3}


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({"batch_size": 6}, 4, "must be a multiple of processes . grad_accum_steps = 4, got 6"),
        ({"batch_size": 6, "grad_accum_steps": 4}, 1, "= 4, got 6"),
        ({"batch_size": 6, "mixup": 0.8}, 2, "each part an even number for mixup, got 6"),
        ({"batch_size": 40}, 1, "train.batch_size=40 is larger than the 36 training images; remedy: --set train.b"),
    ],
)
def test_batches_that_cannot_be_cut_are_explained(counted, changes, processes, message):
    with pytest.raises(ValueError, match=message):
        train_loader(counted, replace(PLAIN, **changes), seed=0, rank=0, processes=processes)


@pytest.mark.parametrize(("in_chans", "size"), [(1, 8), (3, 32), (3, (24, 16))])
def test_transforms_give_what_the_model_takes(in_chans, size):
    model = timm.create_model("zoo_hgrn1_tiny_patch16_224", depth=1, in_chans=in_chans)
    mode = "L" if in_chans == 1 else "RGB"
    image = load_data(DataConfig("digits")).test[0][0].convert(mode)
    shape = (in_chans, *((size, size) if isinstance(size, int) else size))
    for transform in transforms(model, in_chans, size, replace(PLAIN, crop_pct=1.0, aa="")):
        assert transform(image).shape == shape


def test_paths_may_start_at_home(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(image_folder(tmp_path / "home").parent))
    assert load_data(DataConfig("imagefolder:~/home")).num_classes == 2
