"""Laws of kill -9 say: whatever dies at any moment, runner or workers, the same command then finishes the grid.

Afterwards every row is there once, its curve is whole, and its numbers are those of an undisturbed grid.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import sleep

import psutil
import pytest
import torch

from mixerzoo.ablation.running.engines.local import LocalEngine
from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store

from .runs import everything_is_there_once, outcomes, run

RUNNER = """
import sys
from mixerzoo.ablation.running.store import Store
from tests.ablation.test_kills import finish

if __name__ == "__main__":
    finish(Store(sys.argv[1]), int(sys.argv[2]))
"""
ROOT = Path(__file__).parents[2]


def grid(size: int) -> list:
    return [run("slow", seed=seed, steps=60, evaluate_every=20) for seed in range(size)]


def finish(store: Store, size: int) -> None:
    pending = [run for run in grid(size) if not store.finished(run.run_id)]
    LocalEngine(2, options=Options(checkpoint_every=0.05)).run(iter(pending), store, lambda event: None)


def start(site: Path, *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    command = [sys.executable, str(site / "runner.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, cwd=site, start_new_session=True)


def workers(runner: subprocess.Popen) -> list[psutil.Process]:
    """Returns the processes below the one that forks them."""
    with suppress(psutil.NoSuchProcess):
        return [worker for child in psutil.Process(runner.pid).children() for worker in child.children()]
    return []


def kill(runner: subprocess.Popen, chance: random.Random) -> None:
    victims = workers(runner)
    whom = chance.choice(["all", "runner", "worker", "worker"])
    if whom == "worker" and victims:
        with suppress(psutil.NoSuchProcess):
            chance.choice(victims).kill()
    elif whom == "all":
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    else:
        runner.kill()
        runner.wait()


@pytest.mark.parametrize(("kills", "size", "longest"), [(5, 4, 4.0), pytest.param(50, 40, 8.0, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_grid_ends_as_if_undisturbed(plugins, tmp_path, kills, size, longest):
    site, chance = tmp_path / "site", random.Random(kills)
    (site / "runner.py").write_text(RUNNER)
    runner = start(site, tmp_path / "killed", size)
    for _ in range(kills):
        if runner.poll() is not None:
            runner = start(site, tmp_path / "killed", size)
        sleep(chance.uniform(0, longest))
        kill(runner, chance)
    killed, undisturbed = Store(tmp_path / "killed"), Store(tmp_path / "undisturbed")
    finish(killed, size)  # while a runner may still be at it
    runner.wait()
    finish(killed, size)  # what that runner called failed, since its workers were killed
    finish(undisturbed, size)
    everything_is_there_once(killed, grid(size))
    assert outcomes(killed) == outcomes(undisturbed)


def test_a_run_whose_worker_was_killed_goes_on_from_its_checkpoint(plugins, tmp_path):
    """The worker dies at its second checkpoint, so that it isn't at the first step."""
    steps = 500
    store, telling = Store(tmp_path / "runs"), run("telling", steps=steps, evaluate_every=steps)
    engine = LocalEngine(1, options=Options(checkpoint_every=0.0))
    directory = store.root / telling.run_id
    saved = set[int]()

    def observe(event) -> None:
        if len(saved) < 2 and (directory / "checkpoint.pt").exists():
            saved.add((directory / "checkpoint.pt").stat().st_ino)
            if len(saved) == 2:
                os.kill(int((directory / "log.txt").read_text().split()[2]), signal.SIGKILL)

    engine.run(iter([telling]), store, observe)
    assert store.result(telling.run_id)["error"].startswith("the worker process died (killed by SIGKILL")
    (row,) = store.rows()
    last = torch.load(directory / "checkpoint.pt")["points"][-1]["step"]
    assert 1 < last <= row.curve[-1]["step"]
    engine.run(iter([telling]), store, observe)
    everything_is_there_once(store, [telling])
    forwards = len((directory / "log.txt").read_text().splitlines())
    assert forwards == steps - last + 1  # the last one counts FLOPs


def test_a_full_disk_ends_the_grid_makes_no_row_and_what_is_finished_stays(plugins, tmp_path):
    store, runs = Store(tmp_path / "runs"), [run(), run("full"), run(seed=1)]
    with pytest.raises(OSError, match="No space left on device"):
        LocalEngine(1).run(iter(runs), store, lambda event: None)
    assert {row.run_id: row.status for row in store.rows()} == {runs[0].run_id: "done", runs[1].run_id: "unfinished"}


@pytest.mark.slow
def test_a_real_full_disk_is_said_once_and_what_is_finished_stays(tmp_path):
    """The file system has 150 kB and is mounted by its own user: it has room for some runs' results, not for all."""
    script = tmp_path / "full.py"
    script.write_text(FULL)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=150k none {disk} && exec {sys.executable} {script} {disk}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    message, finished, loaded = done.stdout.splitlines()
    assert message.startswith("No space left on device")
    assert 1 <= int(finished) < 100 and int(loaded) >= int(finished)


FULL = """
import os, sys
from mixerzoo.ablation.running.engines.local import LocalEngine
from mixerzoo.ablation.running.store import Store
from tests.ablation.runs import run

if __name__ == "__main__":
    store = Store(sys.argv[1])
    try:
        LocalEngine(1).run((run(seed=seed) for seed in range(100)), store, lambda event: None)
    except OSError as error:
        print(error.strerror, error.filename)
        rows = store.rows()
        print(sum(row.finished for row in rows))
        print(len(rows))
"""
