"""The test suite has no other tolerances. Nothing loosens them: no environment variable, no device, no argument.

FP64 algebra must agree to 1e-9 of the largest entry: two correct evaluations of one formula differ by rounding alone.
Lower precision has a budget instead: an implementation may err twice as much as the reference run in that precision,
plus a few roundings of the result. Both errors are measured in fp64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}
SMALLEST_SCALE = 1e-3  # below this, the largest entry is noise and says nothing about precision
BUDGET = 2.0
ROUNDINGS = 4.0
STANDARD_ERRORS = 4.5  # for what is random: one comparison in 150,000 is further off by chance


def assert_close(actual: Any, expected: Any) -> None:
    """Asserts equal structure, shapes, dtypes and integers; values within RELATIVE of the largest expected entry."""
    for name, a, e in _paired(actual, expected):
        assert a.dtype == e.dtype, f"{name} is {a.dtype}, expected {e.dtype}"
        if not (e.is_floating_point() or e.is_complex()):
            assert torch.equal(a, e), f"{name} differs"
            continue
        error, scale = _largest(a - e), max(_largest(e), SMALLEST_SCALE)
        allowed = RELATIVE[e.real.dtype] * scale
        assert error <= allowed, f"{name} is off by {error:.2e}, allowed {allowed:.2e} (largest entry {scale:.2e})"


def assert_identical(actual: Any, expected: Any) -> None:
    """Asserts that results agree bit for bit."""
    for name, a, e in _paired(actual, expected):
        assert a.dtype == e.dtype and torch.equal(a, e), f"{name} differs"


def assert_within_budget(actual: Any, reference: Any, oracle: Any) -> None:
    """Asserts `err(actual) <= 2 (err(reference) + a few roundings)`, root mean square, against the fp64 oracle."""
    for (name, a, r), (_, _, o) in zip(_paired(actual, reference), _paired(actual, oracle), strict=True):
        assert a.dtype == r.dtype, f"{name} is {a.dtype}, expected {r.dtype}"
        rounding = torch.finfo(a.dtype).eps * _mean_square_root(o)
        error, budget = _mean_square_root(a - o), BUDGET * (_mean_square_root(r - o) + ROUNDINGS * rounding)
        assert error <= budget, f"{name} has the error {error:.2e}, budget {budget:.2e}"


def assert_statistic(
    name: str, found: float, expected: float, *, deviation: float, count: float, reference: int = 30_000
) -> None:
    """Asserts that a mean over `count` samples is the published one over `reference`, of known standard deviation."""
    allowed = STANDARD_ERRORS * deviation * (1 / count + 1 / reference) ** 0.5
    assert abs(found - expected) <= allowed, f"{name} is {found:.4g}, published {expected:.4g} +- {allowed:.2g}"


def assert_finite(values: Any) -> None:
    for name, value, _ in _paired(values, values):
        assert value.isfinite().all(), f"{name} has {int((~value.isfinite()).sum())} entries that are not finite"


def _paired(actual: Any, expected: Any) -> list[tuple[str, Tensor, Tensor]]:
    (named, structure), (others, other_structure) = tree_flatten_with_path(actual), tree_flatten_with_path(expected)
    assert structure == other_structure, f"{structure} is not {other_structure}"
    for (path, a), (_, e) in zip(named, others, strict=True):
        assert a.shape == e.shape, f"{keystr(path)} is {tuple(a.shape)}, expected {tuple(e.shape)}"
    return [(keystr(path) or "the result", a, e) for (path, a), (_, e) in zip(named, others, strict=True)]


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0


def _mean_square_root(x: Tensor) -> float:
    return float(x.detach().abs().double().square().mean().sqrt()) if x.numel() else 0.0
