"""Writes Pathfinder images to disk, in the released archive's layout.

    DIR/pathfinder32/curv_contour_length_14/imgs/0/sample_0.png ...
    DIR/pathfinder32/curv_contour_length_14/metadata/0.npy

The metadata are text despite their name, a line per image: `imgs/0 sample_0.png 0 1 1.0 14 4 2 0.5 1 1`. These are
folder, file, number, label, continuity, dashes of a contour and of a distractor, length, thickness and margin of a
dash, and the number of contrasts.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mixerzoo.tasks.cores import Progress, in_order, silent
from mixerzoo.tasks.files import write_atomically

from .generator import PathfinderSpec, generate, pathfinder_spec

BATCH = 500
DIFFICULTIES = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}


def pathfinder_folder(root: Path, resolution: int, contour_length: int = 14) -> Path:
    """Returns where the images of a resolution and difficulty stand below `root`.

    That may be the resolution's own folder.
    """
    top = root if root.name == f"pathfinder{resolution}" else root / f"pathfinder{resolution}"
    return top / DIFFICULTIES.get(contour_length, f"curv_contour_length_{contour_length}")


def write_pathfinder(
    out: Path,
    resolution: int = 32,
    samples: int = 200_000,
    seed: int = 0,
    *,
    contour_length: int = 14,
    workers: int | None = None,
    progress: Progress = silent,
) -> Path:
    """Writes images and metadata below `out`, and returns the folder that holds `imgs` and `metadata`.

    The files depend on all but `workers` (all usable cores by default). The folder is there once it is whole. Raises
    ValueError for an unknown resolution, and before anything is drawn if there are images already.
    """
    spec = pathfinder_spec(resolution, contour_length)
    if samples < 1 or seed < 0:
        raise ValueError(f"Pathfinder needs samples >= 1 and a seed >= 0, got samples={samples} and seed={seed}")
    folder = pathfinder_folder(out, resolution, contour_length)
    if folder.exists():
        raise ValueError(f"{folder} is there already; remedy: another --out, or remove it")
    unfinished, done = folder.with_name(f".{folder.name}.{os.getpid()}"), 0
    try:
        (unfinished / "metadata").mkdir(parents=True)
        batches = in_order(partial(_batch, spec, unfinished, samples, seed), 0, -(-samples // BATCH), workers)
        with closing(batches):
            for count in batches:
                done += count
                progress(done, samples)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def _batch(spec: PathfinderSpec, folder: Path, samples: int, seed: int, batch: int) -> int:
    """Draws and writes one batch; returns how many images it has."""
    count = min(BATCH, samples - batch * BATCH)
    pictures = generate(spec, np.random.default_rng((seed, batch)), count)
    subfolder = folder / "imgs" / str(batch)
    subfolder.mkdir(parents=True)
    dash = f"{spec.continuity} {spec.contour_length} {spec.distractor_length} {spec.length} {spec.thickness}"
    lines = []
    for index in range(count):
        name = f"sample_{index}.png"
        Image.fromarray(pictures.images[index]).save(subfolder / name)
        lines.append(f"imgs/{batch} {name} {index} {pictures.labels[index]} {dash} {pictures.margins[index]} 1\n")
    write_atomically(folder / "metadata" / f"{batch}.npy", "".join(lines))
    return count
