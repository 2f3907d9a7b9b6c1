"""A backend is chosen by argument, then context, then environment, then auto; a name runs or raises."""

from __future__ import annotations

import pytest

from mixerzoo import use_backend
from mixerzoo.kernels.dispatch import ENVIRONMENT_VARIABLE, NAMES, Backend, explain, resolve

FAST = Backend("triton", lambda: None, lambda **inputs: "needs a GPU" if inputs.get("device") != "cuda" else None)
PLAIN = Backend("torch", lambda: None)
LOOP = Backend("reference", lambda: None)
BACKENDS = (FAST, PLAIN, LOOP)


def chosen(requested: str | None = None, **inputs: str) -> str:
    return resolve("toy", BACKENDS, requested, **inputs).name


def test_auto_takes_the_first_that_can_run() -> None:
    assert chosen() == chosen("auto") == "torch"
    assert chosen(device="cuda") == "triton"


def test_argument_beats_context_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert ENVIRONMENT_VARIABLE == "MIXERZOO_BACKEND"
    assert chosen() == "reference"
    with use_backend("torch"):
        assert chosen() == "torch"
        assert chosen("reference") == "reference"
        with use_backend("auto"):
            assert chosen(device="cuda") == "triton"
        assert chosen() == "torch"
    assert chosen() == "reference"


def test_a_context_ends_with_an_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert chosen() == "torch"


def test_a_backend_asked_for_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        r"backend 'triton' can't run toy here. reference: can run; torch: can run; triton: needs a GPU; "
        r"fla: not written for this op. Remedy: backend='auto'"
    )
    with pytest.raises(ValueError, match=text):
        chosen("triton")
    with pytest.raises(ValueError, match=text), use_backend("triton"):
        chosen()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(ValueError, match=text):
        chosen()
    assert chosen("triton", device="cuda") == "triton"


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "unknown backend 'cudnn'; known: reference, torch, triton, fla, auto"
    with pytest.raises(ValueError, match=text):
        chosen("cudnn")
    with pytest.raises(ValueError, match=text), use_backend("cudnn"):
        pass
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cudnn")
    with pytest.raises(ValueError, match=text):
        chosen()


def test_every_backend_is_explained() -> None:
    assert [clause.split(":")[0] for clause in explain(BACKENDS).split("; ")] == list(NAMES)
