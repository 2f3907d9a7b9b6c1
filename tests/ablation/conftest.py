"""The ablation's tests share these fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixerzoo.registry.catalog import MIXERS

from .runs import install


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs a third party's mixers that go wrong."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(MIXERS, "_targets", dict(MIXERS._targets))
    yield
    sys.modules.pop("zooplugin", None)
