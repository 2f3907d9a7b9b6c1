"""Laws of the Ray engine say: runs are placed, retried and followed. The cluster has several node processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mixerzoo.ablation.running.engines.ray import RayEngine
from mixerzoo.ablation.running.events import Finished, Progress
from mixerzoo.ablation.running.execute import Options
from mixerzoo.ablation.running.store import Store

from .runs import everything_is_there_once, run

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(plugins, tmp_path, monkeypatch) -> Iterator[Cluster]:
    """Starts a head without room for runs, and two nodes with room for one each, with the packages installed here."""
    root, before = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(tmp_path / "site"), before]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_grid_outlives_the_death_of_a_node_in_the_middle_of_a_run(cluster, tmp_path):
    store, events = Store(tmp_path / "runs"), []
    runs = [run("slow", seed=seed, steps=400, evaluate_every=100) for seed in range(3)]
    killed: list[str] = []

    def observe(event) -> None:
        events.append(event)
        saved = (store.root / event.run_id / "checkpoint.pt").exists()
        if isinstance(event, Progress) and event.step > 50 and saved and not killed:
            killed.append(event.run_id)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    engine = RayEngine(cluster.address, every=0.2, options=Options(checkpoint_every=0.2))
    engine.run(iter(runs), store, observe)
    assert killed
    everything_is_there_once(store, runs)
    assert [row.status for row in store.rows()] == ["done"] * 3
    assert sorted(event.run_id for event in events if isinstance(event, Finished)) == sorted(r.run_id for r in runs)


def test_a_run_takes_the_cores_of_all_its_processes_and_no_more_run_than_asked_for(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    options = Options(processes=2)
    assert RayEngine(threads=2, options=options).places() == 4
    assert RayEngine(threads=2, jobs=3, options=options).places() == 3
    assert RayEngine(threads=2, gpus=2).places() == 1


def test_what_goes_wrong_on_a_cluster_is_a_row(cluster, tmp_path):
    store = Store(tmp_path / "runs")
    raising, killed, good = run("raising"), run("killed"), run()
    RayEngine(cluster.address, retries=0).run(iter([raising, killed, good]), store, lambda event: None)
    assert store.result(raising.run_id)["error"] == "RuntimeError: this mixer is broken"
    assert "WorkerCrashedError" in store.result(killed.run_id)["error"]
    assert store.result(good.run_id)["status"] == "done"
