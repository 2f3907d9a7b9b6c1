"""Trains the mixers on a CPU, in small studies of the diagnostics and of Long Range Arena, all by `mixerzoo ablate`.

    python benchmarks/learning.py --imdb aclImdb --out benchmarks/results     # hours on one core
    python benchmarks/learning.py mqar languages --out DIR                    # some of them
    python benchmarks/learning.py --smoke --out DIR                           # two mixers, four steps: does it run

Every study is a grid of all mixers and two seeds, in a folder of its own below --runs. All its models have one size
(parameters matched) and see the same data in the same order. Finished runs are skipped, so that a stopped study
resumes. Its tables and figures are copied to OUT/learning/STUDY. OUT/learning.json holds the claims beside what all the
studies in OUT measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from disc_distance import disc_distance_accuracy

from mixerzoo.tasks import build_task
from mixerzoo.tasks.config import parse_setting
from mixerzoo.tasks.provenance import provenance

SMOKE = ("--mixers", "attention,hgrn2", "--seeds", "1", "--set", "train.steps=4", "--set", "train.batch_size=4")
REVIEWS = {"train": 5000, "test": 1000}  # of each class: all 50,000 would take longer to score than to train on


class Claim(NamedTuple):
    """Claims that a column of summary.csv, less the column `baseline`, is at least `bound`; with `at_most`, at most.

    mixers: the claim's mixers; all, if there are none. task: its task, in a study of several.
    """

    bound: float
    column: str = "mean"
    baseline: str = ""
    mixers: tuple[str, ...] = ()
    task: str = ""
    at_most: bool = False

    def check(self, study: str, rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """Returns a row for every mixer."""
        what = "accuracy" if self.column == "mean" else f"accuracy at {self.column}"
        what += f" less that of {self.baseline!r}" if self.baseline else ""
        checked = []
        for row in rows:
            if (self.task and row["task"] != self.task) or (self.mixers and row["mixer"] not in self.mixers):
                continue
            measured = None
            if row["mean"]:  # a run that diverged or failed has none
                measured = float(row[self.column]) - (float(row[self.baseline]) if self.baseline else 0)
            checked.append(
                {
                    "claim": f"{study}, {row['task']}, {row['mixer']}: {what}",
                    "measured": measured,
                    "bound": f"{'<=' if self.at_most else '>='} {self.bound:g}",
                    "holds": measured is not None and self.holds(measured),
                }
            )
        return checked

    def holds(self, measured: float) -> bool:
        return measured <= self.bound if self.at_most else measured >= self.bound


class Study(NamedTuple):
    """Describes a grid: its tasks, its settings besides their defaults, its claims, and what is tuned on all seeds."""

    tasks: str
    settings: tuple[str, ...]
    claims: tuple[Claim, ...]
    tune: tuple[str, ...] = ()


RATES = ("train.lr=2e-3,5e-3,1e-2",)
STUDIES = {
    "mqar": Study(
        "diagnostics/mqar",
        ("train.steps=1500",),
        (Claim(0.99, mixers=("attention", "gla", "hgrn2", "retnet")), Claim(0.9, mixers=("hgrn1",), at_most=True)),
        RATES,
    ),
    "mqar-no-conv": Study("diagnostics/mqar", ("train.steps=1500", "mixer.short_conv=0"), (), RATES),
    "digits": Study("diagnostics/digits", ("backbone.dim=32", "train.steps=200"), (Claim(0.9),)),
    "languages": Study(
        "diagnostics/parity,diagnostics/even-pairs,diagnostics/modular-arithmetic",
        (
            *("task.embedding_std=0.2", "task.valid_words=256", "backbone.dim=32"),
            *("train.steps=800", "train.batch_size=32", "train.evaluate_every=200"),
        ),
        (
            Claim(0.99, column="length 40", task="diagnostics/even-pairs"),
            Claim(0.6, column="length 256", task="diagnostics/parity", at_most=True),
        ),
    ),
    "listops-short": Study(
        "lra/listops",
        (
            *("task.min_length=9", "task.max_length=41", "task.max_depth=4", "task.max_args=4", "backbone.dim=32"),
            *("train.steps=600", "train.lr=5e-3", "train.evaluate_every=200"),
        ),
        (Claim(0.05, baseline="root operator"),),
    ),
    "text-1024": Study(
        "lra/text",
        (
            *("task.max_tokens=1024", "task.embedding_std=0.2", "backbone.dim=32", "mixer.short_conv=4"),
            *("train.steps=500", "train.batch_size=8", "train.lr=5e-3", "train.evaluate_every=250"),
        ),
        (Claim(0.1, baseline="majority class"),),
    ),
    "pathfinder": Study(
        "lra/pathfinder",
        (
            *("task.protocol=hgrn", "task.contour_length=2", "task.samples=40000", "task.positions=learned"),
            *("task.embedding_std=0.2", "backbone.dim=32", "backbone.norm=batch", "mixer.short_conv=4"),
            *("train.steps=1000", "train.batch_size=32", "train.weight_decay=0", "train.evaluate_every=250"),
            *("train.lr=3e-3", "train.warmup=0.2"),
        ),
        (Claim(0.25, baseline="majority class"),),  # the distance of the discs alone makes 0.15
    ),
}


def run(name: str, study: Study, arguments: argparse.Namespace) -> Path:
    """Trains what is not trained yet. Returns the study's folder."""
    settings = list(study.settings)
    if study.tasks == "lra/text":
        settings.append(f"task.lra_dir={sample(arguments.imdb, arguments.runs / 'imdb', arguments.smoke)}")
    command = [sys.executable, "-m", "mixerzoo.cli", "ablate", "--runs-dir", str(arguments.runs), "--name", name]
    command += ["--task", study.tasks, "--workers", str(arguments.workers), "--threads", str(arguments.threads)]
    command += [part for setting in settings for part in ("--set", setting)]
    command += [part for candidates in study.tune for part in ("--tune", candidates)]
    if study.tune and not arguments.smoke:
        command += ["--choose-on", "2"]
    subprocess.run([*command, *(SMOKE if arguments.smoke else ("--seeds", "2"))], check=True, stdout=sys.stderr)
    return arguments.runs / name


