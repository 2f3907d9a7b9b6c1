"""Compiled kernels are right in the emulator of PTX, and the emulator finds planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = '''
import torch
import triton
import triton.language as tl
from mixerzoo.kernels.launch import Launch, Program

@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    tile = tl.dot(tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n))
    tl.store(c + m * N + n, tile)

@triton.jit
def total(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(y, tl.sum(x))
    tl.store(y + 1, tl.max(x))
    tl.store(y + 2, tl.sum(tl.where(i < 5, tl.cumsum(x), 0)))

@triton.jit
def neighbours(x, y, WAIT: tl.constexpr, BLOCK: tl.constexpr):
    """Each thread reads what another has just written."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i))
    if WAIT:
        tl.debug_barrier()
    tl.store(x + i, tl.load(y + BLOCK - 1 - i))
'''
RUN = """
import json
import torch
from kernels import *
from tests.emulator import Fault, emulated

torch.manual_seed(0)
a, b, x = torch.randn(64, 32).bfloat16(), torch.randn(32, 32).bfloat16(), torch.randn(1000)
results = {}
for target in ("sm_80", "sm_90"):
    with emulated(target):
        for warps in (1, 4):
            c = torch.full((64, 32), float("nan"))
            Launch(Program(product, {"M": 64, "N": 32, "K": 32}, warps), (1,), {"a": a, "b": b, "c": c}).run()
            error = (c - a.float() @ b.float()).abs().max()
            y = torch.full((3,), float("nan"))
            Launch(Program(total, {"BLOCK": 1024}, warps), (1,), {"x": x, "y": y, "n": 1000}).run()
            expected = torch.stack([x.sum(), x.max(), x.cumsum(0)[:5].sum()])
            results[f"{target}, {warps} warps"] = [float(error), float((y - expected).abs().max())]

def attempt(size=512, **options):
    x, y = torch.arange(512.0), torch.zeros(size)
    try:
        with emulated("sm_90", apart=options.pop("apart", False)):
            Launch(Program(neighbours, {"BLOCK": 512, **options}), (1,), {"x": x, "y": y}).run()
    except Fault as fault:
        return str(fault)
    return x.tolist() == list(range(511, -1, -1))

results["waits"] = attempt(WAIT=True)
results["waits, apart"] = attempt(WAIT=True, apart=True)
results["doesn't wait"] = attempt(WAIT=False)
results["outside"] = attempt(WAIT=True, size=511)
print(json.dumps(results))
"""


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh process without Triton's interpreter, which has no compiler."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder / "cache")}
    command = (sys.executable, "-W", "ignore", *command)
    return subprocess.run(command, env=inherited | own, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "kernels.py").write_text(KERNELS)
    (folder / "script.py").write_text(RUN)
    done = run("script.py", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("warps", [1, 4])  # on sm_90 four warps multiply together
def test_products_and_sums(results: dict[str, Any], target: str, warps: int) -> None:
    assert max(results[f"{target}, {warps} warps"]) < 1e-4


def test_what_waits_at_a_barrier_is_right(results: dict[str, Any]) -> None:
    assert results["waits"] is True and results["waits, apart"] is True


def test_a_missing_barrier_is_a_fault(results: dict[str, Any]) -> None:
    assert results["doesn't wait"].startswith("race: another warp wrote here")
    assert "kernels.py:" in results["doesn't wait"]


def test_an_address_out_of_bounds_is_a_fault(results: dict[str, Any]) -> None:
    assert results["outside"].startswith("address out of bounds")


@pytest.mark.parametrize(
    ("target", "checks"),
    [
        ("sm_90", "hgrn2 logits bfloat16"),  # gates as small as they get
        ("sm_80", "hgrn2 cu_seqlens both bfloat16"),
        ("sm_90", "gated_linear_attention gate_per_head float16"),
        ("sm_90", "gated_scan both True bfloat16"),
        pytest.param("sm_80", "", marks=pytest.mark.slow),
        pytest.param("sm_90", "", marks=pytest.mark.slow),
    ],
)
def test_compiled_kernels_are_within_their_budgets(target: str, checks: str, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu" / "emulate.py"
    done = run(str(script), target, "--out", "checks.json", "--only", checks, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "checks.json").read_text())["correctness"]
    assert rows and all(row["ok"] for row in rows)
