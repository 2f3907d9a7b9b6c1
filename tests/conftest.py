"""Every test starts from the same seed, sees no environment, and may ask for poisoned memory."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch import Tensor

from mixerzoo.kernels.dispatch import ENVIRONMENT_VARIABLE

# The suite runs on the CPU, also where there is a GPU: Triton's kernels in its interpreter, which must be chosen before
# they are imported. benchmarks/gpu/run.py checks them on a GPU.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tensors here are far too small for threads to pay."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture(scope="session")
def torch_knows_itself() -> None:
    """Lets torch look up, once and for all, what a device context acts on and what its compiler can trace."""
    with torch.device("meta"):
        torch.empty(0)
    torch.compile(torch.empty_like, backend="eager")(torch.zeros(1))


@pytest.fixture
def poisoned_empty(torch_knows_itself: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills memory that mixerzoo allocates without writing with NaN, so that a forgotten write shows."""

    def poison(allocate):
        def poisoned(*args, **kwargs) -> Tensor:
            memory = allocate(*args, **kwargs)
            if sys._getframe(1).f_globals.get("__name__", "").startswith("mixerzoo.") and memory.is_floating_point():
                memory.fill_(float("nan"))
            return memory

        return poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
