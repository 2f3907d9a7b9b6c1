"""Writes docs/zoo.md from the mixers' specs, and the generated parts of the other pages from docstrings and results.

python docs/generate.py            write the pages
python docs/generate.py --check    exit with 1 if a page is stale
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from architecture import modules
from language_model_tables import language_models
from learning_tables import learning
from performance import performance
from vision_tables import cost, digits

from mixerzoo import build_mixer, list_mixers
from mixerzoo.mixers.parts.contract import Mixer
from mixerzoo.mixers.parts.spec import CAPABILITIES, FAMILIES, LIMITS

ROOT = Path(__file__).parents[1]
ZOO, PERFORMANCE, README = ROOT / "docs" / "zoo.md", ROOT / "docs" / "performance.md", ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
VISION = ROOT / "docs" / "vision.md"
LANGUAGE_MODELS = ROOT / "docs" / "language_models.md"
DIAGNOSTICS = ROOT / "docs" / "diagnostics.md"
ABLATION = ROOT / "benchmarks" / "results" / "ablation" / "results.md"
SPEED = ROOT / "benchmarks" / "results" / "cpu.json"
DIM, LENGTH = 1024, 1024
LEFT_OUT = ("95 % interval", "FLOPs/token", "peak memory")
SHOWN = ("curves-lm.png", "curves-mqar.png", "quality-vs-state.png")

INTRODUCTION = f"""\
# The zoo

Written by `python docs/generate.py` from the mixers themselves; a test keeps it fresh.

Sizes are those of one layer with its defaults at width {DIM:,}; state (fp32) and FLOPs are those of one sequence of
{LENGTH:,} tokens. Formulas are the mixers' own, which compute these numbers and are tested against the models:
T tokens, D width, H heads, G heads of k and v, K key dim of a head, V value dim of a head, and params, the weights of
linear maps and windows. A window adds its past to the state, W-1 numbers a channel.
"""
PROMISES = """\
## Promises and limits

The tests hold a mixer to every promise that its section lists. Every mixer takes padding, packed documents and scan
orders, has a choice of backends and compiles, unless its section lists that as a limit.
"""


def zoo() -> str:
    """Returns the page of mixers: an overview, the meanings of promises and limits, one section each, by family."""
    mixers = _mixers()
    header = ("mixer", "family", "parameters", "state", "GFLOP forward", "paper")
    rows = [
        (
            f"[`{name}`](#{name})",
            mixer.spec.family,
            f"{_parameters(mixer):,}",
            _size(4 * mixer.state_size(LENGTH)),
            f"{mixer.flops(LENGTH) / 1e9:,.1f}",
            _paper(mixer),
        )
        for name, mixer in mixers.items()
    ]
    families = [
        "\n".join([f"## {family.capitalize()}\n", *(_section(name, mixer) for name, mixer in same)])
        for family, same in groupby(mixers.items(), lambda item: item[1].spec.family)
    ]
    return "\n".join([INTRODUCTION, _table(header, rows), PROMISES, *_words(), *families])


def _words() -> Iterator[str]:
    """Yields the tables of capabilities and limits with their meanings."""
    for header, meanings in ((("promise", "meaning"), CAPABILITIES), (("limit", "not possible"), LIMITS)):
        yield _table(header, [(f"`{word}`", meaning) for word, meaning in meanings.items()])


def _mixers() -> dict[str, Mixer]:
    """Returns the package's mixers with their defaults, family by family."""
    built = [(name, mixer) for name in list_mixers() if (mixer := _build(name)) is not None]
    return dict(sorted(built, key=lambda item: (FAMILIES.index(item[1].spec.family), item[0])))


def _build(name: str) -> Mixer | None:
    """Builds the mixer with its defaults, without memory for its weights.

    Returns None for a third party's mixer, which documents itself.
    """
    with torch.device("meta"):
        mixer = build_mixer(name, dim=DIM)
    return mixer if type(mixer).__module__.startswith("mixerzoo.") else None


def _section(name: str, mixer: Mixer) -> str:
    spec, meanings = mixer.spec, _meanings(type(mixer))
    keywords = [
        (f"`{keyword}`", f"`{default!r}`", meanings[keyword])
        for keyword, default in ((p.name, p.default) for p in _keywords(type(mixer)))
    ]
    letters = _settings({"D": mixer.dim, **mixer.letters()})
    facts = {
        "Paper": _paper(mixer),
        "Ops": ", ".join(f"`{op}`" for op in spec.ops),
        "State": f"`{_formula(spec.state)}` numbers",
        "FLOPs forward": f"`{_formula(spec.flops)}`",
        "Letters": f"{letters} with the defaults. {type(mixer).letters.__doc__ or ''}".strip().removesuffix("."),
        "Promises": ", ".join(f"`{word}`" for word in sorted(spec.capabilities)),
        "Limits": ", ".join(f"`{word}`" for word in sorted(spec.cannot)),
        "Without positions of its own": _settings(spec.without_positions),
        "Its authors' image models": _settings(spec.paper_images),
    }
    equation = "\n".join(f"    {line.strip()}" for line in spec.equation.split(",  "))
    lines = (f"- {what}: {fact}." for what, fact in facts.items() if fact)
    table = _table(("keyword", "default", "meaning"), keywords)
    return "\n".join([f"### {name}", "", equation, "", *lines, "", table])


