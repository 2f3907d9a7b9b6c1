"""An op runs on one of its implementations: `reference | torch | triton | fla`, or `auto`.

Precedence: the `backend=` argument, then `with use_backend(...)`, then the environment variable MIXERZOO_BACKEND,
then `auto`. A backend asked for by name runs or raises, with every backend's reason; only `auto` may choose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NAMES = ("reference", "torch", "triton", "fla")
ENVIRONMENT_VARIABLE = "MIXERZOO_BACKEND"

Run = Callable[..., Any]

_chosen: list[tuple[str, bool]] = []


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    `run` has the op's validated signature. `unsupported(**inputs)` says in a few words why these inputs can't run
    here, or returns None when they can; `automatic(**inputs)` whether `auto` should choose it when they can.
    """

    name: str
    run: Run
    unsupported: Callable[..., str | None] = lambda **inputs: None
    automatic: Callable[..., bool] = lambda **inputs: True


@contextmanager
def use_backend(name: str, *, tune: bool = False) -> Iterator[None]:
    """Run every op inside the block on one backend: `with use_backend("reference"): y = mixer(x)`.

    tune: where a backend has several schedules for a shape, measure them at its first call, and keep the fastest for
    as long as the process lives. Without, a table decides."""
    _chosen.append((_known(name), tune))
    try:
        yield
    finally:
        _chosen.pop()


def resolve(op: str, backends: tuple[Backend, ...], requested: str | None, **inputs: Any) -> Backend:
    """The backend that `op` runs on for these inputs. `backends` is ordered by preference of `auto`.

    Raises ValueError when the requested backend is unknown or can't run, and lists what each one can do.
    """
    name = _known(requested or (_chosen[-1][0] if _chosen else os.environ.get(ENVIRONMENT_VARIABLE) or "auto"))
    for backend in backends:
        wanted = backend.name == name or (name == "auto" and backend.automatic(**inputs))
        if wanted and backend.unsupported(**inputs) is None:
            return backend
    raise ValueError(f"backend {name!r} can't run {op} here. {explain(backends, **inputs)}. Remedy: backend='auto'")


def tuning() -> bool:
    """Says whether the innermost `use_backend` asks for measured schedules."""
    return bool(_chosen) and _chosen[-1][1]


def explain(backends: tuple[Backend, ...], **inputs: Any) -> str:
    """One clause per backend: `torch: can run; triton: not written for this op`."""
    reasons = {backend.name: backend.unsupported(**inputs) or "can run" for backend in backends}
    return "; ".join(f"{name}: {reasons.get(name, 'not written for this op')}" for name in NAMES)


def _known(name: str) -> str:
    if name not in (*NAMES, "auto"):
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(NAMES)}, auto")
    return name
