"""Provenance records where a result came from: versions, machine, commit, command line."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Returns the record. `argv` is the command line of the run; the commit is that of its working directory."""
    return {**_circumstances(), "argv": [_program(argv[0]), *argv[1:]] if argv else []}


def _program(path: str) -> str:
    """Returns the program's name: `mixerzoo` for `python -m mixerzoo.cli`."""
    return "mixerzoo" if path.endswith("mixerzoo/cli/__main__.py") else Path(path).name


@cache
def _circumstances() -> dict[str, Any]:
    """Returns the part of the record that is fixed while a process lives: imported code doesn't follow its files."""
    packages = ("mixerzoo", "torch", "numpy", "accelerate", "timm", "transformers")
    return {
        "python": platform.python_version(),
        **{package: installed_version(package) for package in packages},
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": _device(),
        "git": _git_commit(),
    }


def installed_version(package: str) -> str | None:
    """Returns a package's version; None if it isn't installed, or runs from a folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _git_commit() -> str | None:
    """Returns `3f2a...`, with `+changes` if files differ from it; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
