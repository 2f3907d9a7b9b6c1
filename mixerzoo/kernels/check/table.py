"""Compiles every kernel in every configuration for every chip, and counts every op's bytes: all cores, no GPU.

An op that has kernels says in its `triton_examples.py` what they are tried on. `examples()` yields (configuration,
launches) to compile, the tensors on `meta`; `counted()` yields (inputs, `Passes`) to count the bytes of.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..launch import Launch
from .bytes import Moved, Passes, measure
from .compile import Compiled, check_target, compile_launch, require_compiler

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checked:
    """One launch on one chip: what it takes, or why it doesn't compile."""

    op: str
    configuration: str
    target: str
    kernel: str
    result: Compiled | str

    @property
    def good(self) -> bool:
        return isinstance(self.result, Compiled) and self.result.fits


@dataclass(frozen=True)
class Counted:
    op: str
    inputs: str
    moved: Moved


def compile_all(targets: Sequence[str], op: str | None, workers: int, progress: Progress) -> list[Checked]:
    """Compiles every launch of every example of one op, or of all, on each target.

    Raises ValueError for a target or an op that isn't there, and under Triton's interpreter.
    """
    require_compiler()
    for target in targets:
        check_target(target)
    jobs = [
        (name, index, position, target)
        for target in targets
        for name in _chosen(op)
        for index, (_, launches) in enumerate(examples_of(name))
        for position in range(len(launches))
    ]
    return _in_processes(_compile, jobs, workers, progress)


def count_all(op: str | None, workers: int, progress: Progress) -> list[Counted]:
    """Counts the bytes of one op, or of all, in processes where Triton's interpreter stands in for a GPU."""
    jobs = [(name, index) for name in _chosen(op) for index in range(len(counted_of(name)))]
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"  # must stand before a process begins
    try:
        return _in_processes(_count, jobs, workers, progress)
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def ops_with_kernels() -> list[str]:
    """Returns the ops whose folders have examples."""
    return sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/triton_examples.py"))


@cache
def examples_of(op: str) -> list[tuple[str, list[Launch]]]:
    return list(import_module(f"mixerzoo.kernels.{op}.triton_examples").examples())


@cache
def counted_of(op: str) -> list[tuple[str, Passes]]:
    return list(import_module(f"mixerzoo.kernels.{op}.triton_examples").counted())


def _chosen(op: str | None) -> list[str]:
    known = ops_with_kernels()
    if op is not None and op not in known:
        raise ValueError(f"op {op!r} has no kernels; those that have: {', '.join(known)}")
    return known if op is None else [op]


def _compile(op: str, index: int, position: int, target: str) -> Checked:
    configuration, launches = examples_of(op)[index]
    launch = launches[position]
    result: Compiled | str
    try:
        result = compile_launch(launch, target)
    except Exception as error:  # whatever a compiler comes up with belongs in the table
        result = f"{type(error).__name__}: {error}"
    return Checked(op, configuration, target, launch.program.kernel.__name__, result)


def _count(op: str, index: int) -> Counted:
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of values that mean nothing here
    torch.set_num_threads(1)
    inputs, passes = counted_of(op)[index]
    return Counted(op, inputs, measure(passes))


def _in_processes(work: Callable[..., Any], jobs: list[Any], workers: int, progress: Progress) -> list[Any]:
    """Returns results in the order of the jobs, each made in a process that has decided whether Triton compiles."""
    progress(0, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures: list[Future[Any]] = [pool.submit(work, *job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def compiled_table(rows: Iterable[Checked]) -> Table:
    """Spilled: bytes a thread; shared and its limit: bytes a program. Parked: see `Compiled`."""
    header = ("warps", "registers", "parked", "spilled", "shared", "limit")
    table = _table("kernel", "configuration", "target", numbers=header)
    for row in rows:
        if isinstance(row.result, Compiled):
            took = row.result
            numbers = (took.num_warps, took.registers, took.parked, took.spilled, took.shared, took.shared_limit)
            cells = [f"{number:,}" for number in numbers]
        else:
            cells = ["doesn't compile"]
        configuration = f"{row.op} {row.configuration}"
        table.add_row(row.kernel, configuration, row.target, *cells, style=None if row.good else "bold red")
    return table


def bytes_table(rows: Iterable[Counted]) -> Table:
    """Launches: Triton's + operations of torch, forward and backward. A scan's channels are its head."""
    header = ("launches", "bytes forward", "backward", "sum", "compulsory", "ratio")
    table = _table("per token and head", "inputs", numbers=header)
    for row in rows:
        moved = row.moved
        numbers = (moved.forward_bytes, moved.backward_bytes, moved.bytes, moved.compulsory)
        cells = [f"{number:,.0f}" for number in numbers]
        table.add_row(row.op, row.inputs, moved.launches, *cells, f"{moved.bytes / moved.compulsory:.2f}")
    return table


def _table(*names: str, numbers: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table
