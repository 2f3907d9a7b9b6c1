"""Measures prefill and decode tokens a second, and memory, over context length, for every mixer as a language model.

    python benchmarks/serving.py [--out FILE] [--smoke] [--device cuda] [--contexts 1024,4096] [--mixers hgrn2,gla]

It times real serving: `MixerForCausalLM` takes a prompt into its cache, whole or in pieces, then makes one token after
the other from it, greedily. Random weights, one sequence; fp32 on a CPU, bf16 on a GPU. Every mixer has a process of
its own. There, contexts take turns at decoding, so that a change in the machine's load meets all of them; medians
count. If a mixer fails, its rows hold the error. FILE, and a plot beside it, are written after every mixer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mixerzoo import list_mixers, mixer_info
from mixerzoo.tasks.files import to_json, write_atomically
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM
from mixerzoo.tasks.lm.transformers_model.cache import CACHE_NAME
from mixerzoo.tasks.provenance import provenance

SETTINGS = {"hgrn2": {"expand": 64}}  # heads of width 64, as many as the others have
NOISE = 1.25  # medians of the same work on a quiet machine differ by less


@dataclass(frozen=True)
class Sizes:
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536)
    width: int = 256
    depth: int = 4
    heads: int = 4
    vocabulary: int = 4096
    piece: int | None = None  # tokens of a prompt taken in at once; None: all
    repeats: int = 3  # of a prefill
    budget: float = 8.0  # seconds: a prefill that has used them isn't repeated
    turns: int = 8  # of decoding, so many tokens each
    tokens: int = 8


SMOKE = Sizes(contexts=(32, 64), width=64, depth=1, heads=1, vocabulary=64, repeats=2, turns=2, tokens=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON, and a plot beside it")
    parser.add_argument("--smoke", action="store_true", help="tiny, seconds: does it run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--contexts", type=lambda text: tuple(map(int, text.split(","))), help="numbers of tokens")
    parser.add_argument("--mixers", type=lambda text: text.split(","), default=list_mixers())
    parser.add_argument("--piece", type=int, help="tokens of a prompt taken in at once; by default all")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else Sizes()
    sizes = replace(sizes, contexts=arguments.contexts or sizes.contexts, piece=arguments.piece)
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "sizes": asdict(sizes),
        "claims": [],
        "rows": [],
    }
    for mixer in arguments.mixers:
        print(f"\r\033[K{mixer}", end="", file=sys.stderr, flush=True)
        record["rows"] += rows(mixer, sizes, arguments.device)
        if not arguments.smoke:
            record["claims"] = claims(record["rows"], sizes)
        if arguments.out:
            save(record, arguments.out)
    print("\r\033[K", end="", file=sys.stderr)
    print(report(record))


def rows(mixer: str, sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Returns a row for every context, measured in a process of its own; only its error if it failed or was killed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            found = process.submit(serve, mixer, sizes, device).result()
            error = None
        except Exception as failure:
            found = [{"context": context} for context in sizes.contexts]
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"[:300]
    return [{"mixer": mixer, "error": error} | row for row in found]


@torch.inference_mode()
def serve(mixer: str, sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Returns a mixer's rows.

    A prompt is taken in as often as the budget allows; its last cache is used for decoding.
    """
    torch.manual_seed(0)
    model: Any = make_model(mixer, sizes)
    model.to(device, torch.float32 if device == "cpu" else torch.bfloat16).eval()
    held = peak_memory(device)  # weights, and what belongs to the process; then the caches of shorter contexts
    decode(model, *prefill(model, torch.zeros(1, 64, dtype=torch.int64, device=device), None), 2, device)  # warm-up
    found, running = [], {}
    for context in sorted(sizes.contexts):
        ids = torch.randint(sizes.vocabulary, (1, context), device=device)
        seconds: list[float] = []
        peak = None
        while len(seconds) < sizes.repeats and sum(seconds) < sizes.budget:
            (token, cache), took = timed(partial(prefill, model, ids, sizes.piece), device)
            seconds.append(took)
            peak = peak_memory(device) if peak is None else peak  # later ones have the cache before them to hold
        found.append(
            {
                "context": context,
                "parameters": model.num_parameters(),
                "cache_bytes": cache_bytes(cache),
                "peak_bytes": None if peak is None or held is None else peak - held,
                "prefill_tokens_per_second": context / statistics.median(seconds),
                "prefill_seconds": seconds,
                "decode_seconds": [],
            }
        )
        running[context] = token, cache
        held = None if held is None else held + cache_bytes(cache)
    for _ in range(sizes.turns):
        for row in found:
            token, cache = running[row["context"]]
            token, seconds = decode(model, token, cache, sizes.tokens, device)
            running[row["context"]] = token, cache
            row["decode_seconds"] += seconds
    return [row | {"decode_tokens_per_second": 1 / statistics.median(row["decode_seconds"])} for row in found]


def make_model(mixer: str, sizes: Sizes) -> MixerForCausalLM:
    config = MixerConfig(
        mixer={"name": mixer, **SETTINGS.get(mixer, {})},
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        tie_word_embeddings=True,
    )
    return MixerForCausalLM(config)


