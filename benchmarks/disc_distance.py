"""A baseline of Pathfinder guesses from the distance of the two discs alone, without the curves.

The ends of one snake are neither as close together nor as far apart as the ends of two snakes. The guess for a distance
is its more frequent label in the training images.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from mixerzoo.tasks import Task

ROWS, TRAINING_BATCHES = 100, 200


def disc_distance_accuracy(task: Task) -> float:
    """Returns the accuracy on the test images of a Pathfinder task."""
    near, labels = _distances(task, "train", TRAINING_BATCHES)
    counts = np.zeros((int(near.max()) + 1, 2))
    np.add.at(counts, (near, labels), 1)
    guesses = counts.argmax(1)
    near, labels = _distances(task, "test", None)
    return float((guesses[np.minimum(near, len(guesses) - 1)] == labels).mean())


def disc_distances(images: np.ndarray) -> np.ndarray:
    """Maps float [N,H,W] to int64 [N], rounded: the distance of the two brightest separate places of 3 x 3 pixels."""
    count, height, width = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    light = np.sum([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    first = np.stack(np.unravel_index(light.reshape(count, -1).argmax(1), (height, width)), axis=1)
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    apart = np.maximum(abs(rows - first[:, 0, None, None]), abs(columns - first[:, 1, None, None]))
    other = np.where(apart > 2, light, 0).reshape(count, -1).argmax(1)
    second = np.stack(np.unravel_index(other, (height, width)), axis=1)
    return np.round(np.linalg.norm(first - second, axis=1)).astype(np.int64)


def _distances(task: Task, split: str, batches: int | None) -> tuple[np.ndarray, np.ndarray]:
    found = list(islice(task.batches(split, seed=0, batch_size=ROWS), batches))
    side = round(found[0]["inputs"].shape[1] ** 0.5)
    distances = [disc_distances(batch["inputs"].numpy().reshape(-1, side, side)) for batch in found]
    return np.concatenate(distances), np.concatenate([batch["labels"].numpy() for batch in found])