def _formula(formula: str) -> str:
    """Returns a spec's formula as it is written by hand: `2 T params + 3 D^2` for `2*T*params + 3*D**2`."""
    return formula.replace("**", "^").replace("*", " ")


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in settings.items())


def _keywords(cls: type) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())


def _meanings(cls: type) -> dict[str, str]:
    """Returns every keyword's meaning, from lines `name: meaning` or `name, name: meaning` of the docstring's Args."""
    meanings: dict[str, str] = {}
    _, _, arguments = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")
    for entry in re.split(r"\n    (?! )", "\n" + arguments.partition("\n\n")[0])[1:]:
        subjects, _, meaning = " ".join(entry.split()).partition(": ")
        meanings.update(dict.fromkeys(subjects.split(", "), meaning.rstrip(".")))
    undocumented = {parameter.name for parameter in _keywords(cls)} ^ set(meanings)
    if undocumented:
        raise ValueError(
            f"the docstring of {cls.__qualname__} must have a line `name: meaning` for every keyword under `Args:`; "
            f"missing or too many: {', '.join(sorted(undocumented))}"
        )
    return meanings


def _paper(mixer: Mixer) -> str:
    return f"[{mixer.spec.paper}](https://arxiv.org/abs/{mixer.spec.paper.removeprefix('arXiv:')})"


def _parameters(mixer: Mixer) -> int:
    return sum(parameter.numel() for parameter in mixer.parameters())


def _size(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def filled(page: Path, blocks: Mapping[str, str]) -> str:
    """Returns a page in which the text between `<!-- name ... -->` and `<!-- /name -->` is replaced.

    Raises ValueError if the page has no place for a block.
    """
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        place = re.compile(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(
                f"{page.name} has no place for {name!r}; remedy: two lines, <!-- {name} --> and <!-- /{name} -->"
            )
        text = place.sub(lambda match, block=block: f"{match[1]}{block}{match[2]}", text)
    return text


def _recurrences() -> str:
    """Returns a table of all mixers, by family: the recurrence, which is the spec's first equation, and the paper."""
    rows = [
        (f"[`{name}`](docs/zoo.md#{name})", f"`{mixer.spec.equation.split(',  ')[0]}`", _paper(mixer))
        for name, mixer in _mixers().items()
    ]
    return _table(("mixer", "recurrence", "paper"), rows)


def _ablation() -> str:
    """Returns the committed run's tables and warnings, without some columns, and three of its figures."""
    folder = ABLATION.parent.relative_to(ROOT).as_posix()
    _, *sections = ABLATION.read_text(encoding="utf-8").split("\n## ")
    tasks = [section for section in sections if "| configuration |" in section]
    texts = ["\n".join([f"**{title}**", *_narrow(lines)]) for title, *lines in (task.splitlines() for task in tasks)]
    figures = [f"![{name}]({folder}/{name})" for name in SHOWN]
    source = f"The whole report: [{ABLATION.name}]({folder}/{ABLATION.name}). {sections[-1].strip().splitlines()[-1]}"
    return "\n\n".join([*(text.strip() for text in texts), *figures, source]) + "\n"


def _narrow(lines: Sequence[str]) -> list[str]:
    """Removes the columns that are left out from the lines of a table; other lines stay unchanged."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("|") else None for line in lines
    ]
    header = next(row for row in rows if row is not None)
    kept = [column for column, name in enumerate(header) if name not in LEFT_OUT]
    return [
        line if row is None else f"| {' | '.join(row[column] for column in kept)} |"
        for line, row in zip(lines, rows, strict=True)
    ]


def _speed() -> str:
    """Returns the committed benchmark's measurement of each claim, in one run and side by side."""
    record = json.loads(SPEED.read_text(encoding="utf-8"))
    machine = record["provenance"]
    rows = [
        (claim["claim"], "absent" if measured is None else f"{measured:,.{0 if measured >= 100 else 2}f}")
        for claim in record["claims"]
        for measured in [claim["measured"]]
    ]
    heads, width, scan_width = (record["sizes"][key] for key in ("heads", "width", "scan_width"))
    caption = (
        f"Forward and backward, fp32, B=1, H={heads}, K=V={width}, gated_scan D={scan_width}; medians of one\n"
        f"interleaved run on {machine['cpu']}, {record['threads']} threads, torch {machine['torch']},\n"
        f"flash-linear-attention {record['peers']['fla-core']}. Script and times: [benchmarks](benchmarks/README.md)."
    )
    return f"{_table(('ratio', 'measured'), rows)}\n{caption}\n"


def main(arguments: list[str]) -> int:
    pages = {
        ZOO: zoo(),
        PERFORMANCE: performance(_table),
        ARCHITECTURE: filled(ARCHITECTURE, modules()),
        README: filled(README, {"mixers": _recurrences(), "ablation": _ablation(), "speed": _speed()}),
        VISION: filled(VISION, {"digits": digits(_table), "vision": cost(_table)}),
        LANGUAGE_MODELS: filled(LANGUAGE_MODELS, language_models(_table)),
        DIAGNOSTICS: filled(DIAGNOSTICS, learning(_table)),
    }
    if arguments == ["--check"]:
        stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
        print(f"stale: {', '.join(stale)}; remedy: python docs/generate.py" if stale else "fresh")
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 2
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