def prefill(model: MixerForCausalLM, ids: Tensor, piece: int | None) -> tuple[Tensor, Any]:
    """Takes in a prompt [1,T]. Returns the most likely next token [1,1], and the cache to continue from."""
    cache = None
    for part in ids.split(piece or ids.shape[1], dim=1):
        out = model(input_ids=part, cache=cache, use_cache=True, logits_to_keep=1)
        cache = getattr(out, CACHE_NAME)
    return out.logits.argmax(-1), cache


def decode(model: MixerForCausalLM, token: Tensor, cache: Any, count: int, device: str) -> tuple[Tensor, list[float]]:
    """Returns the token after the next `count` greedy ones, and the seconds of each. The cache advances."""

    def step() -> Tensor:
        return model(input_ids=token, cache=cache, use_cache=True).logits[:, -1:].argmax(-1)

    seconds = []
    for _ in range(count):
        token, took = timed(step, device)
        seconds.append(took)
    return token, seconds


def timed(run: Callable[[], Any], device: str) -> tuple[Any, float]:
    started = perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, perf_counter() - started


def cache_bytes(cache: Any) -> int:
    """Returns the bytes of all layers' states, without their positions, 8 bytes a layer."""
    tensors = (tensor for layer in cache.layers for tensor in tree_leaves(layer.state))
    return sum(tensor.nbytes for tensor in tensors if tensor.is_floating_point() or tensor.is_complex())


def peak_memory(device: str) -> int | None:
    """Returns the peak memory of this process, or of torch on its GPU; None without Linux' /proc."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def claims(rows: list[dict[str, Any]], sizes: Sizes) -> list[dict[str, Any]]:
    """Checks that a state of constant size neither grows nor slows down, and that keys and values grow with context."""
    shortest, longest = min(sizes.contexts), max(sizes.contexts)
    found: dict[tuple[str, int], dict[str, Any]] = {
        (row["mixer"], row["context"]): row for row in rows if row["error"] is None
    }
    result = []
    for mixer in dict.fromkeys(row["mixer"] for row in rows):
        short, long = found.get((mixer, shortest)), found.get((mixer, longest))
        if short is None or long is None:
            continue
        constant = "constant_state" in mixer_info(mixer).capabilities
        ends = f"{longest:,} / {shortest:,} tokens"
        growth, bound = long["cache_bytes"] / short["cache_bytes"], 1.0 if constant else longest / shortest
        result.append(
            {"claim": f"{mixer}: cache, {ends}", "measured": growth, "bound": f"= {bound:g}", "holds": growth == bound}
        )
        if constant:
            slower = short["decode_tokens_per_second"] / long["decode_tokens_per_second"]
            claim = f"{mixer}: time of a token, {ends}"
            bound_text = f"<= {NOISE:g}"
            result.append({"claim": claim, "measured": slower, "bound": bound_text, "holds": slower <= NOISE})
    return result


def report(record: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    machine = record["provenance"]
    lines = ["| mixer | context | prefill tokens/s | decode tokens/s | cache | peak |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in record["rows"]:
        if row["error"] is not None:
            lines.append(f"| {row['mixer']} | {row['context']:,} | {row['error']} | | | |")
            continue
        speeds = (f"{row[f'{what}_tokens_per_second']:,.0f}" for what in ("prefill", "decode"))
        sizes = ("" if size is None else f"{size / 2**20:,.2f} MiB" for size in (row["cache_bytes"], row["peak_bytes"]))
        lines.append(f"| {row['mixer']} | {row['context']:,} | {' | '.join((*speeds, *sizes))} |")
    lines += ["", "| claim | measured | bound | holds |", "| --- | ---: | --- | --- |"]
    lines += [
        f"| {claim['claim']} | {claim['measured']:.2f} | {claim['bound']} | {'yes' if claim['holds'] else 'NO'} |"
        for claim in record["claims"]
    ]
    where = machine["cpu"] if record["device"] == "cpu" else machine["device"]
    return "\n".join(
        [f"{where}, {record['threads']} threads, torch {machine['torch']}, {record['date'][:10]}\n", *lines]
    )


def save(record: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(record) + "\n")
    draw(record, file.with_suffix(".png"))


def draw(record: dict[str, Any], file: Path) -> None:
    """Draws three panels over the context: prefill, decode, cache."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = (
        ("prefill_tokens_per_second", "prefill, tokens/s"),
        ("decode_tokens_per_second", "decode, tokens/s"),
        ("cache_bytes", "cache of one sequence"),
    )
    rows = [row for row in record["rows"] if row["error"] is None]
    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    for axes, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for mixer, marker in zip(mixers, cycle("osD^vPX"), strict=False):
            points = [(row["context"], row[key]) for row in rows if row["mixer"] == mixer]
            axes.plot(*zip(*points, strict=True), marker=marker, label=mixer)
        axes.set(xscale="log", yscale="log", xlabel="context, tokens", title=label)
        axes.set_xticks(record["sizes"]["contexts"], [f"{context:,}" for context in record["sizes"]["contexts"]])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if key == "cache_bytes" else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(EngFormatter("B" if key == "cache_bytes" else "", sep=" "))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
