"""Lays out docs/language_models.md's tables, from the committed results of benchmarks/text.py and serving.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MISSING = "Not yet measured.\n"
WIDTH = 120
PANELS = (
    ("prefill, tokens/s", "prefill_tokens_per_second"),
    ("decode, tokens/s", "decode_tokens_per_second"),
    ("cache", "cache_bytes"),
    ("most memory while the prompt is taken in", "peak_bytes"),
)

Table = Callable[[tuple[str, ...], Sequence[tuple[str, ...]]], str]


def language_models(table: Table) -> dict[str, str]:
    """Returns a block for every place of the page."""
    return {"text": _text(table), "serving": _serving(table)}


def _text(table: Table) -> str:
    """Lists every mixer after the same tokens, the best first on the first test."""
    if (record := _read("text.json")) is None:
        return MISSING
    tests = list(record["baseline"])
    by_mixer: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        by_mixer.setdefault(row["mixer"], []).append(row)
    scores = {mixer: [row["tests"] for row in rows if row["tests"]] for mixer, rows in by_mixer.items()}
    scores["token frequencies"] = [record["baseline"]]
    ranked = sorted(scores, key=lambda name: _mean(scores[name], tests[0], "bits_per_byte"))
    lines = []
    for name in ranked:
        cells = [f"{_mean(scores[name], test, 'word_perplexity'):,.0f}" for test in tests]
        cells += [f"{_mean(scores[name], test, 'bits_per_byte'):.3f}" for test in tests]
        own = ("", "", "")
        if name in by_mixer:
            row = by_mixer[name][0]
            own = (f"{row['parameters']:,}", f"{row['lr']:g}", _size(row["state_bytes"]))
        lines.append((f"`{name}`" if name in by_mixer else name, *cells, *own))
    columns = [f"{test}, {what}" for what in ("perplexity a word", "bits per byte") for test in tests]
    sizes, first, machine = record["sizes"], record["rows"][0], record["provenance"]
    spread = max(
        max(values) - min(values)
        for name in by_mixer
        for test in tests
        for values in [[one[test]["bits_per_byte"] for one in scores[name]] or [0.0]]
    )
    seeds = len(sizes["seeds"])
    means = f"Means over {seeds} seeds, which differ by at most {spread:.3f} bits per byte. " if seeds > 1 else ""
    caption = (
        "So little text shows how soon a mixer learns, not how well it ends. "
        f"{record['about']} {sizes['depth']} layers of width {sizes['width']}, sizes matched by the GLU's width, "
        f"{first['tokens']:,} tokens in rows of {sizes['length']}, none read twice, in the same order for all; "
        f"{sizes['vocabulary']:,} byte pairs learned on the training text. Learning rates are each mixer's best of "
        f"{', '.join(f'{lr:g}' for lr in sizes['learning_rates'])} in runs of {sizes['search_updates']} updates "
        f"(of {sizes['updates']}). Words are what white space separates, and ends of lines. {means}"
        f"{_threads(record['threads'])} of {machine['cpu']}, torch {machine['torch']}."
    )
    return (
        "Every mixer after the same real text, as a model of the same size:\n\n"
        f"{table(('', *columns, 'parameters', 'learning rate', 'state at 1K tokens'), lines)}\n"
        f"{fill(caption, WIDTH)}\n\n"
        "![Loss over the tokens read](../benchmarks/results/text.png)\n"
    )


def _serving(table: Table) -> str:
    """Returns a table for every panel of the plot and one more, for every measured device."""
    devices = [device for device in ("cpu", "cuda") if (RESULTS / f"serving-{device}.json").exists()]
    return "\n".join(_served(table, device) for device in devices) or MISSING


def _served(table: Table, device: str) -> str:
    record = _read(f"serving-{device}.json")
    assert record is not None
    contexts, sizes, machine = record["sizes"]["contexts"], record["sizes"], record["provenance"]
    found = {(row["mixer"], row["context"]): row for row in record["rows"]}
    tables = [
        table(
            (title, *(f"{context:,}" for context in contexts)),
            [
                (f"`{mixer}`", *(_cell(found[mixer, context], key) for context in contexts))
                for mixer in dict.fromkeys(row["mixer"] for row in record["rows"])
            ],
        )
        for title, key in PANELS
    ]
    where = (
        f"{_threads(record['threads'])} of {machine['cpu']}, fp32" if device == "cpu" else f"{machine['device']}, bf16"
    )
    caption = (
        f"{sizes['depth']} layers of width {sizes['width']}, one sequence, {where}, torch {machine['torch']}; medians. "
        "Columns are tokens of context."
    )
    plot = f"![Prefill, decode and cache](../benchmarks/results/serving-{device}.png)\n"
    return "\n".join([*tables, fill(caption, WIDTH) + "\n", plot])


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    return _size(value) if key.endswith("bytes") else f"{value:,.0f}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _mean(scores: Sequence[Mapping[str, Any]], test: str, key: str) -> float:
    """Returns the mean; infinite if every run diverged."""
    return statistics.fmean(one[test][key] for one in scores) if scores else float("inf")


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
