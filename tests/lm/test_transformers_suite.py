"""transformers' own common tests pass on the zoo's models, or are skipped for a reason in docs/transformers.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
REASONS = ROOT / "docs" / "transformers.md"
# What the archive on PyPI leaves out and its other files import. A checkout of the repository has all of it: with one,
# the tests of generation and export run as well.
ABSENT = {
    "__init__.py": "",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: ...",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'return_dict': False, 'architectures': ['Any']}",
}


@pytest.fixture(scope="session")
def suite_path(tmp_path_factory) -> Path:
    """Returns the place of `transformers_tests`: in the source that a variable names, or in PyPI's archive."""
    folder = tmp_path_factory.mktemp("transformers")
    source = os.environ.get("MIXERZOO_TRANSFORMERS_SOURCE") or _fetched(folder)
    tests = folder / "transformers_tests"
    shutil.copytree(Path(source) / "tests", tests)
    for name, text in ABSENT.items():
        if not (tests / name).exists():
            (tests / name).parent.mkdir(exist_ok=True)
            (tests / name).write_text(text)
    return folder


def _fetched(folder: Path) -> Path:
    wanted = f"transformers=={transformers.__version__}"
    options = ["--no-binary", "transformers", "--no-deps", "--no-build-isolation", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", wanted, *options], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.slow
def test_the_common_tests_of_transformers_pass_or_cannot_apply(suite_path):
    suite = Path(__file__).with_name("transformers_suite.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(suite), "-q", "-rs", "--tb=short", "-o", "addopts=", "-W", "ignore"],
        env=os.environ | {"PYTHONPATH": f"{suite_path}{os.pathsep}{ROOT}", "RUN_SLOW": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed.group(1)) >= 200, done.stdout[-2000:]
    explained = re.findall(r"^\| `([^`]+)`", REASONS.read_text(), flags=re.M)
    skipped = re.findall(r"^SKIPPED \[\d+\] [^ ]+: (.+)$", done.stdout, flags=re.M)
    unexplained = {reason for reason in skipped if not any(re.search(known, reason) for known in explained)}
    assert not unexplained
