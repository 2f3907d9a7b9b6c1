"""Tensor cores sum exact products and round to fp32 once; asynchronous products are done at once.

Lane l of a warp has the rows l // 4 and l // 4 + 8 of a result and, of every eight columns, 2 (l % 4) and the next.
Source: NVIDIA, PTX ISA 9, sections 9.7.14 (mma) and 9.7.15 (wgmma).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .memory import Array
from .ptx import Instruction, names
from .warps import LANES, Run, Warps, from_bf16

NUMBERS: dict[str, Callable[[Array], Array]] = {"bf16": from_bf16, "f16": lambda bits: bits.view(np.float16)}


def multiply_matrices(w: Warps, i: Instruction) -> None:
    kind = i.modifiers[7]
    if kind not in NUMBERS or i.modifiers[3:] != ("m16n8k16", "row", "col", "f32", kind, kind, "f32"):
        raise NotImplementedError(i.text)
    to, a, b, c = (names(x) for x in i.operands)
    _accumulate(w, to, c, _rows(w, a, kind), np.concatenate(_quarters(w, b, kind), 2))


def multiply_matrices_of_four_warps(w: Warps, i: Instruction) -> None:
    """Multiplies with four warps together, each with 16 rows of a. Shared memory has b, and a if registers don't."""
    if i.modifiers[1] != "mma_async":
        return
    kind = i.modifiers[-1]
    if kind not in NUMBERS or i.modifiers[-3:] != ("f32", kind, kind):
        raise NotImplementedError(i.text)
    size = re.match(r"m64n(\d+)k16", i.modifiers[4])
    to, (a, b, keep), transposed = names(i.operands[0]), i.operands[1:4], i.operands[6:]
    if a.startswith("{"):
        rows = _rows(w, names(a), kind)
    else:
        whole = _in_shared_memory(w, a, 64, transposed[0] == "1", kind)
        rows = np.stack([x[16 * (n % 4) :][:16] for n, x in zip(w.numbers, whole, strict=True)])
    before = to if w.one(keep, "pred") else []
    columns = _in_shared_memory(w, b, int(size[1]), transposed[-1] == "1", kind)  # type: ignore[index]
    _accumulate(w, to, before, rows, columns)


def _quarters(w: Warps, registers: list[str], kind: str) -> list[Array]:
    """Returns matrices, [warps,8,8] each."""
    return [NUMBERS[kind](w.get(x, "u32").view(np.uint16)).reshape(-1, 8, 8) for x in registers]


def _rows(w: Warps, registers: list[str], kind: str) -> Array:
    """Returns [warps,16,16] from four quarters."""
    quarters = _quarters(w, registers, kind)
    return np.concatenate([np.concatenate(quarters[:2], 1), np.concatenate(quarters[2:], 1)], 2)


def _accumulate(w: Warps, to: list[str], before: list[str], a: Array, b: Array) -> None:
    """Adds a [warps,16,16] @ b^T, b [warps,columns,16], in fp32."""
    product = (a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1)).reshape(len(a), 2, 8, -1, 4, 2)
    for n, register in enumerate(to):
        entry = product[:, n % 4 // 2, :, n // 4, :, n % 2].reshape(-1, LANES)
        w.put(register, (entry + w.get(before[n], "f32") if before else entry).astype(np.float32))


def _in_shared_memory(w: Warps, descriptor: str, rows: int, transposed: bool, kind: str) -> Array:
    """Loads [warps,rows,16] of a descriptor's matrix; `transposed`: rows lie next to each other.

    Source: PTX ISA 9, section 9.7.15.5 (matrix descriptor, canonical layouts, swizzling).
    """
    found = []
    row, column = np.arange(rows)[:, None], np.arange(16)[None, :]
    for warp, bits in zip(w.numbers, w.get(descriptor, "u64")[:, 0].tolist(), strict=True):
        start, leading, stride = ((bits >> place & 0x3FFF) << 4 for place in (0, 16, 32))
        mode = bits >> 62
        width = (16, 128, 64, 32)[mode]
        if not transposed:
            address = start + row // 8 * stride + row % 8 * width + 2 * column
            if mode == 0:
                address += column // 8 * (leading - 16)
        elif mode == 0:
            address = start + row // 8 * stride + row % 8 * 2 + column // 8 * leading + column % 8 * 16
        else:
            blocks, inside = np.divmod(row, width // 2)
            address = start + blocks * leading + inside * 2 + column // 8 * stride + column % 8 * width
        if mode:
            address ^= (address >> 7 & width // 16 - 1) << 4
        when = np.full(address.size, w.barriers * 1024 + warp)
        found.append(NUMBERS[kind](w.shared.load(address.ravel(), 2, when)).reshape(rows, 16))
    return np.stack(found)


INSTRUCTIONS: dict[str, Run] = {
    "mma": multiply_matrices,
    "wgmma": multiply_matrices_of_four_warps,
}
