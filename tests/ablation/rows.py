"""Invents a grid's runs: seeds, curves, failures, two and more tasks, a varied axis, a search, series."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixerzoo.ablation.running.store import Row

ACCURACY = {"name": "accuracy", "unit": "fraction", "higher_is_better": True}
BITS = {"name": "bits per byte", "unit": "", "higher_is_better": False}
ORIGIN = {
    "python": "3.11.7",
    "mixerzoo": "0.1.0",
    "torch": "2.15.0",
    "platform": "Linux",
    "cpu": "EPYC",
    "cores": 2,
    "device": "cpu",
    "git": "3f2a9c",
    "argv": ["mixerzoo", "ablate", "--seeds", "3"],
}
TASKS = {"mqar": ACCURACY, "lm": BITS, "diagnostics/parity": ACCURACY, "diagnostics/selective-copy": ACCURACY}
SKILL = {"attention": 0.97, "hgrn2": 0.93, "gla": 0.90, "retnet": 0.72, "hgrn1": 0.45}
LENGTHS = (32, 64, 128, 256, 512)


def config(
    mixer: str = "gla", task: str = "mqar", seed: int = 0, lr: float = 3e-3, data: str = "d0", **keywords: Any
) -> dict[str, Any]:
    """Returns a resolved configuration; `keywords` are the mixer's."""
    pattern: list[dict[str, Any]] = [{"name": name, **keywords} for name in mixer.split("+")]
    return {
        "task": {"name": task, "length": 64},
        "backbone": {
            "mixer": pattern if len(pattern) > 1 else pattern[0],
            "dim": 64,
            "depth": 2,
            "channel_mixer": {"multiplier": 8 / 3, "activation": "silu", "hidden": 160 + len(mixer), "bias": False},
        },
        "train": {"steps": 400, "batch_size": 32, "lr": lr},
        "seed": seed,
        "data": f"{task}-{data}",
    }


def row(
    value: float | None = 0.5, *, status: str = "done", curve: int = 8, settled: bool = True, **keywords: Any
) -> Row:
    """Returns one run. `result_...` keywords go to result.json, the others to `config`."""
    extra = {name.removeprefix("result_"): keywords.pop(name) for name in list(keywords) if name.startswith("result_")}
    settings = config(**keywords)
    metric = TASKS[settings["task"]["name"]]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    run_id = f"{settings['task']['name'].replace('/', '_')}-{digest[:10]}"
    if status == "unfinished":
        return Row(run_id, settings, (), {})
    if status in ("failed", "out of memory"):
        return Row(run_id, settings, (), {"status": status, "error": "RuntimeError: no luck", "seconds": 1.0, **extra})
    start, end = (0.1, value or 0.2) if metric is ACCURACY else (5.0, value or 4.0)
    steps = [400 * (i + 1) // curve for i in range(curve)]
    shape = [1 - math.exp(-6 * step / 400) if settled else step / 400 for step in steps]
    tokens = 2048 + settings["seed"]  # a step, as where sequences are not all as long
    points = tuple(
        {"step": step, "tokens": step * tokens, "seconds": step / 50, "loss": 3.0, "metric": start + (end - start) * s}
        for step, s in zip(steps, shape, strict=True)
    )
    result = {
        "status": status,
        "metric": metric,
        "value": value if status == "done" else None,
        "split": "test",
        "valid": None if value is None else value + 0.002,
        "loss": 1.0,
        "parameters": 115_000,
        "state_bytes": 4096,
        "flops_per_token": 250_000.0,
        "steps": 400,
        "tokens": 400 * tokens,
        "tokens_per_second": 30_000.0,
        "seconds": 27.0,
        "peak_memory_bytes": 300 * 2**20,
        "energy_joules": None,
        "measurements": {"values": {}, "note": "", "maps": {}, "series": {}},
        "provenance": ORIGIN,
        **extra,
    }
    return Row(run_id, settings, points, result)


def write(root: Path, rows: Iterable[Row], question: Mapping[str, Any] | None = None) -> Path:
    """Writes the rows as the files of a store."""
    root.mkdir(parents=True, exist_ok=True)
    if question is not None:
        (root / "grid.json").write_text(json.dumps(question))
    for own in rows:
        directory = root / own.run_id
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(own.config, indent=1))
        (directory / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in own.curve))
        if own.result:
            (directory / "result.json").write_text(json.dumps(own.result, indent=1))
    return root


