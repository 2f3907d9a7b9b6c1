"""This memory checks every access: it must be allocated and aligned, and no other warp may interfere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Fault(Exception):
    """Reports an error that a GPU would not survive, or a result that depends on the order of warps."""


class Memory:
    """Holds bytes from address 0 on. Only `allocate`d ones may be touched, and they begin as NaN.

    An access is `size` bytes at `address` [N]; `when` [N] is 1024 times the barriers passed by then, plus the warp.

    `races`: it is a fault when two warps touch the same two bytes between two barriers and one of them writes. `shared`
    says whether a read before another warp's write counts. In global memory it doesn't: Triton loads a replicated tile
    by all warps and stores it by one, which is right in any order.
    """

    def __init__(self, size: int, *, shared: bool, races: bool) -> None:
        self.bytes = np.full(-(-size // 16) * 16, 0xFF, np.uint8)
        self.allocated = np.zeros(self.bytes.size, bool)
        self.shared, self.races = shared, races
        self.written = np.full(self.bytes.size // 2 if races else 0, -1, np.int64)  # two bytes: when and by whom
        self.read = self.written.copy()

    def allocate(self, start: int, size: int) -> None:
        self.allocated[start : start + size] = True

    def load(self, address: Array, size: int, when: Array) -> Array:
        """Loads [N] unsigned numbers."""
        self._check(address, size)
        if self.races:
            self._check_races(address, size, when, writing=False)
        return self.bytes.view(f"u{size}")[address // size]

    def store(self, address: Array, values: Array, when: Array) -> None:
        """Stores numbers. Several warps may store the same number."""
        size = values.dtype.itemsize
        self._check(address, size)
        new = self.bytes.view(f"u{size}")[address // size] != values
        if self.races:
            self._check_races(address[new], size, when[new], writing=True)
        self.bytes.view(f"u{size}")[address // size] = values

    def _check(self, address: Array, size: int) -> None:
        if (address % size).any():
            raise Fault(f"misaligned address {address[address % size != 0][0]}")
        if address.size and (address.min() < 0 or address.max() + size > self.bytes.size):
            raise Fault("address out of bounds")
        if not (self.allocated[address].all() and self.allocated[address + size - 1].all()):
            raise Fault("address out of bounds")

    def _check_races(self, address: Array, size: int, when: Array, *, writing: bool) -> None:
        places = address[:, None] // 2 + np.arange(max(1, size // 2))
        now = np.broadcast_to(when[:, None], places.shape)

        def others(before: Array) -> Array:
            return (before >> 10 == now >> 10) & (before != now)

        if others(self.written[places]).any():
            raise Fault("race: another warp wrote here since the last barrier")
        if writing:
            if self.shared and others(self.read[places]).any():
                raise Fault("race: another warp read this since the last barrier")
            self.written[places] = now
        else:
            several = others(self.read[places])
            self.read[places] = now
            several |= self.read[places] != now
            self.read[places] = np.where(several, now | 1023, now)
