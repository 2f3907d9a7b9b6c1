"""Reads PTX as Triton's compiler writes it: one kernel a module, one instruction a line, labels, predicates.

Source: NVIDIA, PTX ISA 9, section 4 (syntax).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """Holds the parts of one instruction.

    `@!%p1 ld.global.v2.b32 {%r1, %r2}, [%rd1+8];` has the name ld, the modifiers (ld, global, v2, b32), the type b32
    and two operands.
    """

    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    text: str
    source: str

    @property
    def name(self) -> str:
        return self.modifiers[0]

    @property
    def type(self) -> str:
        return self.modifiers[-1]


@dataclass(frozen=True)
class Kernel:
    parameters: tuple[str, ...]
    code: tuple[Instruction, ...]
    labels: dict[str, int]


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Kernel:
    files = {number: name.rsplit("/", 1)[-1] for number, name in re.findall(r'\.file\s+(\d+)\s+"(.*?)"', text)}
    signature, body = text[text.index(".visible .entry") :].split("\n{\n", 1)
    body = re.sub(r"//.*", "", body.split("\n}", 1)[0])
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    source = "?"
    for statement in re.split(r"[;\n]", body):
        line = re.sub(r"^[\s{}]*(?=[^\s{}])|^[\s{}]*$", "", statement).rstrip()  # scopes of inline assembly
        if label := re.match(r"(\$?\w+):\s*", line):
            labels[label[1]] = len(code)
            line = line[label.end() :]
        if location := re.match(r"\.loc\s+(\d+)\s+(\d+)", line):
            source = f"{files.get(location[1], '?')}:{location[2]}"
        if not line or line.startswith("."):
            continue
        parts = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", line)
        if parts is None:
            raise NotImplementedError(f"not PTX as Triton writes it: {line}")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", parts[4])
        modifiers = tuple(parts[3].split("."))
        code.append(Instruction(modifiers, tuple(x.strip() for x in operands), parts[2], parts[1] == "!", line, source))
    return Kernel(tuple(re.findall(r"\w+_param_\d+", signature)), tuple(code), labels)


def names(operand: str) -> list[str]:
    """Returns the registers of a vector `{%r1, %r2}`, or of one register."""
    return [name.strip() for name in operand.strip("{}").split(",")]
