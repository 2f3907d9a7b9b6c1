"""Draws docs/pathfinder.png: Pathfinder at 32, 64 and 128, upper rows label 1 (one snake), lower rows label 0.

python docs/pathfinder.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixerzoo.tasks.lra.pathfinder.generator import generate, pathfinder_spec

SHOWN = {32: (10, 4), 64: (6, 3), 128: (4, 2)}  # resolution: images a row, enlargement
GAP, GREY = 4, 96


def sheet() -> Image.Image:
    rows = []
    for resolution, (columns, zoom) in SHOWN.items():
        pictures = generate(pathfinder_spec(resolution), np.random.default_rng(1), 10 * columns)
        for label in (1, 0):
            images = pictures.images[pictures.labels == label][:columns]
            images = np.pad(
                images.repeat(zoom, 1).repeat(zoom, 2), ((0, 0), (GAP, GAP), (GAP, GAP)), constant_values=GREY
            )
            rows.append(np.concatenate(list(images), axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=GREY) for row in rows]
    return Image.fromarray(np.concatenate(padded))


if __name__ == "__main__":
    sheet().save(Path(__file__).with_suffix(".png"), optimize=True)
