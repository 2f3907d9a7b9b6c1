"""Runs one block: its warps from barrier to barrier."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator

import numpy as np

from . import arithmetic, movement, tensor_cores
from .memory import Fault
from .warps import TYPES, Run, Warps

INSTRUCTIONS: dict[str, Run] = arithmetic.INSTRUCTIONS | movement.INSTRUCTIONS | tensor_cores.INSTRUCTIONS
# What is done, or makes no difference here: rounding to nearest, flushing where functions are exact, address spaces.
KNOWN = r"""(rn|ftz|approx|full|r[nzmp]i|lo|hi|wide|NaN|(eq|ne|lt|le|gt|ge)u?|param|global|shared(::cta)?|v[24]
    |m8n8|x[124]|trans|sync|aligned|warp|proxy|async(::\w+)*|up|down|bfly|idx|add|row|col|m16n8k16|m64n\d+k16|fence|mma_async
    |commit_group|wait_group|L2)"""

OF_16_BITS = ("abs", "cvt", "setp", "mma", "wgmma")  # the only ones that know bf16 and f16


def run_block(groups: list[Warps], order: random.Random) -> None:
    """Runs each group alone to the next barrier, in random order."""
    runs = [_to_next_barrier(group) for group in groups]
    waiting = [True]
    while any(waiting):
        order.shuffle(runs)
        waiting = [next(run, "ended") is None for run in runs]
        if any(waiting) and not all(waiting):
            raise Fault("some warps wait at a barrier, others have ended")


def _to_next_barrier(w: Warps) -> Iterator[None]:
    at, everybody = 0, w.mask
    while True:
        i = w.kernel.code[at]
        at += 1
        w.mask = everybody if i.predicate is None else w.get(i.predicate, "pred") ^ i.negated
        if not w.mask.any():
            continue
        try:
            if i.name in ("bra", "ret"):
                if not w.mask.all():
                    raise Fault("threads of a warp go different ways")
                if i.name == "ret":
                    return
                at = w.kernel.labels[i.operands[0]]
            elif i.modifiers == ("bar", "sync"):
                w.barriers += 1
                yield
            else:
                with np.errstate(all="ignore"):
                    _find(i.modifiers)(w, i)
        except (Fault, NotImplementedError) as error:
            raise type(error)(f"{error}, in {i.source}: {i.text}") from error


@functools.cache
def _find(modifiers: tuple[str, ...]) -> Run:
    name, *others = modifiers
    known = name in INSTRUCTIONS and all(x in TYPES or re.fullmatch(KNOWN, x, re.VERBOSE) for x in others)
    if not known or (re.match("b?f16", others[-1]) and name not in OF_16_BITS):
        raise NotImplementedError(".".join(modifiers))
    return INSTRUCTIONS[name]
