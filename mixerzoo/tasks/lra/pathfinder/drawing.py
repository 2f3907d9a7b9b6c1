"""Draws the parts of Pathfinder images: dashes (paddles), the space each keeps free around it, marker discs.

Everything depends on a dash's direction alone, and there are few. A snake's first dash has whole degrees; the tip of
each further one falls on a pixel of a small circle. So all of it is drawn once, into tables.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SCALE = 2  # dashes and discs are drawn at twice the size, then reduced
DEGREES = 360
OVERLAP = 459  # where the spaces of two dashes (255 each) sum to as much, the later one is refused


@dataclass(frozen=True)
class PathfinderSpec:
    """Holds parameters of one resolution, in pixels of it.

    The names are the published generator's (without `paddle_`).

    The border that contours can't start in is twice `seed_distance`. A snake is `*_length` dashes.
    """

    size: int
    seed_distance: int
    marker_radius: float
    margins: tuple[int, ...]
    thickness: float
    continuity: float
    length: int = 5
    contour_length: int = 14
    distractor_length: int = 4
    num_distractors: int = 5
    contour_contrast: float = 1.0
    distractor_contrast: float = 1.0


class Stamps(NamedTuple):
    """Holds one picture for each of D directions as its pixels.

    Those are offsets [D,k,2] from a centre and values [D,k] in 0..255.

    Pictures of fewer pixels repeat their first.
    """

    offsets: np.ndarray
    values: np.ndarray


class Dashes(NamedTuple):
    """Holds tables for one margin.

    Direction d < 360 is a whole degree, from -180 on; 360 + c leads to pixel c of a circle.

    Offsets are (y, x) in pixels. A first dash, of whole degrees, is stamped at its tail, further ones at their head,
    the circle's pixel. Nothing here reaches further than `reach`.

    line: the dash. space: the dash grown by the margin. heart: the part of it that must not meet another's.
    to_pivot: [360,2], from a first dash's tail to where the next circle is measured from.
    advance: [D,2], from one circle's centre to the next, after a dash in direction d.
    circle: [C,2], the pixels where the next dash may end. choices: [D,m], those that may follow direction d, and
        weight: [D,m], how much they are favoured (0 where a list is filled up).
    disc: [k,2], the margin around a pixel. core: [360,m,2], what must be free for a first dash, from its tail.
    begins: [360] bool, whether a search for a first dash of that degree can succeed, see `_begins`.
    """

    line: Stamps
    space: Stamps
    heart: Stamps
    to_pivot: np.ndarray
    advance: np.ndarray
    circle: np.ndarray
    choices: np.ndarray
    weight: np.ndarray
    disc: np.ndarray
    core: np.ndarray
    begins: np.ndarray
    reach: int


@functools.lru_cache(maxsize=8)
def dashes(spec: PathfinderSpec, margin: int) -> Dashes:
    """Returns the tables of a margin, one of `spec.margins`."""
    step = spec.length + margin
    circle = _circle(step)
    degrees = np.deg2rad(np.arange(-180, 180))
    angles = np.concatenate([degrees, np.arctan2(circle[:, 0], circle[:, 1])])
    turned = angles + np.concatenate([np.zeros(DEGREES), np.full(len(circle), math.pi)])
    radius = spec.length + math.ceil(spec.thickness) + margin
    drawn = [_dash(angle, spec, margin, radius) for angle in turned]
    line, space = (np.array([pictures[part] for pictures in drawn]) for part in (0, 1))
    difference = np.abs(angles[:, None] - angles[None, DEGREES:])
    bend = np.minimum(np.minimum(difference, 2 * math.pi - difference) * spec.continuity, math.pi / 2)
    weight = np.where(bend < math.pi / 2, np.cos(bend) ** 2, 0)
    choices = np.argsort(-weight, axis=1, kind="stable")[:, : (weight > 0).sum(1).max()]
    core = _cores(space[:DEGREES], radius, step)
    return Dashes(
        line=_stamps(line, line > 0),
        space=_stamps(space, space > 0),
        heart=_stamps(space, space > OVERLAP - 256),
        to_pivot=_translate(degrees, spec.length) + _translate(degrees + math.pi, step),
        advance=_translate(angles, spec.length + 2 * margin),
        circle=circle,
        choices=choices,
        weight=np.take_along_axis(weight, choices, axis=1),
        disc=_disc(margin),
        core=core,
        begins=_begins(core),
        reach=radius + 2 * margin + 3,
    )


@functools.lru_cache(maxsize=8)
def marker(radius: float) -> Stamps:
    """Draws a disc of that radius around a pixel's upper left corner, where the published generator has it."""
    half = math.ceil(radius) + 3
    y, x = np.ogrid[-half * SCALE : (half + 1) * SCALE, -half * SCALE : (half + 1) * SCALE]
    lit = (x**2 + y**2 <= (radius * SCALE) ** 2).astype(np.uint8) * 255
    disc = _reduced(lit, 2 * half + 1)[None]
    return _stamps(disc, disc > 0)


