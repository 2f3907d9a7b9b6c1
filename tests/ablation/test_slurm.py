"""Laws of the Slurm engine are tried with submitit's local executor, and with a cluster's scripts on a small one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import sleep

import pytest
import submitit

from mixerzoo.ablation.running.engines import CannotStart
from mixerzoo.ablation.running.engines.slurm import Resumable, SlurmEngine
from mixerzoo.ablation.running.events import Finished, Progress, Started
from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store, configuration, read_lines

from .runs import everything_is_there_once, run


@pytest.fixture
def everywhere(plugins, tmp_path, monkeypatch) -> None:
    """Makes the packages installed here visible on all nodes."""
    root, before = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(tmp_path / "site"), before]))


@pytest.mark.slow
def test_runs_are_jobs_of_submitit_and_are_followed_through_their_files(everywhere, tmp_path):
    store, events = Store(tmp_path / "runs"), []
    good, killed, raising = run("slow"), run("killed"), run("raising")
    engine = SlurmEngine(cluster="local", jobs=2, every=0.1)
    engine.run(iter([good, killed, raising]), store, events.append)
    assert store.result(good.run_id)["status"] == "done"
    assert store.result(raising.run_id)["error"] == "RuntimeError: this mixer is broken"
    assert store.result(killed.run_id)["error"].startswith("the job ended without a result; it said: ")
    kinds = [(type(event), getattr(event, "step", None)) for event in events if event.run_id == good.run_id]
    assert kinds == [(Started, None), *((Progress, step) for step in (1, 2, 3, 4)), (Finished, None)]
    assert {event.run_id for event in events if isinstance(event, Finished)} == {
        run.run_id for run in (good, killed, raising)
    }
    assert len(store.rows()) == 3


@pytest.mark.slow
def test_a_job_cut_off_by_its_time_limit_is_queued_again_and_goes_on(everywhere, tmp_path):
    store, telling = Store(tmp_path / "runs"), run("telling", steps=400, evaluate_every=400)
    directory = store.root / telling.run_id
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    arguments = (store.root, telling.run_id, configuration(telling), Options(checkpoint_every=0.2), 1)
    job = executor.submit(Resumable(*arguments))
    while len(read_lines(directory / "curve.jsonl")) < 100:
        sleep(0.1)
    first = int((directory / "log.txt").read_text().split()[2])
    os.kill(first, signal.SIGUSR2)  # what Slurm sends some time before the limit
    job.result()
    everything_is_there_once(store, [telling])
    processes = [line.split()[2] for line in (directory / "log.txt").read_text().splitlines()]
    assert str(first) not in processes and len(processes) < 400


def test_runs_are_an_array_of_jobs_whose_script_says_what_was_asked_for(everywhere, tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("SLURM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(Path(__file__).with_name("slurm")), prepend=os.pathsep)
    store, runs = Store(tmp_path / "my grid"), [run(seed=seed) for seed in range(2)]
    parameters = {"timeout_min": 90, "mem_gb": 3, "gpus_per_node": 1, "slurm_partition": "long"}
    engine = SlurmEngine(parameters, threads=2, options=Options(argv=("mixerzoo", "ablate")))
    engine.run(iter(runs), store, lambda event: None)
    everything_is_there_once(store, runs)
    assert store.rows()[0].result["provenance"]["argv"] == ["mixerzoo", "ablate"]
    (script,) = (tmp_path / "state").glob("*.sh")
    lines = script.read_text().splitlines()
    wanted = {"array=0-1%2", "job-name='my grid'", "time=90", "mem=3GB", "gpus-per-node=1", "partition=long"}
    assert {f"#SBATCH --{option}" for option in {*wanted, "cpus-per-task=2"}} <= set(lines)
    assert any(line.startswith("srun ") and "submitit.core._submit" in line for line in lines)


def test_a_cluster_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotStart, match=r"Slurm takes no jobs: Could not detect \"srun\".*; remedy: a login node"):
        SlurmEngine().run(iter([run()]), Store(tmp_path), lambda event: None)
