"""A second launch tells the GPU what Triton told it at the first one, and lengths share compiled code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json
import torch
from benchmarks.idle_gpu import idle_gpu
from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.kernels.gated_scan import gated_scan
from mixerzoo.kernels.hgrn2 import hgrn2
from mixerzoo.kernels.launch import Launch, Program

launched, launches = [], []
run = Program.run

def watched(program, grid, arguments, device):
    launches.append((program, grid, arguments, device))
    run(program, grid, arguments, device)

Program.run = watched

def told():
    return [(name, code, grid, [x.data_ptr() if isinstance(x, torch.Tensor) else str(x) for x in arguments])
            for name, code, grid, arguments in launched]

def tensors(count, *shape, dtype=torch.bfloat16):
    return [torch.randn(shape).to(dtype).requires_grad_() for _ in range(count)]

def differentiate(op, inputs, **options):
    y, state = op(*inputs, backend="triton", **options)
    torch.autograd.grad((y, state), inputs, (y, state))

def again():
    '''Whether every launch, made a second time, tells the GPU the same.'''
    first, made = told(), list(launches)
    launched.clear()
    for launch in made:
        run(*launch)
    same = told() == first
    launched.clear()
    launches.clear()
    return same

def hgrn2_of(B, T, dtype=torch.bfloat16, **options):
    q, x, v = tensors(3, B, T, 2, 16, dtype=dtype)
    differentiate(hgrn2, (q, x, v, torch.rand(2, 16).requires_grad_()), **options)

results = {}
with idle_gpu(lambda *what: launched.append(what)):
    hgrn2_of(2, 70)
    results["hgrn2"] = again()
    hgrn2_of(1, 300, cu_seqlens=torch.tensor([0, 0, 100, 300]))
    results["packed"] = again()
    differentiate(gated_linear_attention, (*tensors(3, 1, 70, 2, 16), *tensors(1, 1, 70, 2, 1)))
    results["gate per head"] = again()
    differentiate(gated_scan, tensors(2, 2, 70, 24))
    results["scan"] = again()

    # One token from a state; odd addresses are other code, and don't become that of even ones.
    q, x, v = torch.zeros(3 * 64 + 1).bfloat16()[:-1].view(3, 1, 1, 4, 16)
    odd = torch.zeros(3 * 64 + 1).bfloat16()[1:].view(3, 1, 1, 4, 16)
    state = torch.zeros(1, 4, 16, 16)
    codes = []
    with torch.no_grad():
        for given in ((q, x, v), tuple(odd), (q, x, v), tuple(odd)):
            hgrn2(*given, 0.5, initial_state=state, backend="triton")
            codes.append(launched.pop()[1])
    results["addresses"] = codes[0] == codes[2] != codes[1] == codes[3]
    launches.clear()

    compiled = set()
    for B, T in ((1, 1), (1, 17), (3, 64), (16, 100), (2, 256), (1, 300), (2, 1024), (16, 1000)):
        hgrn2_of(B, T)
    seen = {(name, code) for name, code, _, _ in launched}
    results["codes"] = {kernel: sum(name == kernel for name, _ in seen) for kernel, _ in seen}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ["hgrn2", "packed", "gate per head", "scan"])
def test_a_second_launch_tells_the_gpu_the_same(results: dict, what: str) -> None:
    assert results[what]


def test_what_is_compiled_for_aligned_memory_is_not_launched_on_other(results: dict) -> None:
    assert results["addresses"]


def test_lengths_and_batch_sizes_share_what_is_compiled(results: dict) -> None:
    """Forward has one segment or several; the states kernel has segments, or gradients behind blocks."""
    assert results["codes"] == {"forward_kernel": 2, "states_kernel": 2, "backward_kernel": 1}


def test_the_host_s_time_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "host.py"), "--smoke", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    launches = {(row["what"], row["who"]): row["launches"] for row in record["rows"] if "mixerzoo" in row["who"]}
    assert list(launches.values()) == [1, 3, 2, 4, 1, 1]
    assert all(row["microseconds"] > 0 for row in record["rows"] if "mixerzoo" in row["who"])
