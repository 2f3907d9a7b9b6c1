"""Every kernel in every configuration compiled for every chip, and every op's bytes counted: all cores, no GPU.

What there is to compile, one of an op's `triton_*.py` says: its `examples()` yields (label, launches), the tensors on
`meta`, the label beginning with the name of the op.
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
from unittest.mock import patch

import torch

from .check_bytes import Moved, measure
from .check_compile import Compiled, check_target, compile_launch, require_compiler
from .launch import Launch

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[int, int], None]

# What bytes are counted of: (length, whether the rows and heads keep a GPU busy, which decides the schedule).
LENGTH = 2048
COUNTED = {"hgrn2": (True, False), "gated_linear_attention": (True,), "gated_scan": (True,)}
WIDTH = 128


@dataclass(frozen=True)
class Checked:
    """One launch on one chip: what it takes, or why it doesn't compile."""

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
    """Every launch of every example of one op, or of all, on each target.

    Raises ValueError for a target or an op that isn't there, and under Triton's interpreter.
    """
    require_compiler()
    for target in targets:
        check_target(target)
    sources = sorted(
        f"{path.parent.name}.{path.stem}"
        for path in Path(__file__).parent.glob("*/triton_*.py")
        if "\ndef examples(" in path.read_text(encoding="utf-8")
    )
    examples = [
        (source, index, label, launches)
        for source in sources
        for index, (label, launches) in enumerate(_examples(source))
    ]
    known = tuple(dict.fromkeys(label.split()[0] for _, _, label, _ in examples))
    if op not in (None, *known):
        raise ValueError(f"op {op!r} has no kernels; those that have: {', '.join(known)}")
    jobs = [
        (source, index, position, target)
        for target in targets
        for source, index, label, launches in examples
        if op in (None, label.split()[0])
        for position in range(len(launches))
    ]
    return _in_processes(_compile, jobs, workers, progress)


def count_all(op: str | None, workers: int, progress: Progress) -> list[Counted]:
    """Bytes of one op, or of all, in processes where Triton's interpreter stands in for a GPU."""
    jobs = [(name, busy) for name, loads in COUNTED.items() if op in (None, name) for busy in loads]
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"  # must stand before a process begins
    try:
        return _in_processes(_count, jobs, workers, progress)
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def _compile(source: str, index: int, position: int, target: str) -> Checked:
    label, launches = _examples(source)[index]
    launch = launches[position]
    result: Compiled | str
    try:
        result = compile_launch(launch, target)
    except Exception as error:  # whatever a compiler comes up with belongs in the table
        result = f"{type(error).__name__}: {error}"
    return Checked(label, target, launch.program.kernel.__name__, result)


def _count(op: str, busy: bool) -> Counted:
    from .gated_linear_attention import schedule

    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of values that mean nothing here
    torch.set_num_threads(1)
    function = getattr(import_module(f"mixerzoo.kernels.{op}"), op)
    shape = (1, LENGTH, WIDTH) if op == "gated_scan" else (1, LENGTH, 1, WIDTH)
    tensors = {"hgrn2": 3, "gated_linear_attention": 4, "gated_scan": 2}[op]
    inputs = [torch.full(shape, -0.5, dtype=torch.bfloat16, requires_grad=True) for _ in range(tensors)]
    with patch.object(schedule, "BUSY", 1 if busy else schedule.BUSY):  # one head stands for as many as it takes
        moved = measure(lambda *x: function(*x, backend="triton")[0], inputs, LENGTH)
    size = f"{'D' if op == 'gated_scan' else 'K=V'}={WIDTH}"
    return Counted(op, f"bf16 T={LENGTH} {size} {'many' if busy else 'few'} heads", moved)


@cache
def _examples(source: str) -> list[tuple[str, list[Launch]]]:
    return list(import_module(f"mixerzoo.kernels.{source}").examples())


def _in_processes(work: Callable[..., Any], jobs: list[Any], workers: int, progress: Progress) -> list[Any]:
    """Results in the order of the jobs. Fresh processes: whether Triton compiles or interprets is decided once."""
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
        table.add_row(row.kernel, row.configuration, row.target, *cells, style=None if row.good else "bold red")
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
