"""Runs Triton's compiled code for NVIDIA's GPUs on the CPU: slow, and without a GPU.

    with emulated("sm_90"):
        y, state = hgrn2(q, x, v, lower_bound, backend="triton")    # tensors on the CPU, bf16 too

Triton's interpreter runs a kernel's source, and its bf16 isn't bf16. The emulator runs the compiled PTX, with tensor
cores, shared memory and barriers. It finds what a GPU would hide: addresses out of bounds, and results that depend on
which warp comes first. It knows only the instructions of the kernels here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from mixerzoo.kernels import launch
from mixerzoo.kernels.check.compile import machine_code
from mixerzoo.kernels.launch import Launch

from .memory import Fault, Memory
from .ptx import parse
from .run import run_block
from .warps import SHARED_BASE, Warps

__all__ = ["TARGETS", "Fault", "emulated"]

TARGETS = ("sm_80", "sm_90")
PAGE = 256  # tensors begin at its multiples, with at least one between them


@contextmanager
def emulated(target: str, *, races: bool = True, apart: bool = False) -> Iterator[None]:
    """Makes every `Launch.run` inside the block run the code for `target`, sm_80 or sm_90, in blocks in random order.

    races: whether two warps that touch the same memory without a barrier between them are a Fault.
    apart: every warp runs alone to the next barrier, in random order, instead of all in lock step.
    """
    order = random.Random(0)

    def run(self: Launch) -> None:
        _run(self, target, order, races=races, apart=apart)

    with patch.object(Launch, "run", run), patch.object(launch, "interpreted", lambda: True):
        yield


def _run(launch: Launch, target: str, order: random.Random, *, races: bool, apart: bool) -> None:
    compiled, warps = machine_code(launch, target), launch.program.on(target).num_warps
    kernel = parse(compiled.asm["ptx"])
    tensors = {x.untyped_storage().data_ptr(): x for x in launch.arguments.values() if isinstance(x, Tensor)}
    begins, end = {}, PAGE
    for key, tensor in tensors.items():
        begins[key] = end
        end += (tensor.untyped_storage().nbytes() // PAGE + 2) * PAGE
    memory = Memory(end, shared=False, races=races)
    for key, tensor in tensors.items():
        content = _bytes(tensor)
        memory.allocate(begins[key], content.size)
        memory.bytes[begins[key] :][: content.size] = content

    values = []
    for name, kind in compiled.src.signature.items():
        argument = launch.arguments.get(name)
        if isinstance(argument, Tensor):
            begin = begins[argument.untyped_storage().data_ptr()]
            values.append(begin + argument.storage_offset() * argument.element_size())
        elif kind == "fp32":
            values.append(int(np.float32(argument).view(np.uint32)))
        elif kind != "constexpr":
            values.append(int(argument))
    scratch = [0] * (len(kernel.parameters) - len(values))  # Triton's own, which nothing here uses
    parameters = dict(zip(kernel.parameters, values + scratch, strict=True))

    grid = (*launch.grid, 1, 1)[:3]
    blocks = list(product(*map(range, grid)))
    order.shuffle(blocks)
    sizes = {f"%nctaid.{axis}": size for axis, size in zip("xyz", grid, strict=True)}
    for number, block in enumerate(blocks):
        shared = Memory(SHARED_BASE + compiled.metadata.shared, shared=True, races=races)
        shared.allocate(SHARED_BASE, compiled.metadata.shared)
        place = {f"%ctaid.{axis}": index for axis, index in zip("xyz", block, strict=True)}
        size = 1 if apart else warps
        groups = [
            Warps(kernel, parameters, place | sizes, memory, shared, range(first, first + size), number << 20)
            for first in range(0, warps, size)
        ]
        run_block(groups, order)
    for key, tensor in tensors.items():
        content = _bytes(tensor)
        content[:] = memory.bytes[begins[key] :][: content.size]


def _bytes(tensor: Tensor) -> np.ndarray:
    """Returns all of a tensor's storage."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),)).numpy()
