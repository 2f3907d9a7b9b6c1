"""Some warps of one block run in lock step: registers are arrays [warps, 32], of unsigned integers or bool."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .memory import Array, Fault, Memory
from .ptx import Instruction, Kernel

TYPES = {f"{kind}{8 * size}": np.dtype(f"u{size}") for kind in "ub" for size in (1, 2, 4, 8)}
TYPES |= {f"s{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)}
TYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}
TYPES |= {"bf16": np.dtype("u2"), "bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4")}
LANES = 32
SHARED_BASE = 1024  # where a block's own shared memory begins


class Warps:
    """Holds the warps' state: `numbers` within their block, `barriers` passed before the block began."""

    def __init__(
        self,
        kernel: Kernel,
        parameters: dict[str, int],
        special: dict[str, int],
        memory: Memory,
        shared: Memory,
        numbers: range,
        barriers: int,
    ) -> None:
        self.kernel, self.parameters, self.memory, self.shared = kernel, parameters, memory, shared
        self.numbers = np.array(numbers)
        self.barriers = barriers
        self.registers: dict[str, Array] = {}
        self.mask: Array = self.full(True, bool)
        lane = self.full(np.arange(LANES), np.uint32)
        self.special = {name: self.full(value, np.uint32) for name, value in special.items()}
        self.special |= {"%laneid": lane, "%tid.x": lane + self.full(self.numbers[:, None] * LANES, np.uint32)}

    def full(self, value: object, dtype: object) -> Array:
        shape = (len(self.numbers), LANES)
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), shape))  # type: ignore[arg-type]

    @property
    def when(self) -> Array:
        return self.full(self.barriers * 1024 + self.numbers[:, None], np.int64)

    def get(self, operand: str, type: str) -> Array:
        """Returns the value [warps,32] of a register or constant, seen as `type`."""
        dtype = TYPES[type]
        if operand in self.registers or operand in self.special:
            bits = self.registers[operand] if operand in self.registers else self.special[operand]
            if bits.dtype.itemsize != dtype.itemsize:
                bits = bits.astype(f"u{dtype.itemsize}")
            return bits if bits.dtype == dtype else bits.view(dtype)
        if operand.startswith("global_smem"):
            return self.full(SHARED_BASE + int(operand[12:] or 0), dtype)
        if float_bits := re.fullmatch(r"0[fd]([0-9A-F]+)", operand):
            return self.full(int(float_bits[1], 16), f"u{dtype.itemsize}").view(dtype)
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+U?", operand):
            value = int(operand.rstrip("U"), 0)
            if type == "pred":
                return self.full(value, bool)
            return self.full(value % 256**dtype.itemsize, f"u{dtype.itemsize}").view(dtype)
        raise Fault(f"{operand} has no value yet")

    def put(self, register: str, value: Array) -> None:
        """Writes a register in the threads that the instruction's predicate chooses."""
        if register == "_":
            return
        value = np.ascontiguousarray(value) if value.shape == self.mask.shape else self.full(value, value.dtype)
        if value.dtype.kind not in "bu":
            value = value.view(f"u{value.dtype.itemsize}")
        if not self.mask.all():
            before = self.registers.get(register, np.zeros_like(value))
            value = np.where(self.mask, value, before.astype(value.dtype))
        self.registers[register] = value

    def address(self, operand: str) -> Array:
        base, offset = re.fullmatch(r"\[\s*(%?\w+)\s*\+?\s*(-?\d*)\s*\]", operand).groups()  # type: ignore[union-attr]
        return self.get(base, "u64" if base.startswith("%rd") else "u32").astype(np.int64) + int(offset or 0)

    def one(self, operand: str, type: str) -> int:
        """Returns a value that must be the same for all threads."""
        value = self.get(operand, type)
        if (value != value[0, 0]).any():
            raise Fault(f"{operand} differs between threads")
        return int(value[0, 0])


Run = Callable[[Warps, Instruction], None]


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x: Array) -> Array:
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)
