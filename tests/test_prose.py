"""Docstrings read at once: each opens with a short sentence that has a subject and a verb, in the words of the trade.

`python tests/test_prose.py` prints how many docstrings each package has, and how many of them break a rule.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("mixerzoo", "benchmarks", "docs", "tests") for file in (ROOT / folder).rglob("*.py"))
LONGEST = 25
# A docstring that opens with one of these is a fragment or an inversion: its subject or its verb stands elsewhere.
FRAGMENTS = {
    *("what", "of", "where", "how", "whether", "which", "that", "as", "those"),
    *("who", "whose", "whom", "when", "why", "also", "nor", "neither"),
}
IDIOMS = {
    "gone on with": "resumed",
    "goes on with": "resumes",
    "going on with": "resuming",
    "go on with": "resume",
    "laid over": "overrides",
    "lays over": "overrides",
    "lay over": "override",
    "said aloud": "explicit",
    "says aloud": "is explicit",
    "none of ours": "another package's",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def docstrings(path: Path) -> list[tuple[int, str]]:
    """Returns (line, text) of the docstrings of a module, its classes and its functions."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, nodes)]
    return [(node.body[0].lineno, text) for node in documented if (text := ast.get_docstring(node)) is not None]


def first_sentence(text: str) -> str:
    """Returns the words up to the first full stop, with every formula `...` and every shape [...] as one word."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    paragraph = re.sub(r"`[^`]*`|\[[^\[\]]*\]", lambda formula: re.sub(r"[\s.?!]", "_", formula[0]), paragraph)
    return re.split(r"(?<!\bal\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<=[.?!])\s", paragraph, maxsplit=1)[0]


def broken(text: str) -> list[str]:
    """Returns the rules that a docstring breaks, each as a sentence; none for one that reads well."""
    sentence = first_sentence(text)
    words = [word for word in sentence.split() if re.search(r"\w", word)]
    opening = words[0].rstrip(".,:;").lower() if words else ""
    prose = " ".join(text.lower().split())
    return [
        *(["it has no words"] if not words else []),
        *([f"it opens with {words[0]!r}: begin with a subject and a verb"] if opening in FRAGMENTS else []),
        *([f"its first sentence has {len(words)} words, at most {LONGEST}"] if len(words) > LONGEST else []),
        *(f"it says {idiom!r}: say {plain!r}" for idiom, plain in IDIOMS.items() if re.search(rf"\b{idiom}\b", prose)),
    ]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_docstrings_read_at_once(path: Path) -> None:
    faults = [
        f"{relative(path)}:{line}: {fault}\n    {first_sentence(text)}"
        for line, text in docstrings(path)
        for fault in broken(text)
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_module_opens_with_a_whole_sentence_on_one_line(path: Path) -> None:
    """docs/architecture.md shows this line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree)
    assert text is not None or path.name == "__init__.py", "a module says in its docstring what it is for"
    assert text is None or re.search(r"[.?!:]$", text.splitlines()[0]), text.splitlines()[0]


def test_every_rule_can_fail() -> None:
    """A sentence that breaks one rule breaks that one alone, and formulas break none."""
    assert broken("Whether a run is finished.") == ["it opens with 'Whether': begin with a subject and a verb"]
    assert broken(f"Returns {'very ' * 23}much. {'More ' * 30}.") == []
    assert broken(f"Returns {'very ' * 24}much.") == ["its first sentence has 26 words, at most 25"]
    assert broken("Trains a model. A checkpoint is gone\non with.") == ["it says 'gone on with': say 'resumed'"]
    assert broken(f"`{'h_t = f h_{t-1}. ' * 30}` is the equation of [{'D ' * 30}].") == []
    assert broken("...") == ["it has no words"]


def counts() -> str:
    """Returns a table: the docstrings of each package, and those that break a rule."""
    totals: Counter[str] = Counter()
    faulty: Counter[str] = Counter()
    for path in FILES:
        folder = relative(path.parent)
        totals[folder] += len(docstrings(path))
        faulty[folder] += sum(bool(broken(text)) for _, text in docstrings(path))
    lines = [f"{folder:<48} {total:>10} {faulty[folder]:>8}" for folder, total in totals.items() if total]
    total = f"{'':<48} {totals.total():>10} {faulty.total():>8}"
    return "\n".join([f"{'folder':<48} {'docstrings':>10} {'broken':>8}", *lines, total])


def test_docstrings_are_found() -> None:
    table = counts()
    print(table)
    assert all(folder in table for folder in ("mixerzoo/registry", "mixerzoo/kernels", "mixerzoo/mixers", "docs"))


if __name__ == "__main__":
    print(counts())
