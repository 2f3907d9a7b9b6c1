"""These instructions compute, each lane for itself.

Source: NVIDIA, PTX ISA 9, section 9.7. Approximate functions are exact here, but for subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .memory import Array
from .ptx import Instruction
from .warps import TYPES, Run, Warps, from_bf16, to_bf16


def flush(x: Array) -> Array:
    """Replaces subnormal numbers by zero."""
    return np.where(np.abs(x) < 2.0**-126, np.float32(0), x).astype(np.float32)


def wider(type: str) -> np.dtype:
    return np.dtype(f"{TYPES[type].kind}{2 * TYPES[type].itemsize}")


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "rem": np.fmod,
    "neg": np.negative,
    "ex2": lambda x: flush(np.exp2(flush(x))),
    "lg2": lambda x: np.log2(flush(x)),
    "rcp": lambda x: flush(1 / flush(x)),
    "sqrt": np.sqrt,
}
BITS = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
ROUNDED = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def apply(w: Warps, i: Instruction) -> None:
    function = (FUNCTIONS | BITS)[i.name]
    w.put(i.operands[0], function(*(w.get(x, i.type) for x in i.operands[1:])).astype(TYPES[i.type]))


def extreme(w: Warps, i: Instruction) -> None:
    """Returns the number of a number and NaN, unless the instruction says otherwise."""
    number = {"min": np.fmin, "max": np.fmax}[i.name]
    function = {"min": np.minimum, "max": np.maximum}[i.name] if "NaN" in i.modifiers else number
    w.put(i.operands[0], function(w.get(i.operands[1], i.type), w.get(i.operands[2], i.type)))


def absolute(w: Warps, i: Instruction) -> None:
    if "16" in i.type:
        bits, signs = ("u32", 0x7FFF7FFF) if i.type.endswith("x2") else ("u16", 0x7FFF)
        w.put(i.operands[0], w.get(i.operands[1], bits) & signs)
    else:
        w.put(i.operands[0], np.abs(w.get(i.operands[1], i.type)))


def multiply(w: Warps, i: Instruction) -> None:
    a, b = (w.get(x, i.type) for x in i.operands[1:3])
    if "wide" in i.modifiers:
        product = a.astype(wider(i.type)) * b.astype(wider(i.type))
    elif "hi" in i.modifiers:
        product = (a.astype(wider(i.type)) * b.astype(wider(i.type)) >> 8 * a.dtype.itemsize).astype(a.dtype)
    else:
        product = a * b
    if i.name == "mad":
        product = product + w.get(i.operands[3], f"u{8 * product.dtype.itemsize}").view(product.dtype)
    w.put(i.operands[0], product)


def fused(w: Warps, i: Instruction) -> None:
    a, b, c = (w.get(x, i.type).astype(np.float64) for x in i.operands[1:])
    w.put(i.operands[0], (a * b + c).astype(TYPES[i.type]))


def divide(w: Warps, i: Instruction) -> None:
    a, b = (w.get(x, i.type) for x in i.operands[1:])
    if i.type.startswith("f"):
        w.put(i.operands[0], a / b)
    else:
        a, b = a.astype(np.int64), b.astype(np.int64)
        w.put(i.operands[0], (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(TYPES[i.type]))


def shift(w: Warps, i: Instruction) -> None:
    x, by = w.get(i.operands[1], i.type), w.get(i.operands[2], "u32")
    bits = 8 * x.dtype.itemsize
    places = np.minimum(by, bits - 1).astype(x.dtype)
    shifted = x << places if i.name == "shl" else x >> places
    w.put(i.operands[0], shifted if i.type.startswith("s") else np.where(by >= bits, 0, shifted).astype(x.dtype))


def extract_bits(w: Warps, i: Instruction) -> None:
    x, start, count = (w.get(operand, "u32").astype(np.int64) for operand in i.operands[1:])
    field = (x >> start) & ((1 << count) - 1)
    if i.type == "s32":
        field -= (field >> np.maximum(count - 1, 0) & 1) << count
    w.put(i.operands[0], field.astype(np.uint32))


def permute_bytes(w: Warps, i: Instruction) -> None:
    a, b, selected = (w.get(x, "u32").astype(np.uint64) for x in i.operands[1:])
    both, result = a | b << 32, np.zeros_like(a)
    for n in range(4):
        chosen = selected >> (4 * n) & 15
        byte = both >> (8 * (chosen & 7)) & 255
        byte = np.where(chosen & 8, np.where(byte & 128, 255, 0), byte).astype(np.uint64)  # the sign alone
        result |= byte << (8 * n)
    w.put(i.operands[0], result.astype(np.uint32))


def count_bits(w: Warps, i: Instruction) -> None:
    x = w.get(i.operands[1], i.type)
    bits = np.unpackbits(x.view(np.uint8).reshape(*x.shape, x.dtype.itemsize), axis=-1)
    w.put(i.operands[0], bits.sum(-1).astype(np.uint32))


def compare(w: Warps, i: Instruction) -> None:
    """Compares: eq, ... are false if one side is NaN, equ, ... true."""
    relation, targets = i.modifiers[1], i.operands[0].split("|")
    a, b = (w.get(x, i.type) for x in i.operands[1:3])
    halves = [(x & 0xFFFF, x >> 16) if i.type.endswith("x2") else (x,) for x in (a, b)]
    for target, x, y in zip(targets, *halves, strict=True):
        if i.type.startswith("bf16"):
            x, y = from_bf16(x), from_bf16(y)
        elif i.type == "f16x2":
            x, y = (z.astype(np.uint16).view(np.float16) for z in (x, y))
        known = ~(np.isnan(x) | np.isnan(y)) if x.dtype.kind == "f" else True
        if relation in COMPARISONS:
            w.put(target, COMPARISONS[relation](x, y) & known)
        elif relation[:2] in COMPARISONS and relation[2:] == "u":
            w.put(target, COMPARISONS[relation[:2]](x, y) | ~known)
        else:
            raise NotImplementedError(relation)


def select(w: Warps, i: Instruction) -> None:
    yes, no = (w.get(x, i.type) for x in i.operands[1:3])
    w.put(i.operands[0], np.where(w.get(i.operands[3], "pred"), yes, no))


def convert(w: Warps, i: Instruction) -> None:
    to, kind = (part for part in i.modifiers if part in TYPES)
    whole = next((ROUNDED[part] for part in i.modifiers if part in ROUNDED), lambda x: x)

    def converted(operand: str, to: str) -> Array:
        x = w.get(operand, kind)
        x = whole(from_bf16(x) if kind == "bf16" else x)
        return to_bf16(x.astype(np.float32)) if to == "bf16" else x.astype(TYPES[to])

    if to.endswith("x2"):
        high, low = (converted(x, to[:-2]).view(np.uint16).astype(np.uint32) for x in i.operands[1:])
        w.put(i.operands[0], high << 16 | low)
    else:
        w.put(i.operands[0], converted(i.operands[1], to))


INSTRUCTIONS: dict[str, Run] = {
    **dict.fromkeys([*FUNCTIONS, *BITS], apply),
    "min": extreme,
    "max": extreme,
    "abs": absolute,
    "mul": multiply,
    "mad": multiply,
    "fma": fused,
    "div": divide,
    "shl": shift,
    "shr": shift,
    "bfe": extract_bits,
    "prmt": permute_bytes,
    "popc": count_bits,
    "setp": compare,
    "selp": select,
    "cvt": convert,
}
