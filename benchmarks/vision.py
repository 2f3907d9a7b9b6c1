"""Times the zoo's image models, timm's ViT and its efficient models in plain torch, over image sizes.

    python benchmarks/vision.py --out DIR [--smoke] [--device cuda] [--sizes 224,448,896] [--scales tiny,small]

Passes are forward (inference mode) and training (forward and backward), with random weights and images; fp32 on a CPU,
bf16 autocast on a GPU. Contenders of one size and pass take turns, and medians of images a second are compared. Peak
memory is torch's allocator's. If a contender fails, its row holds the error. DIR/vision-<device>.json is written after
every group. At the end DIR/vision-<device>.png shows from which size on a mixer's linear cost wins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import mixerzoo.tasks.vision  # noqa: F401  registers the zoo's models
from mixerzoo import list_mixers, mixer_info
from mixerzoo.tasks.provenance import provenance
from mixerzoo.tasks.vision.throughput import forward_peak_bytes

FORWARD, TRAINING = "forward", "training"
PEERS = {"tiny": ("vit_tiny_patch16_224", "efficientvim_m1"), "small": ("vit_small_patch16_224", "mambaout_tiny")}
BUDGET = 12.0  # seconds that a contender may use in one group, beside its first call
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True)
    parser.add_argument("--smoke", action="store_true", help="two small images, one round: does it run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[224, 448, 896])
    parser.add_argument("--scales", type=lambda text: text.split(","), default=list(PEERS), help="tiny, small")
    parser.add_argument("--batch", type=int, default=None, help="images at once; 2 on a CPU, 64 on a GPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = [32, 64] if arguments.smoke else arguments.sizes
    batch = arguments.batch or (64 if device.type == "cuda" else 2)
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": arguments.smoke,
        "provenance": provenance(sys.argv),
        "timm": timm.__version__,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "claims": [],
        "rows": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"vision-{device.type}.json"
    for scale in arguments.scales:
        for size in sizes:
            for what in (FORWARD, TRAINING):
                for row in compete(names(scale), size, batch, what, device, 1 if arguments.smoke else ROUNDS):
                    record["rows"].append({"scale": scale, "size": size, "pass": what} | row)
                    print(record["rows"][-1], flush=True)
                save(file, record)
    record["claims"] = [] if arguments.smoke else claims(record["rows"])
    save(file, record)
    draw(record, file.with_suffix(".png"))


def names(scale: str) -> list[str]:
    return [f"zoo_{mixer}_{scale}_patch16_224" for mixer in list_mixers()] + list(PEERS[scale])


def compete(
    models: list[str], size: int, batch: int, what: str, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Returns a row for every model. They take turns; a model that has used its budget stops."""
    images = torch.randn(batch, 3, size, size, device=device)
    runs: dict[str, Callable[[], Any]] = {}
    rows = {name: {"model": name, "seconds": [], "error": None} for name in models}
    for name in models:
        try:
            model = build(name, size, device)
            run = partial(forward if what == FORWARD else training, model, images)
            run()
            if what == FORWARD:
                rows[name]["peak_bytes"] = forward_peak_bytes(model, images)
            rows[name]["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            runs[name] = run
        except Exception as error:
            rows[name]["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    for _ in range(rounds):
        for name, run in runs.items():
            if sum(rows[name]["seconds"]) < BUDGET:
                rows[name]["seconds"].append(timed(run, device))
    for name in runs:
        rows[name]["images_per_second"] = batch / statistics.median(rows[name]["seconds"])
    return list(rows.values())


def build(name: str, size: int, device: torch.device) -> nn.Module:
    """Builds the model for images of this size; timm's convolutional ones take any."""
    takes_size = name.startswith(("zoo_", "vit_"))
    model = timm.create_model(name, **({"img_size": size} if takes_size else {}))
    return model.to(device)


def forward(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
        model.eval()(images)


def training(model: nn.Module, images: Tensor) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
        loss = model.train()(images).float().logsumexp(-1).mean()
    loss.backward()
    model.zero_grad()


def timed(run: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks that linear cost wins: at the largest size, mixers with a state of constant size pass timm's ViT."""
    largest = max(row["size"] for row in rows)
    speed = {
        row["model"]: row.get("images_per_second") for row in rows if (row["size"], row["pass"]) == (largest, FORWARD)
    }
    found = []
    for scale, (vit, _) in PEERS.items():
        for mixer in list_mixers():
            ours, theirs = speed.get(f"zoo_{mixer}_{scale}_patch16_224"), speed.get(vit)
            if "constant_state" in mixer_info(mixer).capabilities and ours and theirs:
                claim = f"{mixer}_{scale}, forward, {largest} px: images/s / {vit}'s"
                found.append({"claim": claim, "measured": ours / theirs, "bound": "> 1", "holds": ours > theirs})
    return found


def save(file: Path, record: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, file)


def draw(record: dict[str, Any], file: Path) -> None:
    """Draws, for every scale and pass, images a second over the image's side, relative to timm's ViT."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    scales = list(dict.fromkeys(row["scale"] for row in record["rows"]))
    figure, axes = plt.subplots(len(scales), 2, figsize=(9, 3.4 * len(scales)), squeeze=False, sharex=True)
    for line, scale in zip(axes, scales, strict=True):
        for axis, what in zip(line, (FORWARD, TRAINING), strict=True):
            rows = [row for row in record["rows"] if row["scale"] == scale and row["pass"] == what]
            speed = {(row["model"], row["size"]): row.get("images_per_second") for row in rows}
            vit = PEERS[scale][0]
            for model in dict.fromkeys(row["model"] for row in rows):
                points = [
                    (size, value / speed[vit, size])
                    for (name, size), value in speed.items()
                    if name == model and value and speed.get((vit, size))
                ]
                ours = model.startswith("zoo_")
                label = model.removeprefix("zoo_").removesuffix("_patch16_224")
                axis.plot(*zip(*points, strict=True), marker="o", linestyle="-" if ours else "--", label=label)
            axis.set(title=f"{scale}, {what}", xscale="log", yscale="log", xlabel="side of the image, pixels")
            sizes = sorted({row["size"] for row in rows})
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.yaxis.set_major_locator(LogLocator(base=2))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        line[0].set_ylabel("images/s, relative to timm's ViT")
        line[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
