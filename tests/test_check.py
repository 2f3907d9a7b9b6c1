"""`mixerzoo check kernels` tells the truth about kernels made for the purpose, whose spills and bytes are known."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mixerzoo.kernels.check import table
from mixerzoo.kernels.check.bytes import Moved, Traffic
from mixerzoo.kernels.check.compile import SHARED_LIMITS, TARGETS, Compiled
from mixerzoo.kernels.check.table import Checked, Counted

from .test_cli import mixerzoo

ROOT = Path(__file__).parents[1]
KERNELS = '''
import torch
import triton
import triton.language as tl
from mixerzoo.kernels.launch import Launch, Program

@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

@triton.jit
def optional(x, y, scale, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if y is not None:
        tl.store(x + i, tl.load(y + i, mask=i < n) * scale, mask=i < n)
    else:
        tl.store(x + i, tl.load(x + i, mask=i < n) * scale, mask=i < n)

@triton.jit
def hold(x, y, BLOCK: tl.constexpr):
    """2 BLOCK numbers of x and BLOCK of y at once, by 32 threads."""
    i = tl.arange(0, BLOCK)
    a, b, c = tl.load(x + i), tl.load(y + i), tl.load(x + BLOCK + i)
    total = tl.sum(a * b * c, 0)
    tl.store(y + i, (a + total) * (b - total) * (c + total))

@triton.jit
def reverse(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.gather(tl.load(x + i), BLOCK - 1 - i, 0))

@triton.jit
def neighbours(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) + tl.load(x + i + 1, mask=i + 1 < n, other=0), mask=i < n)

@triton.jit
def through_memory(x, y, n, BLOCK: tl.constexpr):
    """y is stored, and loaded again."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)
    tl.store(y + i, 2 * tl.load(y + i, mask=i < n), mask=i < n)

@triton.jit
def add_to(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(y + i, mask=i < n) + tl.load(x + i, mask=i < n), mask=i < n)

