"""Fixtures of the ablation's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from mixerzoo.registry.catalog import MIXERS

from .runs import install

NEEDED = {"test_ray.py": "ray", "test_slurm.py": "submitit", "test_trackers.py": "tensorboard"}
collect_ignore = [file for file, package in NEEDED.items() if find_spec(package) is None]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A third party's mixers that go wrong, installed."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(MIXERS, "_targets", dict(MIXERS._targets))
    yield
    sys.modules.pop("zooplugin", None)
