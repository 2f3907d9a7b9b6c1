"""Schedules choose the launches of a shape: how the kernels of linear attention are laid out on a GPU.

A program owns one segment of one sequence, one head and one block of V, and walks the segment's chunks of C tokens
with the state on chip. One segment a sequence needs no other launch; shorter ones make more programs, and need the
states at their starts, which are a launch of their own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

SHORT = 256  # up to here one launch is worth more than parallelism: 196 tokens of an image, a prompt
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
TRITON_3_3 = TRITON == (3, 3)  # doesn't compile all of what fits best for sm_90
BUSY = 768  # warps from which a GPU of 108 to 144 multiprocessors has enough to do: 96 programs of eight


@dataclass(frozen=True)
class Schedule:
    """segment: tokens a program walks, None for all of the sequence. chunk: tokens that are taken at a time, at the
    most. A chunk divides a block (`block_size`), and a block a segment. factored: whether a block's gradients are tried
    in one piece before the decay tree."""

    segment: int | None
    chunk: int
    block_k: int
    block_v: int
    warps: int
    factored: bool


def choose(
    T: int, sequences: int, H: int, K: int, V: int, *, direction: str, packed: bool, operand: torch.dtype
) -> Schedule:
    """The default, without tuning.

    | T       | warps              | direction       | segment |
    | ------- | ------------------ | --------------- | ------- |
    | <= 256  | any                | any             | all     |
    | > 256   | >= 768, not packed | causal, reverse | all     |
    | > 256   | any other          | any             | 256     |

    Warps: one for every 16 of V, two at the least (fp32: eight for a block of V), for each sequence and head. Documents
    differ in length, and both directions read a segment twice, the second time from cache if it is short.
    """
    first = _schedule(None, _largest(operand), K, V, operand)
    warps = sequences * H * -(-V // first.block_v) * first.warps
    whole = T <= SHORT or (warps >= BUSY and direction != "both" and not packed)
    return first if whole else _schedule(SHORT, _largest(operand), K, V, operand)


def candidates(T: int, K: int, V: int, *, operand: torch.dtype) -> list[Schedule]:
    """Returns what tuning tries, at most six: all that `choose` can return, and each with half the block of V."""
    segments = [None, *(size for size in (SHORT, 4 * SHORT) if size < T)]
    whole = min(_largest(operand), power_of_two(V))
    widths = dict.fromkeys((whole, max(16, whole // 2)))
    return [_schedule(segment, width, K, V, operand) for width in widths for segment in segments]


def block_size(operand: torch.dtype) -> int:
    """Tokens between two of the states that the backward pass starts from."""
    return 16 if operand == torch.float32 else 64


@functools.cache
def _schedule(segment: int | None, largest: int, K: int, V: int, operand: torch.dtype) -> Schedule:
    """In fp32, which the matrix unit doesn't multiply, operands stay in registers: smaller blocks, more warps. Rows of
    an odd width are loaded number by number, which takes registers too."""
    block_k, block_v = block_sizes(K, V, largest)
    warps = max(2, block_v // 16) if operand == torch.bfloat16 else 8  # the matrix unit's tiles are 16 high
    if operand == torch.bfloat16:
        return Schedule(segment, 16 if odd(K, V) else 32, block_k, block_v, warps, factored=not TRITON_3_3)
    return Schedule(segment, 16, block_k, block_v, warps, factored=False)


def _largest(operand: torch.dtype) -> int:
    return 128 if operand == torch.bfloat16 and not TRITON_3_3 else 64


def block_sizes(K: int, V: int, largest: int) -> tuple[int, int]:
    """Powers of two from 16, the matrix unit's smallest side. A block of K is no longer than one of V, and shorter
    where masks or further blocks take registers."""
    block_v = min(largest, power_of_two(V))
    block_k = min(block_v, power_of_two(K))
    masked = K % block_k or V % block_v
    if block_k == 128 and (masked or K > 128):
        block_k = 64
    if block_k == 64 < K and (masked or block_v == 64):
        block_k = 32
    return block_k, block_v


def odd(K: int, V: int) -> bool:
    return K % 2 == 1 or V % 2 == 1


def power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())
