"""Generates Pathfinder and Path-X as their authors do (github.com/drewlinsley/pathfinder with LRA's parameters).

Two snakes of dashes start near the middle, some shorter ones lie around them, and two discs mark ends. The label is 1
if one snake has both discs, 0 if each has one. A snake grows by a dash at a time. The tip of the next falls on a circle
of radius length + margin around the end of the last one. Its probability is in proportion to cos^2 of the bend, and to
the free space. A dash keeps a margin free around it. One that would enter another's (both grown by the margin, 1.8 in
sum) is drawn again, three times in all. Then the two contours are begun anew, or a distractor is tried up to five times
and left out. Where dashes and discs overlap, the maximum counts. A picture's range is stretched to 0..255: without that
the discs fade where the distractors are brighter.

At 32 x 32 most distractors are left out, one of five is drawn. The published generator looks for room in a way that
fails in most directions (`drawing._begins`), and the published data have come of it. Two details differ here: the
published one lets a distractor touch the last dash of the first contour, and leaves out a distractor for starting
outside.

All of an image's steps are done for many images at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .drawing import DEGREES, OVERLAP, PathfinderSpec, Stamps, dashes, marker

PUBLISHED = {
    32: PathfinderSpec(32, 7, 1.5, (1,), 0.5, 1.0, length=2, contour_contrast=1.5, distractor_contrast=2.0),
    64: PathfinderSpec(64, 12, 2.5, (1,), 1.0, 1.8, contour_contrast=0.8, distractor_contrast=0.8),
    128: PathfinderSpec(
        128, 20, 3.0, (2, 3), 1.5, 1.8, num_distractors=8, contour_contrast=0.9, distractor_contrast=0.9
    ),
}
PADDING, DASH_TRIALS, SNAKE_TRIALS = 1, 3, 5
OCCUPIED = 76  # of 255; a first dash needs room with less
LANES = 512


class Pictures(NamedTuple):
    """Holds pictures.

    images: uint8 [N,H,W]. labels: 1 = the two discs are one snake's. margins: of the dashes, int64 [N].
    """

    images: np.ndarray
    labels: np.ndarray
    margins: np.ndarray


class _Snakes(NamedTuple):
    """Holds grown snakes [N,K,segments(,2)]: where every dash is drawn from, in the canvas, and its direction."""

    place: np.ndarray
    direction: np.ndarray


def pathfinder_spec(resolution: int, contour_length: int = 14) -> PathfinderSpec:
    """Returns the published parameters of a resolution.

    Contours of 14 dashes are LRA's, 9 and 6 its easier sets.

    16 is a small size of our own, with the dashes of 32, for what a CPU can learn: contours of at most 6 dashes.
    """
    if resolution == 16:
        base = replace(PUBLISHED[32], size=16, seed_distance=3)
        spec = replace(base, contour_length=contour_length, distractor_length=2, num_distractors=2)
        allowed = range(2, 7)
    elif resolution in PUBLISHED:
        short = contour_length // 3
        dashes_around = {32: 20, 64: 22, 128: 35}[resolution]
        spec = replace(PUBLISHED[resolution], contour_length=contour_length, distractor_length=max(1, short))
        spec = replace(spec, num_distractors=dashes_around // spec.distractor_length)
        allowed = range(3, 15)
    else:
        raise ValueError(f"Pathfinder comes in the resolutions 16, {', '.join(map(str, PUBLISHED))}, got {resolution}")
    if contour_length not in allowed:
        raise ValueError(
            f"contours at {resolution} x {resolution} have {allowed[0]} to {allowed[-1]} dashes, got {contour_length}"
        )
    return spec


def generate(spec: PathfinderSpec, rng: np.random.Generator, count: int) -> Pictures:
    """Generates `count` images; equal generators give equal images."""
    labels = rng.integers(2, size=count)
    margins = rng.choice(spec.margins, size=count)
    images = np.zeros((count, spec.size, spec.size), np.uint8)
    for margin in spec.margins:
        rows, canvas = np.flatnonzero(margins == margin), _Canvas(spec, margin, rng)
        for first in range(0, len(rows), LANES):
            lanes = rows[first : first + LANES]
            images[lanes] = canvas.paint(labels[lanes])
    return Pictures(images, labels, margins)


class _Canvas:
    """Draws images of one margin. Its arrays have a frame around the image, so that no stamp needs clipping.

    `space` is uint8 [N,side,side], what the dashes keep free around them; the frame is all taken.
    """

    def __init__(self, spec: PathfinderSpec, margin: int, rng: np.random.Generator) -> None:
        self.spec, self.rng, self.tables = spec, rng, dashes(spec, margin)
        self.frame = self.tables.reach
        self.side = spec.size + 2 * self.frame
        self.every = np.argwhere(np.full((spec.size, spec.size), True)) + self.frame
        self.middle, self.first_tails = self._starts_of_contours()

    def paint(self, labels: np.ndarray) -> np.ndarray:
        spec, count = self.spec, len(labels)
        contours, space = self._contours(count)
        picture, every = np.zeros(space.shape, np.float32), np.arange(count)
        self._draw(picture, every, contours, spec.contour_contrast)
        for _ in range(spec.num_distractors):
            lanes = every
            for _ in range(SNAKE_TRIALS):
                lanes = lanes[self._distractor(lanes, space, picture)]
        first = self.rng.integers(2, size=count)
        last = np.where(labels == 1, first, 1 - first)
        disc = marker(spec.marker_radius)
        for ends in (contours.place[every, first, 0], contours.place[every, last, -1]):
            self._raise(picture, every, ends, disc, np.zeros(count, np.int64))
        inside = slice(self.frame, -self.frame)
        return _stretched(picture[:, inside, inside])

    def _contours(self, count: int) -> tuple[_Snakes, np.ndarray]:
        """Draws both contours of `count` images, and the space that they keep free. What fails is begun anew."""
        places, directions, spaces, found = [], [], [], 0
        while found < count:
            space = np.full((LANES, self.side, self.side), 255, np.uint8)
            edge = self.frame + PADDING
            space[:, edge:-edge, edge:-edge] = 0
            alive, snakes = self._grow(space, *self._two_tails(), self.spec.contour_length)
            places.append(snakes.place[alive])
            directions.append(snakes.direction[alive])
            spaces.append(space[alive])
            found += len(alive)
        place, direction, space = (np.concatenate(parts)[:count] for parts in (places, directions, spaces))
        return _Snakes(place, direction), space

    def _distractor(self, lanes: np.ndarray, space: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """Tries to add a distractor to the images `lanes`.

        Returns which of them (indices into lanes) got none.
        """
        tails, starts, possible = self._free_tails(lanes, space)
        chosen = np.flatnonzero(possible)
        trial = space[lanes[chosen]]
        alive, snakes = self._grow(trial, tails[chosen, None], starts[chosen, None], self.spec.distractor_length)
        grown = lanes[chosen[alive]]
        space[grown] = trial[alive]
        self._draw(picture, grown, _Snakes(*(part[alive] for part in snakes)), self.spec.distractor_contrast)
        return np.setdiff1d(np.arange(len(lanes)), chosen[alive], assume_unique=True)

    def _grow(
        self, space: np.ndarray, tails: np.ndarray, starts: np.ndarray, segments: int
    ) -> tuple[np.ndarray, _Snakes]:
        """Grows K snakes in every lane from first dashes at `tails` [N,K,2] in the degrees `starts` [N,K], in turns.

        `space` takes up all their dashes in the lanes that get to the end, which are returned with the snakes.
        """
        tables, (count, snakes) = self.tables, starts.shape
        place = np.zeros((count, snakes, segments, 2), np.int64)
        direction = np.zeros((count, snakes, segments), np.int64)
        place[:, :, 0], direction[:, :, 0] = tails, starts
        centre = tails + tables.to_pivot[starts]
        alive = np.arange(count)
        for segment in range(1, segments):
            for snake in range(snakes):
                last = direction[alive, snake, segment - 1]
                centre[alive, snake] += tables.advance[last]
                chosen, found = self._next(space, alive, centre[alive, snake], last)
                self._take_up(space, alive, place[alive, snake, segment - 1], last)
                alive, chosen = alive[found], chosen[found]
                direction[alive, snake, segment] = DEGREES + chosen
                place[alive, snake, segment] = centre[alive, snake] + tables.circle[chosen]
        for snake in range(snakes):
            self._take_up(space, alive, place[alive, snake, -1], direction[alive, snake, -1])
        return alive, _Snakes(place, direction)

    def _next(
        self, space: np.ndarray, lanes: np.ndarray, centre: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns an index into `circle`, where each lane's next dash ends, and whether there is a place."""
        tables, flat = self.tables, space.reshape(-1, self.side**2)
        choices = tables.choices[last]
        points = self._flat(centre[:, None] + tables.circle[choices])
        taken = flat[lanes[:, None, None], points[..., None] + self._flat(tables.disc)].max(-1)
        chances = np.cumsum(tables.weight[last] * (1 - taken / 255), axis=1)
        chosen, found = np.zeros(len(lanes), np.int64), np.zeros(len(lanes), bool)
        possible = chances[:, -1] >= 1e-4
        for _ in range(DASH_TRIALS):
            rows = np.flatnonzero(possible & ~found)
            drawn = self.rng.random(len(rows)) * chances[rows, -1]
            choice = (chances[rows] > drawn[:, None]).argmax(1)
            chosen[rows] = choices[rows, choice]
            heart = DEGREES + chosen[rows]
            pixels = points[rows, choice][:, None] + self._flat(tables.heart.offsets[heart])
            both = flat[lanes[rows, None], pixels].astype(np.int64) + tables.heart.values[heart]
            found[rows] = both.max(1, initial=0) < OVERLAP
        return chosen, found

    def _starts_of_contours(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns places [P,2] far enough from the border, and whether a first dash fits there, bool [360,P]."""
        border = self.frame + 2 * self.spec.seed_distance
        outside = np.full((1, self.side, self.side), True)
        outside[:, border:-border, border:-border] = False
        near = border - int(np.abs(self.tables.core).max())
        places = np.argwhere(np.full((self.side - 2 * near, self.side - 2 * near), True)) + near
        every = np.broadcast_to(places, (DEGREES, *places.shape))
        free = self._is_free(outside, np.zeros(DEGREES, np.int64), np.arange(DEGREES), every)
        used = free.any(0)
        return places[used], free[:, used] & self.tables.begins[:, None]

    def _two_tails(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws first dashes of two contours: one as far from the border as it must be, the other near it."""
        starts = self.rng.choice(np.flatnonzero(self.first_tails.any(1)), size=LANES)
        first = self.middle[_one_of(self.first_tails[starts], self.rng)]
        towards = np.deg2rad(self.rng.integers(DEGREES, size=LANES))
        direction = np.stack([np.sin(towards), np.cos(towards)], axis=1)
        second = first + np.round(self.spec.seed_distance * direction).astype(np.int64)
        return np.stack([first, second], 1), np.stack([starts, self.rng.integers(DEGREES, size=LANES)], 1)

    def _free_tails(self, lanes: np.ndarray, space: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws for each image a direction and a place for a first dash, and returns whether there is one.

        The place is uniform among those with room.

        A few places are tried first, which is enough for most images and makes no difference to the choice.
        """
        starts = self.rng.integers(DEGREES, size=len(lanes))
        possible = self.tables.begins[starts]
        lanes, blocked = np.flatnonzero(possible), space[lanes] > OCCUPIED
        tails = self.every[self.rng.integers(len(self.every), size=(len(starts), 16))]
        found, chosen = np.zeros(len(starts), bool), tails[:, 0].copy()
        free = self._is_free(blocked, lanes, starts[lanes], tails[lanes])
        found[lanes], chosen[lanes] = free.any(1), tails[lanes, free.argmax(1)]
        lanes = np.flatnonzero(possible & ~found)
        every = np.broadcast_to(self.every, (len(lanes), *self.every.shape))
        free = self._is_free(blocked, lanes, starts[lanes], every)
        found[lanes], chosen[lanes] = free.any(1), self.every[_one_of(free, self.rng)]
        return chosen, starts, found

    def _is_free(self, blocked: np.ndarray, lanes: np.ndarray, starts: np.ndarray, tails: np.ndarray) -> np.ndarray:
        """Returns whether a first dash at `tails` [n,M,2] meets nothing in `blocked[lanes]`.

        The next circle must be inside.
        """
        pivot = tails + self.tables.to_pivot[starts][:, None] - self.frame
        free = ((pivot >= 0) & (pivot < self.spec.size)).all(-1)
        flat, points = blocked.reshape(-1, self.side**2), self._flat(tails)
        for offset in self._flat(self.tables.core[starts]).T:
            free &= ~flat[lanes[:, None], points + offset[:, None]]
        return free

    def _take_up(self, space: np.ndarray, lanes: np.ndarray, place: np.ndarray, direction: np.ndarray) -> None:
        self._raise(space, lanes, place, self.tables.space, direction)

    def _draw(self, picture: np.ndarray, lanes: np.ndarray, snakes: _Snakes, contrast: float) -> None:
        line = self.tables.line._replace(values=self.tables.line.values * np.float32(contrast))
        for snake in range(snakes.direction.shape[1]):
            for segment in range(snakes.direction.shape[2]):
                self._raise(picture, lanes, snakes.place[:, snake, segment], line, snakes.direction[:, snake, segment])

    def _raise(
        self, canvas: np.ndarray, lanes: np.ndarray, place: np.ndarray, stamps: Stamps, which: np.ndarray
    ) -> None:
        """Sets canvas[lane] = max(canvas[lane], the stamp `which` of the lane around its place)."""
        flat, rows = canvas.reshape(-1, self.side**2), lanes[:, None]
        pixels = self._flat(place)[:, None] + self._flat(stamps.offsets[which])
        flat[rows, pixels] = np.maximum(flat[rows, pixels], stamps.values[which])

    def _flat(self, place: np.ndarray) -> np.ndarray:
        return place[..., 0] * self.side + place[..., 1]


def _one_of(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws for every row of `allowed` [n,P] the index of a true entry, each as likely; 0 if there is none."""
    return (rng.random(allowed.shape, dtype=np.float32) * allowed).argmax(1)


def _stretched(pictures: np.ndarray) -> np.ndarray:
    """Stretches every picture's range to 0..255."""
    low, high = (extreme(pictures, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    return ((pictures - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