@triton.jit
def out_of_bounds(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i))
'''
COMPILE = """
import json, sys
from dataclasses import asdict
from kernels import *
from mixerzoo.kernels.check.compile import TARGETS, compile_launch

def on_meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")

x = on_meta(256, 256)
launches = {
    "copy": Launch(Program(copy, {"BLOCK": 128}, 2), (8,), {"x": x, "y": on_meta(999, dtype=torch.bfloat16), "n": 999}),
    "one": Launch(Program(copy, {"BLOCK": 128}), (8,), {"x": x, "y": x, "n": 1}),
    "long": Launch(Program(copy, {"BLOCK": 128}), (8,), {"x": x, "y": x, "n": 2**40}),
    "absent": Launch(Program(optional, {"BLOCK": 128}), (8,), {"x": x, "y": None, "scale": 0.5, "n": 64}),
    "spills": Launch(Program(hold, {"BLOCK": 2**14}, 1), (1,), {"x": x, "y": x}),
    "exceeds": Launch(Program(reverse, {"BLOCK": 256 * 256}, 8), (1,), {"x": x, "y": x}),
}
results = {name: {t: compile_launch(launch, t) for t in TARGETS} for name, launch in launches.items()}
print(json.dumps({name: {t: asdict(c) | {"fits": c.fits} for t, c in of.items()} for name, of in results.items()}))
"""
OURS = """
import json
from mixerzoo.kernels.check.compile import TARGETS, compile_launch
from mixerzoo.kernels.gated_scan import triton_examples as scan
from mixerzoo.kernels.hgrn2 import triton_examples as hgrn2

launches = [launch for module in (hgrn2, scan) for launch in next(module.examples())[1]]
print(json.dumps([str(took) for t in TARGETS for x in launches if not (took := compile_launch(x, t)).fits]))
"""
AT_ONCE = """
import json
import re
from mixerzoo.kernels.check.compile import machine_code
from mixerzoo.kernels.hgrn2.triton_examples import examples

LOAD = r"ld\\.global(?:\\.[a-z]\\w*)*?(?:\\.v(\\d))?\\.b(\\d+)"

def loaded(launch):
    runs = machine_code(launch, "sm_90").asm["ptx"].split("bar.sync")
    return [sum(int(n or 1) * int(bits) // 8 for n, bits in re.findall(LOAD, run)) for run in runs]

print(json.dumps({launch.program.kernel.__name__: loaded(launch) for launch in next(examples())[1]}))
"""
COUNT = """
import importlib.util
import json
from dataclasses import asdict
from kernels import *
from mixerzoo.kernels.check.bytes import count_traffic, differentiated, measure

x, y, half = torch.ones(1000), torch.empty(1000), torch.ones(1000, dtype=torch.bfloat16)

def count(run):
    with count_traffic() as traffic:
        run()
    return [asdict(t) for t in traffic]

def launch(kernel, *tensors, block=1024, **arguments):
    programs = -(-1000 // block)
    program = Program(kernel, {"BLOCK": block})
    run = Launch(program, (programs,), dict(zip("xy", tensors)) | {"n": 1000} | arguments).run
    return count(run)

def reach_outside():
    try:
        count(Launch(Program(out_of_bounds, {"BLOCK": 1024}), (1,), {"x": x, "y": torch.empty(1024)}).run)
    except Exception as error:
        return str(error)

class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty_like(x)
        Launch(Program(add_to, {"BLOCK": 1024}), (1,), {"x": x, "y": y, "n": x.numel()}).run()
        return y

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy

@torch.library.custom_op("test_check::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    Launch(Program(add_to, {"BLOCK": 1024}), (1,), {"x": x, "y": y, "n": 1000}).run()
    return (2 * y).contiguous().to(torch.bfloat16)

moved = measure(differentiated(Double.apply, [torch.ones(1, 100, 10, requires_grad=True)], 100))
print(json.dumps({
    "copy": launch(copy, x, y, block=128),
    "widen": launch(copy, half, y, block=128),
    "in place": launch(copy, y, y),
    "overlapping views": launch(copy, x[:-1], x[1:], n=999),
    "neighbours": launch(neighbours, x, y, block=128),
    "through memory": launch(through_memory, x, y),
    "add to": launch(add_to, x, y),
    "outside": reach_outside(),
    "torch": count(lambda: (x.expand(3, 1000) + 1, x.view(10, 100).t(), x.zero_(), x.mul_(2), x.to(torch.bfloat16))),
    "custom op": count(lambda: doubled(x)),
    "measured": [moved.forward_bytes, moved.backward_bytes, moved.compulsory, moved.launches],
}))
"""


def run(code: str, folder: Path, **environment: str) -> Any:
    """Returns the output of a fresh process, which imports Triton without or with its interpreter."""
    (folder / "kernels.py").write_text(KERNELS)
    (folder / "script.py").write_text(code)
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder / "cache"), **environment}
    command = [sys.executable, "-W", "ignore", "script.py"]
    done = subprocess.run(command, env=inherited | own, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_op_with_kernels_says_what_is_checked_of_it():
    """Its `triton_examples.py` has launches of every pass to compile, and passes whose bytes are counted."""
    folders = [path.parent.name for path in (ROOT / "mixerzoo" / "kernels").glob("*/op.py")]
    backends = {op: import_module(f"mixerzoo.kernels.{op}.op").BACKENDS for op in folders}
    ours = sorted(op for op, choices in backends.items() if "triton" in [backend.name for backend in choices])
    assert ours == table.ops_with_kernels()
    for op in ours:
        assert all(launches for _, launches in table.examples_of(op)) and table.examples_of(op)
        assert all(passes.token_heads > 0 for _, passes in table.counted_of(op)) and table.counted_of(op)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return run(COMPILE, tmp_path_factory.mktemp("compile"))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(COUNT, tmp_path_factory.mktemp("count"), TRITON_INTERPRET="1")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("launch", ["copy", "one", "long", "absent"])
def test_a_small_kernel_fits_every_chip(compiled, launch, target):
    took = compiled[launch][target]
    assert took["fits"] and took["spilled"] == 0 and took["shared"] == 0
    assert 0 < took["registers"] < 64 and took["target"] == target
    threads = 32 * (2 if launch == "copy" else 4)
    assert took["num_warps"] == threads // (64 if target == "gfx942" else 32)


@pytest.mark.parametrize("target", TARGETS)
def test_what_registers_cannot_hold_is_reported_as_spilled(compiled, target):
    """A thread has 3 x 512 numbers at once, and 255 registers; on gfx942 3 x 256 numbers, and 512 registers."""
    took = compiled["spills"][target]
    assert took["spilled"] >= 4 * 100 and not took["fits"]


@pytest.mark.parametrize("target", TARGETS)
def test_too_much_shared_memory_is_reported(compiled, target):
    """All of 256 x 256 numbers go through shared memory."""
    took = compiled["exceeds"][target]
    assert took["shared"] == 256 * 256 * 4 > SHARED_LIMITS[target]
    assert took["spilled"] == 0 and not took["fits"]


def test_kernels_of_a_language_model_fit_every_chip(tmp_path):
    """With K = V = 128 in bf16, forward and backward, nothing spills and shared memory is within the limit."""
    assert run(OURS, tmp_path) == []


def test_what_products_need_is_asked_for_before_anything_waits(tmp_path):
    """A thread loads known bytes between two barriers, with K = V = 128 in bf16.

    A chunk of the forward kernel has 32 tokens of q, x and v, for 256 threads. A chunk of the walk over states has, for
    128 threads, 64 tokens of v and of 32 channels of q and x. The backward kernel has 64 tokens of v and dy for 256
    threads, and then, with them, 32 rows of S and dS.
    """
    loads = run(AT_ONCE, tmp_path)
    assert 3 * 32 * 128 * 2 // 256 in loads["forward_kernel"]
    assert 64 * (128 + 2 * 32) * 2 // 128 in loads["states_kernel"]
    values = 2 * 64 * 128 * 2 // 256
    assert values in loads["backward_kernel"] and values + 2 * 32 * 128 * 2 // 256 in loads["backward_kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_fits_every_chip(target):
    """All widths, gates, directions, dtypes and schedules are compiled: ten minutes of two cores each."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "mixerzoo.cli", "check", "kernels", "--target", target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_compiles_in_the_interpreter(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code, _, err = mixerzoo(capsys, monkeypatch, "check", "kernels")
    assert code == 2 and "remedy: unset TRITON_INTERPRET" in err


def test_an_unknown_target_is_named(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, _, err = mixerzoo(capsys, monkeypatch, "check", "kernels", "--target", "sm_12")
    assert code == 2 and "unknown target 'sm_12'; known: sm_80, sm_90, gfx942" in err


@pytest.mark.parametrize(
    ("result", "code", "says"),
    [
        (Compiled("walk", "sm_90", 4, 128, 0, 2048), 0, "all 1 fit"),
        (Compiled("walk", "sm_90", 4, 255, 8, 2048), 1, "1 of 1 spill"),
        (Compiled("walk", "gfx942", 4, 128, 0, 65537), 1, "1 of 1 spill"),
        ("CompilationError: no such thing", 1, "doesn't compile"),
    ],
    ids=["fits", "spills", "exceeds", "doesn't compile"],
)
def test_the_command_fails_unless_every_kernel_fits(capsys, monkeypatch, result, code, says):
    row = Checked("hgrn2", "bf16", "sm_90", "walk", result)
    moved = Moved([Traffic("walk", "triton", 600, 400, 2000)], [Traffic("sum", "torch", 100, 0, 100)], 10, 50)
    monkeypatch.setattr(table, "compile_all", lambda *arguments: [row])
    monkeypatch.setattr(table, "count_all", lambda *arguments: [Counted("hgrn2", "bf16", moved)])
    done, out, err = mixerzoo(capsys, monkeypatch, "check", "kernels")
    assert done == code and says in out
    assert ("no such thing" in err) == isinstance(result, str)
    assert "1 + 0, 0 + 1" in out and "2.20" in out


def traffic(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(row["name"], row["loaded"], row["stored"]) for row in rows]


def test_a_copy_moves_twice_its_size(counted):
    assert traffic(counted["copy"]) == [("copy", 4000, 4000)]
    assert traffic(counted["widen"]) == [("copy", 2000, 4000)]
    assert traffic(counted["in place"]) == [("copy", 4000, 4000)]
    assert traffic(counted["overlapping views"]) == [("copy", 3996, 3996)]
    assert counted["copy"][0]["requested"] == 8000


def test_what_is_loaded_twice_counts_once(counted):
    assert traffic(counted["neighbours"]) == [("neighbours", 4000, 4000)]
    assert counted["neighbours"][0]["requested"] == 4000 + 3996 + 4000


def test_what_a_launch_loads_of_its_own_stores_counts_as_stored(counted):
    assert traffic(counted["through memory"]) == [("through_memory", 4000, 4000)]
    assert traffic(counted["add to"]) == [("add_to", 8000, 4000)]


def test_a_load_outside_of_every_tensor_is_an_error(counted):
    assert "out_of_bounds reaches outside its tensors" in counted["outside"]


def test_torch_operations_count_and_views_do_not(counted):
    assert traffic(counted["torch"]) == [
        ("add", 4000, 12000),
        ("zero_", 0, 4000),
        ("mul_", 4000, 4000),
        ("_to_copy", 4000, 2000),
    ]


def test_a_custom_op_counts_as_what_it_does(counted):
    assert traffic(counted["custom op"]) == [
        ("zeros_like", 0, 4000),
        ("add_to", 8000, 4000),
        ("mul", 4000, 4000),
        ("to", 4000, 2000),  # a copy, where `contiguous` was none
    ]


def test_both_passes_are_measured(counted):
    """A hundred tokens of 10 numbers have 40 bytes each."""
    forward, backward, compulsory, launches = counted["measured"]
    assert (forward, backward, compulsory) == (120, 80, 40 * 5)
    assert launches == "1 + 0, 0 + 1"


def test_the_benchmark_counts_ours_and_its_peer_alike(tmp_path):
    """The peer's count is known: no more nor fewer launches than on a GPU."""
    out = tmp_path / "bytes.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "bytes.py"), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["smoke"] is True and record["claims"] == [] and record["provenance"]["git"]
    rows = {(row["op"], row["who"]): row for row in record["rows"]}
    ops, installed = {"hgrn2", "gated_linear_attention"}, importlib.util.find_spec("fla") is not None
    assert set(rows) == {(op, who) for op in ops for who in ("mixerzoo", "flash-linear-attention")}
    for op in ops:
        ours, theirs = rows[op, "mixerzoo"], rows[op, "flash-linear-attention"]
        assert ours["bytes"] == ours["forward"] + ours["backward"] >= ours["compulsory"]
        assert (theirs["bytes"] is not None) == installed
    if installed:
        assert rows["gated_linear_attention", "flash-linear-attention"]["launches"] == "5 + 1, 7 + 3"
