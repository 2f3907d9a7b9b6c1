"""The goals name the measured sizes and the promises. They are also read without a GPU, to list the promises."""

from __future__ import annotations

from typing import Any

Shape = tuple[int, int, int, int]  # B, T, H, K = V

LM: tuple[Shape, ...] = ((8, 2048, 16, 128), (1, 8192, 96, 128), (4, 4096, 64, 128), (2, 16384, 16, 128))
SMALL, VISION, LRA = (8, 1024, 8, 64), (128, 196, 6, 64), (32, 4096, 4, 32)
SHAPES: tuple[Shape, ...] = (*LM, SMALL, VISION, LRA)
DECODE: tuple[Shape, ...] = ((1, 1, 16, 128), (64, 1, 16, 128))

OURS, PEER, PEER_COMPILED, FLASH = (
    "mixerzoo", "flash-linear-attention", "flash-linear-attention, compiled", "FlashAttention",
)  # fmt: skip
OURS_CAPTURED, COPY_CAPTURED = "mixerzoo, in a CUDA graph", "a copy of the state, in a CUDA graph"
FORWARD, BOTH = "forward", "forward + backward"


def claims(rows: list[dict[str, Any]], copy_bandwidth: float | None) -> list[dict[str, Any]]:
    """Returns every promise as `measured` against `bound`; `measured` is None if something is missing."""
    found = {(row["what"], tuple(row["shape"]), row["who"], row["pass"]): row for row in rows}

    def ratio(what: str, shape: Shape, who: str, value: str = "seconds") -> float | None:
        return quotient(what, shape, BOTH, who, OURS, value)

    def quotient(what: str, shape: Shape, of: str, above: str, below: str, value: str = "seconds") -> float | None:
        numbers = [found.get((what, shape, name, of), {}).get(value) for name in (above, below)]
        return numbers[0] / numbers[1] if all(numbers) else None

    def over_floor(what: str, shape: Shape) -> float | None:
        row = found.get((what, shape, OURS, FORWARD), {})
        known = row.get("seconds") and row.get("bytes") and copy_bandwidth
        return row["seconds"] * copy_bandwidth / row["bytes"] if known else None

    promised: list[tuple[str, Shape, float | None, str, float]] = []
    for shape in LM:
        promised.append((f"mixer, both passes: time of {PEER} / ours", shape, ratio("mixer", shape, PEER), ">=", 3.0))
        compiled = ratio("mixer", shape, PEER_COMPILED)
        promised.append((f"mixer, both passes: time of {PEER_COMPILED} / ours", shape, compiled, ">=", 2.0))
        memory = ratio("mixer", shape, PEER, "peak_bytes")
        promised.append((f"mixer, both passes: peak memory of {PEER} / ours", shape, memory, ">=", 2.0))
        promised.append(("hgrn2, forward: time / memory floor", shape, over_floor("hgrn2", shape), "<=", 2.0))
    for shape in (SMALL, VISION, LRA):
        promised.append((f"mixer, both passes: time of {PEER} / ours", shape, ratio("mixer", shape, PEER), ">=", 4.0))
    for shape in (*LM, SMALL, LRA):  # T >= 1024
        promised.append((f"hgrn2, both passes: time of {FLASH} / ours", shape, ratio("hgrn2", shape, FLASH), ">=", 1.0))
    for shape in DECODE:
        floor = over_floor("hgrn2 step", shape)
        promised.append(("hgrn2, one token: time / memory floor", shape, floor, "<=", 1.3))
        copied = quotient("hgrn2 step", shape, FORWARD, OURS_CAPTURED, COPY_CAPTURED)
        promised.append(("hgrn2, one token, in CUDA graphs: time / a copy of the state", shape, copied, "<=", 1.3))
    return [
        {"claim": what, "shape": shape, "measured": value, "bound": f"{sign} {bound:g}",
         "holds": None if value is None else value >= bound if sign == ">=" else value <= bound}
        for what, shape, value, sign, bound in promised
    ]  # fmt: skip