def sample(imdb: Path, folder: Path, smoke: bool) -> Path:
    """Samples reviews of IMDB at even distances in the order of their names, as a folder of the same layout."""
    for part, count in REVIEWS.items():
        for kind in ("neg", "pos"):
            reviews = sorted((imdb / part / kind).glob("*.txt"))
            if not reviews:
                raise ValueError(f"{imdb / part / kind} has no reviews; remedy: aclImdb_v1.tar.gz unpacked, as --imdb")
            count = min(10 if smoke else count, len(reviews))
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                review = reviews[number * len(reviews) // count]
                if not (folder / part / kind / review.name).exists():
                    shutil.copy2(review, folder / part / kind)
    return folder


def keep(name: str, folder: Path, results: Path) -> None:
    """Copies a study's tables and figures, and draws its own figures."""
    kept = results / "learning" / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in (*folder.glob("*.csv"), *folder.glob("*.md"), *folder.glob("*.png")):
        shutil.copyfile(file, kept / file.name)
    if name == "pathfinder":
        settings = dict(map(parse_setting, STUDIES[name].settings))
        fields = {path.removeprefix("task."): value for path, value in settings.items() if path.startswith("task.")}
        baseline = disc_distance_accuracy(build_task({"name": STUDIES[name].tasks, **fields}))
        (kept / "baseline.json").write_text(json.dumps({"distance of the discs": baseline}) + "\n", encoding="utf-8")


def summary(folder: Path) -> list[dict[str, str]]:
    with open(folder / "summary.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)}; all, if none is given")
    parser.add_argument("--imdb", type=Path, help="aclImdb, with the folders train and test; no text study without it")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the runs go")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for every process")
    parser.add_argument("--smoke", action="store_true", help="two mixers, four steps: does it run")
    parser.add_argument("--out", type=Path, required=True, help="OUT/learning.json and OUT/learning/STUDY are written")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.studies) - set(STUDIES)):
        parser.error(f"unknown studies {', '.join(unknown)}; known: {', '.join(STUDIES)}")
    origin = provenance(sys.argv)  # before results change the checkout
    for name, study in STUDIES.items():
        if name in (arguments.studies or STUDIES) and (arguments.imdb or study.tasks != "lra/text"):
            keep(name, run(name, study, arguments), arguments.out)
    found = {name: study for name, study in STUDIES.items() if (arguments.out / "learning" / name).is_dir()}
    claims = [
        checked
        for name, study in found.items()
        for claim in study.claims
        for checked in claim.check(name, summary(arguments.out / "learning" / name))
    ]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": origin,
        "threads": arguments.threads,
        "studies": {
            name: {"tasks": study.tasks, "settings": study.settings, "tune": study.tune}
            for name, study in found.items()
        },
        "claims": [] if arguments.smoke else claims,
    }
    for claim in record["claims"]:
        verdict = "kept" if claim["holds"] else "NOT KEPT"
        print(f"{claim['claim']}: {claim['measured']}, bound {claim['bound']}, {verdict}")
    (arguments.out / "learning.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
