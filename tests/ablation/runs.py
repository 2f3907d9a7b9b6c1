"""Makes runs that take a fraction of a second, and a distribution of mixers that go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixerzoo.ablation.running.store import FINISHED, Store
from mixerzoo.tasks import BackboneConfig, RunConfig, TrainConfig, build_task

TASK = {"name": "mqar", "length": 16, "num_pairs": 2, "vocab_size": 20, "valid_sequences": 8}
PLUGIN = """
import errno, os, signal, time, torch
from mixerzoo.mixers.attention import Attention

class Plain(Attention):
    pass

class Raising(Attention):
    def forward(self, x, **keywords):
        raise RuntimeError("this mixer\\nis broken")

class Unbuildable(Attention):
    def __init__(self, dim=64):
        raise RuntimeError("no parts left")

class Killed(Attention):
    def forward(self, x, **keywords):
        os.kill(os.getpid(), signal.SIGKILL)

class Exploding(Attention):
    def forward(self, x, **keywords):
        return super().forward(x, **keywords) * float("inf")

class Hungry(Attention):
    def forward(self, x, **keywords):
        if self.training and len(x) > 2:
            x.new_empty(2**50)
        return super().forward(x, **keywords)

class Greedy(Attention):
    def forward(self, x, **keywords):
        raise MemoryError

class Full(Attention):
    def forward(self, x, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device", "curve.jsonl")

class Telling(Attention):
    def forward(self, x, **keywords):
        if self.training:
            said = os.environ.get("SAID", "nothing")
            print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads(), os.getpid(), said, flush=True)
            time.sleep(0.005)
        return super().forward(x, **keywords)

class Slow(Attention):
    def forward(self, x, **keywords):
        time.sleep(0.02)
        return super().forward(x, **keywords)
"""
BROKEN = ("plain", "raising", "unbuildable", "killed", "exploding", "hungry", "greedy", "full", "telling", "slow")


def install(site: Path) -> None:
    """Installs a third party's distribution with mixers, below a folder; the caller puts that folder on the path."""
    metadata = site / "zooplugin-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "zooplugin.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zooplugin\nVersion: 1.0\n")
    lines = [f"{name} = zooplugin:{name.capitalize()}" for name in BROKEN]
    (metadata / "entry_points.txt").write_text("\n".join(["[mixerzoo.mixers]", *lines]))


def run(mixer: str = "attention", seed: int = 0, **train: Any) -> RunConfig:
    settings = {"steps": 4, "batch_size": 2, "log_every": 1, "evaluate_every": 2, **train}
    return RunConfig(build_task(TASK), BackboneConfig(mixer, dim=16, depth=1), TrainConfig(**settings), seed)


def everything_is_there_once(store: Store, runs: list[RunConfig]) -> None:
    """Checks that each run has one row and no other, finished, its curve whole: every point once, in order."""
    rows = store.rows()
    assert [row.run_id for row in rows] == sorted(run.run_id for run in runs)
    steps = {run.run_id: run.train.steps for run in runs}
    for row in rows:
        assert row.status in FINISHED, row
        assert [point["step"] for point in row.curve] == list(range(1, steps[row.run_id] + 1))
        left = {path.name for path in (store.root / row.run_id).iterdir() if not path.name.startswith("events.")}
        assert left == {"config.json", "curve.jsonl", "log.txt", "result.json", "claim"}


def outcomes(store: Store) -> dict[str, Any]:
    """Returns what no interruption of a grid may change: all but times, memory and the machine."""
    passing = {"seconds", "tokens_per_second", "peak_memory_bytes", "energy_joules", "provenance"}
    return {
        row.run_id: (
            row.config,
            [{key: value for key, value in point.items() if key not in passing} for point in row.curve],
            {key: value for key, value in row.result.items() if key not in passing},
        )
        for row in store.rows()
    }