def value(task: str, skill: float, rng: random.Random, noise: float = 0.012) -> float:
    """Returns a result of a mixer's ability, from 0 to 1, with the noise of a seed."""
    able = min(0.999, max(0.02, skill + rng.gauss(0, noise)))
    return able if TASKS[task] is ACCURACY else 3.4 - 1.3 * able


def study(seeds: int = 3) -> list[Row]:
    """Returns a study: five mixers on four tasks, HGRN2's expand varied on mqar, lengths on parity, and mishaps."""
    rng = random.Random(0)
    rows = []
    for task, mixer, seed in ((t, m, s) for t in TASKS for m in SKILL for s in range(seeds)):
        state = {"attention": 2**19, "hgrn1": 512, "retnet": 2**13, "gla": 2**13, "hgrn2": 2**13}[mixer]
        shared = {"result_tokens_per_second": 20_000 + state / 40, "result_seconds": 20 + 4e5 / (9e3 + state / 9)}
        shared |= {"result_state_bytes": state, "result_flops_per_token": 250_000 + state / 4}
        own: dict[str, Any] = {"mixer": mixer, "task": task, "seed": seed, **shared}
        if (task, mixer, seed) == ("lm", "retnet", 1):
            rows.append(row(status="out of memory", **own))
        elif (task, mixer, seed) == ("diagnostics/selective-copy", "hgrn1", 2):
            rows.append(row(None, status="diverged", **own))
        elif task == "mqar" and mixer == "hgrn2":
            for expand in (1, 4, 16, 64, 128):
                skill = SKILL["hgrn2"] - 0.5 / expand**0.7
                own["result_state_bytes"] = 512 * expand
                rows.append(row(value(task, skill, rng), expand=expand, **own))
        elif task == "diagnostics/parity":
            skill = SKILL[mixer]
            curve = [(length, max(0.5, skill - 0.1 * max(0, math.log2(length / 64)))) for length in LENGTHS]
            speed = [(length, 4e4 / (1 + length / 256 * (mixer == "attention"))) for length in LENGTHS]
            series = {
                "by length": {"x": "length", "y": "accuracy", "points": curve, "mark": 64},
                "speed": {"x": "length", "y": "tokens/s", "points": speed, "mark": None},
            }
            measured = {"values": {"length 512": curve[-1][1]}, "note": "Accuracy by length of the word."}
            rows.append(row(value(task, skill, rng), result_measurements={**measured, "series": series}, **own))
        else:
            settled = (task, mixer) != ("lm", "attention")
            rows.append(row(value(task, SKILL[mixer], rng), settled=settled, **own))
    return rows


def search(rates: Iterable[float] = (1e-3, 3e-3, 1e-2, 3e-2), seeds: int = 3) -> list[Row]:
    """Returns a search for a learning rate: every rate on the first seed, the best of each mixer on the others too."""
    rng = random.Random(1)
    rows = []
    for mixer, best in (("hgrn2", 1e-2), ("gla", 3e-3), ("attention", 1e-3)):
        for lr in rates:
            skill = SKILL[mixer] - 0.05 * abs(math.log10(lr / best)) ** 2
            if mixer == "gla" and lr == 3e-2:
                rows.append(row(None, mixer=mixer, lr=lr, status="diverged"))
                continue
            rows += [
                row(value("mqar", skill, rng, noise=0.003), mixer=mixer, lr=lr, seed=seed)
                for seed in range(seeds if lr == best else 1)
            ]
    return rows
