"""These instructions move numbers between registers, memory and lanes.

Source: NVIDIA, PTX ISA 9, section 9.7.
"""

from __future__ import annotations

import numpy as np

from .memory import Fault, Memory
from .ptx import Instruction, names
from .warps import LANES, TYPES, Run, Warps


def move(w: Warps, i: Instruction) -> None:
    """Moves a register; several registers may make up one."""
    to, source = names(i.operands[0]), names(i.operands[1])
    size = TYPES[i.type].itemsize
    if len(to) > 1:
        parts = w.get(source[0], f"u{8 * size}").view(f"u{size // len(to)}").reshape(-1, LANES, len(to))
        for n, register in enumerate(to):
            w.put(register, parts[..., n])
    elif len(source) > 1:
        parts = np.stack([w.get(x, f"u{8 * size // len(source)}") for x in source], -1)
        w.put(to[0], parts.view(f"u{size}")[..., 0])
    else:
        w.put(to[0], w.get(source[0], i.type))


def load(w: Warps, i: Instruction) -> None:
    size = TYPES[i.type].itemsize
    if "param" in i.modifiers:
        w.put(i.operands[0], w.full(w.parameters[i.operands[1].strip("[]")] % 256**size, f"u{size}"))
        return
    memory, registers, address = _memory(w, i), names(i.operands[0]), w.address(i.operands[1])
    if (address[w.mask] % (size * len(registers))).any():
        raise Fault("misaligned vector")
    for n, register in enumerate(registers):
        value = w.full(0, f"u{size}").copy()
        value[w.mask] = memory.load(address[w.mask] + n * size, size, w.when[w.mask])
        w.put(register, value)


def store(w: Warps, i: Instruction) -> None:
    size = TYPES[i.type].itemsize
    memory, registers, address = _memory(w, i), names(i.operands[1]), w.address(i.operands[0])
    if (address[w.mask] % (size * len(registers))).any():
        raise Fault("misaligned vector")
    for n, register in enumerate(registers):
        memory.store(address[w.mask] + n * size, w.get(register, f"u{8 * size}")[w.mask], w.when[w.mask])


def prefetch(w: Warps, i: Instruction) -> None:
    """Checks the address as a load does, and does nothing else. A GPU would silently ignore a wrong one."""
    w.memory.load(w.address(i.operands[0])[w.mask], 1, w.when[w.mask])


def _memory(w: Warps, i: Instruction) -> Memory:
    return w.shared if any(part.startswith("shared") for part in i.modifiers) else w.memory


def matrices(w: Warps, i: Instruction) -> None:
    """Moves 8 x 8 matrices of 16 bits.

    Lanes 8n to 8n + 7 name the rows of the n-th; lane l has entries 2l and 2l + 1.
    """
    loading = i.name == "ldmatrix"
    registers, rows = i.operands if loading else reversed(i.operands)
    address = w.address(rows)
    for n, register in enumerate(names(registers)):
        places = (address[:, 8 * n : 8 * n + 8, None] + 2 * np.arange(8)).ravel()
        if (places[::8] % 16).any():
            raise Fault("misaligned row of a matrix")
        when = np.repeat(w.when[:, 0], 64)
        if loading:
            matrix = w.shared.load(places, 2, when).reshape(-1, 8, 8)
            matrix = matrix.transpose(0, 2, 1) if "trans" in i.modifiers else matrix
            w.put(register, np.ascontiguousarray(matrix).view(np.uint32).reshape(-1, LANES))
        else:
            matrix = w.get(register, "u32").view(np.uint16).reshape(-1, 8, 8)
            matrix = matrix.transpose(0, 2, 1) if "trans" in i.modifiers else matrix
            w.shared.store(places, matrix.ravel(), when)


def shuffle(w: Warps, i: Instruction) -> None:
    """A lane whose source is beyond the warp keeps its own value."""
    how, by, lane = i.modifiers[2], w.get(i.operands[2], "u32").astype(np.int64), np.arange(LANES)
    if int(i.operands[3], 0) != (0 if how == "up" else 31):
        raise NotImplementedError("parts of a warp")
    source = {"bfly": lane ^ by, "idx": by + 0 * lane, "up": lane - by, "down": lane + by}[how]
    known = (source >= 0) & (source < LANES)
    target, *valid = i.operands[0].split("|")
    w.put(target, np.take_along_axis(w.get(i.operands[1], "u32"), np.where(known, source, lane), 1))
    for register in valid:
        w.put(register, known)


def reduce(w: Warps, i: Instruction) -> None:
    if i.modifiers[2] != "add" or w.one(i.operands[2], "u32") != 0xFFFFFFFF:
        raise NotImplementedError("other than sums over whole warps")
    x = w.get(i.operands[1], i.type)
    w.put(i.operands[0], x.sum(1, keepdims=True, dtype=x.dtype) + np.zeros_like(x))


def wait(w: Warps, i: Instruction) -> None:
    """Does nothing for a warp's barrier and the order of its own memory accesses: lanes are in lock step."""


INSTRUCTIONS: dict[str, Run] = {
    "mov": move,
    "cvta": move,
    "ld": load,
    "st": store,
    "prefetch": prefetch,
    "ldmatrix": matrices,
    "stmatrix": matrices,
    "shfl": shuffle,
    "redux": reduce,
    "bar": wait,
    "fence": wait,
}
