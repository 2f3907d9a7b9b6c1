"""Trains all mixers on the same English, as language models of one size: perplexity a word, bits per byte, loss curves.

    python benchmarks/text.py --train FILES --valid FILES --test NAME=FILES [--test ...] [--out FILE] [--smoke]

FILES are paths and patterns with commas between, every file one document. Tokens are 4096 byte pairs learned on the
training text. A row of them holds three to four times as much text as one of bytes, for the same work. Width, depth and
heads are common; the GLU's width brings every model to attention's size. Each mixer's learning rate is the best of the
same few on the validation text, from short runs with a seed of their own. A seed decides the order of rows, so that all
mixers read the same rows in the same order.

Runs are saved in RUNS: called again, a stopped script resumes. It writes FILE and, beside it, the curves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from text_runs import REFERENCE, SMOKE, Comparison, Sizes, Texts, frequencies, measure, read, token_counts

from mixerzoo.tasks.files import to_json, write_atomically
from mixerzoo.tasks.provenance import provenance

SAME_SIZE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="FILES", required=True)
    parser.add_argument("--valid", metavar="FILES", required=True)
    parser.add_argument("--test", metavar="NAME=FILES", required=True, action="append")
    parser.add_argument("--about", default="", help="a sentence on the texts, for the table's caption")
    parser.add_argument("--runs", type=Path, default=Path("runs/text"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, help="runs of every mixer")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--smoke", action="store_true", help="tiny models, a few updates: does it run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON, and the curves beside it")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else Sizes()
    if arguments.seeds is not None:
        sizes = replace(sizes, seeds=tuple(range(1, arguments.seeds + 1)))
    torch.set_num_threads(arguments.threads)
    tests = dict(test.split("=", 1) for test in arguments.test)
    texts = Texts(arguments.train, arguments.valid, tests)
    comparison = Comparison(texts, sizes, arguments.runs)
    search = comparison.search()
    rows = comparison.rows(search)
    counts = token_counts(texts, comparison.tokenizer)
    baseline = frequencies(counts, texts, comparison.tokenizer, sizes)
    named = {"train": texts.train, "valid": texts.valid, **tests}
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "threads": arguments.threads,
        "about": arguments.about,
        "texts": {name: {"files": files, **measure(read(files))} for name, files in named.items()},
        "sizes": asdict(sizes),
        "claims": [] if arguments.smoke else claims(rows, baseline, int(counts.sum())),
        "baseline": baseline,
        "search": search,
        "rows": rows,
    }
    print(report(record))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.out, to_json(record) + "\n")
        draw(record, arguments.out.with_suffix(".png"))


def claims(
    rows: list[dict[str, Any]], baseline: dict[str, dict[str, float]], train_tokens: int
) -> list[dict[str, Any]]:
    """Checks that no text is read twice, that models are of one size, and that they beat token frequencies."""
    size = next(row["parameters"] for row in rows if row["mixer"] == REFERENCE)
    share = max(row["tokens"] for row in rows) / train_tokens
    found = [("tokens read / tokens of the training text", share, "<= 1", share <= 1)]
    for row in rows:
        name = f"{row['mixer']}, seed {row['seed']}"
        off = abs(row["parameters"] / size - 1)
        found.append((f"{name}: size, off {REFERENCE}'s", off, f"<= {SAME_SIZE:g}", off <= SAME_SIZE))
        for test, scores in row["tests"].items():
            measured = scores["bits_per_byte"] / baseline[test]["bits_per_byte"]
            found.append((f"{name}: bits per byte of {test} / token frequencies'", measured, "< 1", measured < 1))
    keys = ("claim", "measured", "bound", "holds")
    return [dict(zip(keys, claim, strict=True)) for claim in found]


def report(record: dict[str, Any]) -> str:
    """Returns the results as Markdown: means over the seeds."""
    tests = list(record["baseline"])
    columns = [f"{test}: {what}" for test in tests for what in ("perplexity a word", "bits per byte")]
    header = ["", "parameters", "learning rate", "state at 1K, bytes", *columns]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for mixer in dict.fromkeys(row["mixer"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["mixer"] == mixer]
        scores = [cell for test in tests for cell in cells([row["tests"][test] for row in rows if row["tests"]])]
        first = rows[0]
        lines.append([mixer, f"{first['parameters']:,}", f"{first['lr']:g}", f"{first['state_bytes']:,}", *scores])
    scores = [cell for test in tests for cell in cells([record["baseline"][test]])]
    lines.append(["token frequencies", "", "", "", *scores])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(scores: list[dict[str, float]]) -> tuple[str, str]:
    if not scores:
        return "diverged", "diverged"
    words, bits = (statistics.fmean(one[key] for one in scores) for key in ("word_perplexity", "bits_per_byte"))
    return f"{words:,.0f}", f"{bits:.3f}"


def draw(record: dict[str, Any], file: Path) -> None:
    """Draws training and validation loss over the tokens read: the mean over seeds, and lowest to highest as a band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = (
        ("training loss, nats per token", lambda entry: entry["loss"]),
        ("validation, bits per byte", lambda entry: entry["valid"] and entry["valid"]["bits_per_byte"]),
    )
    for axes, (title, value) in zip(figure.subplots(1, 2), panels, strict=True):
        for mixer in dict.fromkeys(row["mixer"] for row in record["rows"]):
            by_tokens: dict[int, list[float]] = {}
            for entry in (entry for row in record["rows"] if row["mixer"] == mixer for entry in row["curve"]):
                if value(entry) is not None:
                    by_tokens.setdefault(entry["tokens"], []).append(value(entry))
            tokens, values = list(by_tokens), list(by_tokens.values())
            (line,) = axes.plot(tokens, list(map(statistics.fmean, values)), label=mixer)
            band = list(map(min, values)), list(map(max, values))
            axes.fill_between(tokens, *band, color=line.get_color(), alpha=0.18, lw=0)
        axes.set(title=title, xlabel="tokens read")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
