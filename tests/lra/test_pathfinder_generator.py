"""Pathfinder's images resemble the published generator's, in numbers, and the drawn snakes confirm the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mixerzoo.tasks.lra.pathfinder.drawing import DEGREES, dashes
from mixerzoo.tasks.lra.pathfinder.generator import _Canvas, _Snakes, generate, pathfinder_spec
from mixerzoo.tasks.lra.pathfinder.image_files import write_pathfinder
from tests.tolerances import assert_statistic

SMALL = pathfinder_spec(16, 4)
REFERENCE = 2000  # images of the published generator that the statistics below are of


@pytest.fixture(scope="module")
def published():
    return generate(pathfinder_spec(32), np.random.default_rng(3), 1500)


def assert_like_published(name: str, found: float, expected: float, deviation: float) -> None:
    assert_statistic(name, found, expected, deviation=deviation, count=1500, reference=REFERENCE)


def test_images_have_the_statistics_of_the_published_generator(published) -> None:
    """Without the distractors that it can't place for its dilation at the border, `lit` would be .21."""
    images = published.images.astype(float) / 255
    lit = (published.images > 25).mean((1, 2))
    assert_like_published("lit pixels", lit.mean(), 0.1524, 0.0163)
    assert_like_published("bright pixels", (published.images > 128).mean(), 0.085, 0.012)
    assert_like_published("mean", images.mean(), 0.0794, 0.0080)
    assert_like_published("deviation of an image's mean", images.mean((1, 2)).std(), 0.0080, 0.0080 / 2**0.5)
    assert_like_published("deviation of lit pixels", lit.std(), 0.0163, 0.0163 / 2**0.5)
    assert_like_published("row 0", images[:, 0].mean(), 0.0024, images[:, 0].mean(1).std())
    assert_like_published("row 16", images[:, 16].mean(), 0.105, images[:, 16].mean(1).std())
    for share, quantile in {0.05: 0.130, 0.5: 0.150, 0.95: 0.183}.items():
        # pixels come in steps of 1/1024, and so do the quantiles
        near = [(lit <= quantile + step / 1024).mean() for step in (-2, -1, 0, 1, 2)]
        best = min(near, key=lambda found, share=share: abs(found - share))
        assert_like_published(f"quantile {share}", best, share, (share * (1 - share)) ** 0.5)


def test_half_are_positive_and_brightness_does_not_tell(published) -> None:
    assert_like_published("positives", published.labels.mean(), 0.5, 0.5)
    means = published.images.mean((1, 2)) / 255
    positive, negative = means[published.labels == 1], means[published.labels == 0]
    assert_statistic(
        "class means", positive.mean(), negative.mean(), deviation=0.008, count=len(positive), reference=len(negative)
    )


def test_contours_are_chains_of_as_many_dashes_that_bend_by_less_than_the_limit() -> None:
    for resolution in (32, 128):
        spec = pathfinder_spec(resolution)
        margin = spec.margins[0]
        canvas = _Canvas(spec, margin, np.random.default_rng(0))
        snakes, _ = canvas._contours(4)
        assert snakes.place.shape == (4, 2, 14, 2)
        place = snakes.place - canvas.frame
        assert ((place >= 0) & (place < resolution)).all()
        heads = place[:, :, 1:]
        step = np.linalg.norm(np.diff(heads, axis=2), axis=-1)
        assert step.min() > spec.length
        assert step.max() < spec.length + 2 * margin + 3
        circle = dashes(spec, margin).circle[snakes.direction[:, :, 1:] - DEGREES]
        angle = np.arctan2(circle[..., 0], circle[..., 1])
        bend = np.abs(np.angle(np.exp(1j * np.diff(angle, axis=2))))
        assert bend.max() < np.pi / 2 / spec.continuity


def brightness(image: np.ndarray, place: np.ndarray) -> float:
    y, x = place
    return float(image[max(0, y - 1) : y + 1, max(0, x - 1) : x + 1].mean())


