"""Formulas of a spec, `2*T*params + 5*T*D*e`: one text that docs print, tables compute and a law holds to."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Mapping
from typing import Any

from torch import nn

from .norms import BatchNorm

OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
FUNCTIONS = {"min": min, "max": max}
WITHOUT_PRODUCTS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Embedding, BatchNorm)
ONE_PRODUCT_A_WEIGHT = (nn.Linear, nn.Conv1d)


def evaluate(formula: str, letters: Mapping[str, float]) -> int:
    """Computes a formula of numbers, letters, `+ - * / // **`, `min`, `max` and `a if letter else b`.

    Raises ValueError for anything else in it, a letter without a value included."""
    return round(_value(_parsed(formula), formula, letters))


@functools.lru_cache(maxsize=512)
def _parsed(formula: str) -> ast.expr:
    try:
        return ast.parse(formula, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"the formula {formula!r} can't be read: {error.msg}; remedy: write 2*T*D**2") from error


def _value(node: ast.expr, formula: str, letters: Mapping[str, float]) -> float:
    value = functools.partial(_value, formula=formula, letters=letters)
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in letters:
            raise ValueError(f"the formula {formula!r} has the letter {node.id!r}; known: {', '.join(sorted(letters))}")
        return letters[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.IfExp):
        return value(node.body) if value(node.test) else value(node.orelse)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        return FUNCTIONS[node.func.id](*map(value, node.args))
    raise ValueError(
        f"the formula {formula!r} may hold numbers, letters, + - * / // **, min, max and if, got {ast.unparse(node)!r}"
    )


def products_per_token(module: nn.Module) -> int:
    """Counts the multiply-adds that linear maps and windows inside a module make for one token; norms make none.

    A module of another kind that has weights says how many in an attribute `products_per_token`. Raises ValueError for
    one that doesn't."""
    return sum(_products(part) for part in module.modules() if part is not module)


def _products(module: nn.Module) -> int:
    own = getattr(module, "products_per_token", None)
    if own is not None:
        return own
    if isinstance(module, WITHOUT_PRODUCTS) or not any(True for _ in module.parameters(recurse=False)):
        return 0
    if isinstance(module, ONE_PRODUCT_A_WEIGHT):
        return module.weight.numel()
    raise ValueError(
        f"the FLOPs of a {type(module).__name__} inside a mixer aren't known; remedy: an attribute products_per_token "
        "on it, the multiply-adds it makes for one token"
    )