def _stamps(pictures: np.ndarray, chosen: np.ndarray) -> Stamps:
    """Returns the chosen pixels of square pictures [D,S,S] around their middles."""
    offsets = _lists([np.argwhere(one) for one in chosen])
    values = pictures[np.arange(len(pictures))[:, None], offsets[..., 0], offsets[..., 1]]
    return Stamps(offsets - pictures.shape[1] // 2, values)


def _lists(parts: list[np.ndarray]) -> np.ndarray:
    """Joins arrays [m_i,2] to one [D,m,2], the shorter ones filled up with their first entry."""
    longest = max(map(len, parts))
    return np.array([np.concatenate([part, part[:1].repeat(longest - len(part), 0)]) for part in parts])


def _dash(angle: float, spec: PathfinderSpec, margin: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a dash from the middle of a square of side 2 radius + 1, and the dash grown by the margin."""
    centre = radius * SCALE
    y, x = (centre + _translate(np.array([angle]), spec.length * SCALE)[0]).tolist()
    picture = Image.new("L", (2 * centre + 1, 2 * centre + 1))
    ImageDraw.Draw(picture).line([(centre, centre), (x, y)], fill=255, width=round(spec.thickness * SCALE))
    thin = np.asarray(picture)
    grown = np.zeros_like(thin)
    border = margin * SCALE
    padded = np.pad(thin, border)
    for dy, dx in (_disc(border) + border).tolist():
        np.maximum(grown, padded[dy : dy + len(thin), dx : dx + len(thin)], out=grown)
    return _reduced(thin, 2 * radius + 1), _reduced(grown, 2 * radius + 1)


def _reduced(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def _translate(angles: np.ndarray, distance: float) -> np.ndarray:
    """Rounds offsets [N,2] up to whole pixels as the published generator does; what is whole already stays."""
    exact = distance * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return np.ceil(exact - 1e-9).astype(np.int64)


def _circle(radius: int) -> np.ndarray:
    """Returns the pixels of a circle around the origin, one a pixel's length of arc."""
    angles = np.deg2rad(np.arange(0, 360, 360 / (2 * math.pi * radius)))
    points = radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return np.unique(np.floor(points).astype(np.int64), axis=0)


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.argwhere(x**2 + y**2 <= radius**2) - radius


def _cores(space: np.ndarray, radius: int, reach: int) -> np.ndarray:
    """Returns per degree the offsets where a dash's space is full, shifted by a pixel as in the published generator."""
    lists = [np.argwhere(picture == 255) - radius + 1 for picture in space]
    return _lists([offsets[(np.abs(offsets) <= reach).all(1)] for offsets in lists])


def _begins(core: np.ndarray) -> np.ndarray:
    """Returns the degrees whose core reaches from every corner pixel of an image to a pixel of the image.

    For others the published generator (by cv2.dilate, which has nothing to take a maximum of there) finds no room
    anywhere. With a margin of 1 that is most of them, and the reason why most of the distractors are missing.
    """
    down, right = core[..., 0], core[..., 1]
    corners = [(vertical, across) for vertical in (down, -down) for across in (right, -right)]
    return np.all([((vertical <= 0) & (across <= 0)).any(1) for vertical, across in corners], axis=0)