def test_labels_say_whether_both_discs_are_at_one_snakes_ends(monkeypatch) -> None:
    """A solver looks for the discs at the four ends of the drawn contours; no distractors are in its way."""
    spec = replace(pathfinder_spec(32), num_distractors=0)
    drawn: list[_Snakes] = []
    contours = _Canvas._contours

    def recorded(self, count):
        result = contours(self, count)
        drawn.append(result[0])
        return result

    monkeypatch.setattr(_Canvas, "_contours", recorded)
    pictures = generate(spec, np.random.default_rng(4), 200)
    place = drawn[0].place - _Canvas(spec, 1, np.random.default_rng(0)).frame
    clear = 0
    for image, label, snakes in zip(pictures.images, pictures.labels, place, strict=True):
        ends = np.stack([snakes[:, 0], snakes[:, -1]], 1).reshape(4, 2)  # origin 1, tip 1, origin 2, tip 2
        distance = np.linalg.norm(ends[:, None] - ends, axis=-1) + 99 * np.eye(4)
        if distance.min() < 5:
            continue
        clear += 1
        first, last = sorted(sorted(range(4), key=lambda end: -brightness(image, ends[end]))[:2])
        assert {first % 2, last % 2} == {0, 1}
        assert (first // 2 == last // 2) == bool(label)
    assert clear > 50


def test_distractors_fill_what_room_there_is() -> None:
    """At 128 x 128 there is room for all eight; dashes of different snakes keep apart."""
    spec = replace(pathfinder_spec(128), margins=(2,))
    few = replace(spec, num_distractors=0)
    lit = [(generate(s, np.random.default_rng(5), 6).images > 64).mean() for s in (few, spec)]
    assert 1.8 < lit[1] / lit[0] < 2.4  # 28 dashes and two discs, and 32 dashes more


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_equal_generators_give_equal_images(resolution) -> None:
    spec = pathfinder_spec(resolution, 4 if resolution == 16 else 6)
    first, second, other = (generate(spec, np.random.default_rng(seed), 8) for seed in (0, 0, 1))
    assert (first.images == second.images).all()
    assert (first.labels == second.labels).all()
    assert (first.images != other.images).any()
    assert first.images.shape == (8, resolution, resolution)
    assert first.images.min((1, 2)).max() == 0
    assert first.images.max((1, 2)).min() == 255


def test_files_are_as_released_and_do_not_depend_on_the_workers(tmp_path, monkeypatch) -> None:
    folders = [
        write_pathfinder(tmp_path / name, 16, 510, seed, contour_length=4, workers=workers)
        for name, seed, workers in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1))
    ]
    assert folders[0] == tmp_path / "a" / "pathfinder16" / "curv_contour_length_4"
    contents = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    metadata = (folders[0] / "metadata" / "1.npy").read_text()
    assert metadata.endswith("\n")
    lines = [line.split(" ") for line in metadata.splitlines()]
    assert [line[:3] for line in lines] == [["imgs/1", f"sample_{index}.png", str(index)] for index in range(10)]
    assert {tuple(line[4:]) for line in lines} == {("1.0", "4", "2", "2", "0.5", "1", "1")}
    assert {line[3] for line in lines} <= {"0", "1"}
    with Image.open(folders[0] / "imgs" / "1" / "sample_3.png") as image:
        assert (image.size, image.mode) == ((16, 16), "L")


def test_existing_images_are_left_alone(tmp_path) -> None:
    write_pathfinder(tmp_path, 16, 3, contour_length=4, workers=1)
    with pytest.raises(ValueError, match=r"curv_contour_length_4 is there already; remedy: another --out"):
        write_pathfinder(tmp_path, 16, 3, contour_length=4, workers=1)


def test_what_is_interrupted_leaves_no_images(tmp_path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pathfinder(tmp_path, 16, 3, contour_length=4, workers=1, progress=interrupt)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert write_pathfinder(tmp_path, 16, 3, contour_length=4, workers=1).is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((48, 14), "resolutions 16, 32, 64, 128, got 48"),
        ((16, 14), "contours at 16 x 16 have 2 to 6 dashes, got 14"),
        ((32, 15), "contours at 32 x 32 have 3 to 14 dashes, got 15"),
    ],
)
def test_unknown_sizes_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        pathfinder_spec(*arguments)
