"""Scan orders: the ways in which a mixer, which knows one axis, goes through an image of H x W tokens.

A name stands for passes of a mixer, and a pass for orders whose scans are summed before the readout, so that an order
costs a scan and no linear map. A bidirectional mixer goes through every order both ways.

    row       row after row, the image one sequence                    HGRN's and HGRN2's "1d" (arXiv:2311.04823)
    column    column after column, the image one sequence
    cross     row + column                                             VMamba's cross-scan (arXiv:2401.10166)
    both      every row a sequence + every column a sequence           the HGRN authors' 2-D "parallel"; for attention,
                                                                       axial attention (arXiv:1912.12180)
    series    every column a sequence, then, in a second pass with     the HGRN authors' 2-D "series"
              the same weights, every row a sequence
    snake     rows, every second one backwards                         continuous scan of PlainMamba (arXiv:2403.17695)
    hilbert   Hilbert's curve of the enclosing square, without the     Hilbert 1891
              tokens outside of the image

    plane     the image as it stands, its two axes known: for mixers     pLSTM (arXiv:2506.11997), HorNet's gnConv
              with a form of their own on them                           (arXiv:2207.14284)

All of them work for any H and W; all but hilbert, which looks its way up, for an H and W that an export leaves open.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mixerzoo.mixers.parts.layout import Plane, ScanOrder
from mixerzoo.registry.registry import unknown


class Grid(NamedTuple):
    """Along the rows, or the columns, of an image; as one sequence, or with `lines` a sequence a row or column."""

    height: int
    width: int
    by_column: bool = False
    lines: bool = False

    def apply(self, x: Tensor) -> Tensor:
        if self.by_column:
            x = x.unflatten(1, (self.height, self.width)).transpose(1, 2).flatten(1, 2)
        line = self.height if self.by_column else self.width
        return x.reshape(-1, line, *x.shape[2:]) if self.lines else x

    def undo(self, y: Tensor) -> Tensor:
        if self.lines:
            y = y.reshape(-1, self.height * self.width, *y.shape[2:])
        if self.by_column:
            y = y.unflatten(1, (self.width, self.height)).transpose(1, 2).flatten(1, 2)
        return y


class Snake(NamedTuple):
    """Along the rows of an image, every second one backwards. It is its own inverse."""

    height: int
    width: int

    def apply(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.height, self.width))
        backwards = torch.arange(self.height, device=x.device) % 2 == 1
        return torch.where(backwards.view(-1, *[1] * (x.ndim - 1)), rows.flip(2), rows).flatten(1, 2)

    def undo(self, y: Tensor) -> Tensor:
        return self.apply(y)


class Table(NamedTuple):
    """Place p of the sequence shows token `tokens[b, p]`: [B or 1,T] int64, a permutation in every row."""

    tokens: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return _take(x, self.tokens)

    def undo(self, y: Tensor) -> Tensor:
        return _take(y, self.tokens.argsort(1))


def scan_passes(
    name: str, height: int, width: int, *, kept: Tensor | None = None, class_token: bool = False
) -> tuple[tuple[ScanOrder, ...], ...]:
    """What a block does with an image: for every pass, the orders to give to the mixer.

    Args:
        name: a scan order of the table above.
        height, width: of the image in tokens; token (i, j) stands at place i width + j.
        kept: [B,n] int64, ascending: the places of the tokens that are there (patch dropout); None: all are.
        class_token: a further token stands in the middle of the row-major sequence, at place n//2 of n+1, and in the
            middle of every order's.

    Raises ValueError for an unknown name, a size below 1, and for orders that cut the image into lines with `kept` or
    `class_token`."""
    check_scan_order(name, whole_image=kept is not None or class_token)
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} x {width}")
    passes = _passes(name, height, width)
    if name == "row" or (kept is None and not class_token):
        return passes
    return tuple(tuple(_with_other_tokens(order, height * width, kept, class_token) for order in p) for p in passes)


def check_scan_order(name: str, *, whole_image: bool = False) -> None:
    """Raises ValueError for a name that is no scan order or, for `whole_image`, one that needs the image whole."""
    if name not in SCAN_ORDERS:
        raise ValueError(unknown("scan order", name, SCAN_ORDERS))
    if whole_image and name in WHOLE_IMAGE:
        reason = "cuts the image into lines" if name in BY_LINES else "needs the image's two axes"
        raise ValueError(
            f"scan order {name!r} {reason}, which a class token or patch dropout doesn't leave whole; "
            f"remedy: one of {', '.join(order for order in SCAN_ORDERS if order not in WHOLE_IMAGE)}"
        )


SCAN_ORDERS = ("row", "column", "cross", "both", "series", "snake", "hilbert", "plane")
BY_LINES = ("both", "series")
WHOLE_IMAGE = (*BY_LINES, "plane")  # which a class token or patch dropout leaves no longer whole


def _passes(name: str, height: int, width: int) -> tuple[tuple[ScanOrder, ...], ...]:
    row, column = Grid(height, width), Grid(height, width, by_column=True)
    rows, columns = row._replace(lines=True), column._replace(lines=True)
    if name == "hilbert":
        return ((Table(torch.tensor([_hilbert(height, width)])),),)
    passes: dict[str, tuple[tuple[ScanOrder, ...], ...]] = {
        "row": ((),),
        "column": ((column,),),
        "cross": ((row, column),),
        "both": ((rows, columns),),
        "series": ((columns,), (rows,)),
        "snake": ((Snake(height, width),),),
        "plane": ((Plane(height, width),),),
    }
    return passes[name]


def _with_other_tokens(order: ScanOrder, tokens: int, kept: Tensor | None, class_token: bool) -> Table:
    """The order of the tokens that are there, the class token in the middle."""
    place = order.undo(torch.arange(tokens, device=None if kept is None else kept.device)[None])
    if kept is not None:
        place = place.expand(kept.shape[0], -1).gather(1, kept)
    index = place.argsort(1)
    if class_token:
        middle = index.shape[1] // 2
        index = index + (index >= middle)
        index = torch.cat([index[:, :middle], torch.full_like(index[:, :1], middle), index[:, middle:]], 1)
    return Table(index)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, p]]: [B,T,...] -> [B,T,...]."""
    index = index.to(x.device).view(*index.shape, *[1] * (x.ndim - 2))
    return x.gather(1, index.expand(x.shape[0], -1, *x.shape[2:]))


@functools.lru_cache(maxsize=64)
def _hilbert(height: int, width: int) -> tuple[int, ...]:
    """The tokens of a height x width image in the order in which Hilbert's curve passes them."""
    cells = [(0, 0)]
    while 2 ** (bits := len(cells).bit_length() // 2) < max(height, width):
        side = 2**bits
        lower = [(column, row) for row, column in cells]
        right = [(side + row, column) for row, column in cells]
        below = [(side + row, side + column) for row, column in cells]
        back = [(side - 1 - column, 2 * side - 1 - row) for row, column in cells]
        cells = lower + right + below + back
    return tuple(row * width + column for row, column in cells if row < height and column < width)
