"""timm's own tests run, unmodified, on the zoo's models.

The tests come from the installed timm's source distribution.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

from mixerzoo import list_mixers

pytestmark = pytest.mark.slow
FILES = ("test_models.py", "test_model_input.py", "test_utils.py")
SHAPES = ("tiny_patch16_224", "tiny_patch14_224", "pyramid_tiny")
HERE = Path(__file__).parent
# A mixer that the package does not have, in a module that the subprocess imports before it asks for models.
PLUG_IN = """
from mixerzoo import register_mixer
from mixerzoo.mixers.gla import GLA


@register_mixer("plug.in")
class PlugIn(GLA):
    spec = GLA.spec
"""


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns timm's source distribution, unpacked: MIXERZOO_TIMM_SOURCE, or downloaded from the package index."""
    if given := os.environ.get("MIXERZOO_TIMM_SOURCE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("timm")
    wanted = f"timm=={timm.__version__}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-binary", "timm", "--no-deps", "-d", str(folder)]
    subprocess.run(command, check=True)
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def run_suite(source: Path, names: list[str], folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "timm_suite", "--import-mode=importlib", "-c", os.devnull]
    command += ["--rootdir", str(source), "-p", "no:cacheprovider", "--zoo", ",".join(names), *options]
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE), str(folder)])
    done = subprocess.run(
        [*command, *(str(source / "tests" / file) for file in FILES)],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "passed" in done.stdout and "failed" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mixer", list_mixers())
def test_timms_own_tests_pass(source: Path, mixer: str, shape: str, tmp_path: Path) -> None:
    run_suite(source, [f"zoo_{mixer}_{shape}"], tmp_path)


def test_timms_own_tests_pass_on_a_plug_in(source: Path, tmp_path: Path) -> None:
    (tmp_path / "plug_in_mixer.py").write_text(PLUG_IN)
    run_suite(source, [f"zoo_plug_in_{shape}" for shape in SHAPES], tmp_path, "-p", "plug_in_mixer")
