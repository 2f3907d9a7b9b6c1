"""From stored runs to a table on the screen, `results.md`, `summary.csv`, `results.csv` and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixerzoo.tasks.config import flatten
from mixerzoo.tasks.files import write_atomically

from .arms import Arm, arms, short_path, show_value
from .store import Row, Store

WORDS = ("mixer", "configuration")  # columns that are not numbers


def write_report(store: Store, *, plots: bool = True) -> list[Arm]:
    """Write the tables and plots of a whole directory, finished or not, and return its arms."""
    rows = store.rows()
    if not rows:
        raise ValueError(f"there are no runs in {store.root}; remedy: a directory that `mixerzoo ablate` has written")
    result = arms(rows)
    write_atomically(store.root / "results.csv", _csv([_flat_row(row) for row in rows]))
    write_atomically(store.root / "summary.csv", _csv([_flat_arm(arm) for arm in result]))
    images = []
    if plots and any(arm.values for arm in result):
        from .plots import draw

        images = draw(result, store.root)
    write_atomically(store.root / "results.md", _markdown(result, images))
    return result


def print_tables(result: Sequence[Arm], console: Console) -> None:
    """The summary, a table per task, and a line per run without a value."""
    for task in dict.fromkeys(arm.task for arm in result):
        header, lines, problems = _table([arm for arm in result if arm.task == task])
        table = Table(title=f"{task}: mean ± std over seeds", title_justify="left", title_style="bold")
        for name in header:
            table.add_column(Text(name), justify="left" if name in WORDS else "right", overflow="fold")
        for line in lines:
            table.add_row(*map(Text, line))
        console.print(table)
        for note in _notes(result, task):
            console.print(Text(note, style="dim"), soft_wrap=True)
        for problem in problems:
            console.print(Text(problem, style="red"), soft_wrap=True)


def _table(group: Sequence[Arm]) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, a line per arm, and a sentence for every run that did not get a value."""
    variants = list(dict.fromkeys(path for arm in group for path in arm.variant))
    header = ["mixer", *map(short_path, variants), _metric_label(group), "seeds", "parameters", "state at T=1024"]
    measured = list(dict.fromkeys(name for arm in group for name in arm.measurements))
    header += ["tokens/s", "seconds", *measured, "configuration"]
    lines, problems = [], []
    for arm in group:
        lines.append(
            [
                arm.mixer,
                *(show_value(arm.variant[path]) if path in arm.variant else "" for path in variants),
                _value(arm),
                f"{len(arm.values)}" if len(arm.values) == len(arm.rows) else f"{len(arm.values)} of {len(arm.rows)}",
                *(
                    "" if number is None else f"{number:,.0f}{unit}"
                    for number, unit in (
                        (arm.average("parameters"), ""),
                        (arm.average("state_bytes"), " B"),
                        (arm.average("tokens_per_second"), ""),
                        (arm.average("seconds"), ""),
                    )
                ),
                *(_round(arm.measurements.get(name)) for name in measured),
                _configuration(arm.rows[0].config),
            ]
        )
        for row in arm.rows:
            if row.status != "done":
                detail = row.result.get("error") or f"step {row.result['steps']}" if row.result else "no result yet"
                problems.append(f"{arm.task} {arm.label} seed {row.config['seed']}: {row.status} ({detail})")
    return header, lines, problems


def _notes(result: Sequence[Arm], task: str) -> list[str]:
    """How what the task measured arose, each sentence once."""
    rows = (row for arm in result if arm.task == task for row in arm.finished)
    notes = (row.result.get("measurements", {}).get("note") for row in rows)
    return list(dict.fromkeys(filter(None, notes)))


def _markdown(result: Sequence[Arm], images: Sequence[str]) -> str:
    parts = ["# Results\n"]
    for task in dict.fromkeys(arm.task for arm in result):
        header, lines, problems = _table([arm for arm in result if arm.task == task])
        align = ["---" if name in WORDS else "---:" for name in header]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in [header, align, *lines]]
        parts.append(f"## {task}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n")
        parts += [f"- {problem}" for problem in problems] + [""] * bool(problems)
        parts += [f"{note}\n" for note in _notes(result, task)]
    parts += [f"![{image}]({image})\n" for image in images]
    parts.append("Metrics are means ± standard deviations over seeds; seconds include evaluation, tokens/s do not.")
    origin = next((row.result["provenance"] for arm in result for row in arm.rows if "provenance" in row.result), None)
    if origin:
        versions = ", ".join(f"{name} {origin[name]}" for name in ("mixerzoo", "torch", "python"))
        parts.append(f"Made by `{' '.join(origin['argv'])}` with {versions} on {origin['cpu']} ({origin['device']}).")
    return "\n".join(parts) + "\n"


def _value(arm: Arm) -> str:
    if arm.mean is None:
        return "/".join(dict.fromkeys(row.status for row in arm.rows))
    text = f"{arm.mean:.4f}" + (f" ± {arm.std:.4f}" if arm.std is not None else "")
    diverged = sum(row.status == "diverged" for row in arm.rows)
    return f"{text} ({diverged} diverged)" if diverged else text


def _round(number: float | None) -> str:
    """To three digits, or to whole numbers where those are more."""
    return "" if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _metric_label(group: Sequence[Arm]) -> str:
    metric = next((row.result["metric"] for arm in group for row in arm.finished), None)
    return f"{metric['name']} {'↑' if metric['higher_is_better'] else '↓'}" if metric else "metric"


def _configuration(config: Mapping[str, Any]) -> str:
    """`expand=16 short_conv=4 · GLU 165 · lr 0.01`: what a mixer was given besides its width."""
    backbone = config["backbone"]
    pattern = backbone["mixer"] if isinstance(backbone["mixer"], list) else [backbone["mixer"]]
    layers = [
        " ".join(f"{key}={show_value(value)}" for key, value in mixer.items() if key != "name") for mixer in pattern
    ]
    glu = backbone["channel_mixer"]
    width = "no GLU" if glu is None else f"GLU {glu['hidden'] or show_value(glu['multiplier']) + 'x'}"
    return " · ".join([*filter(None, layers), width, f"lr {show_value(config['train']['lr'])}"])


def _flat_row(row: Row) -> dict[str, Any]:
    return {"run_id": row.run_id, "status": row.status, **flatten(row.config), **flatten(row.result)}


def _flat_arm(arm: Arm) -> dict[str, Any]:
    averages = ("parameters", "state_bytes", "tokens", "tokens_per_second", "seconds")
    return {
        "task": arm.task,
        "mixer": arm.mixer,
        **arm.variant,
        "metric": next((row.result["metric"]["name"] for row in arm.finished), None),
        "mean": arm.mean,
        "std": arm.std,
        "seeds": len(arm.values),
        "runs": len(arm.rows),
        **{key: arm.average(key) for key in averages},
        **arm.measurements,
        "configuration": _configuration(arm.rows[0].config),
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the union of their columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
