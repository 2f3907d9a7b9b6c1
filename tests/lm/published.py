"""Makes flash-linear-attention's checkpoints, and computes its models' outputs in fp64, from the equations.

`layouts.json` holds, for a few tiny models, the config.json and the names and shapes of the tensors that its release
0.6.0 wrote; `python -m tests.lm.published` writes it anew. The computation below knows nothing of mixerzoo: it is a
loop over tokens for every layer, on tensors under their names.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

LAYOUTS = Path(__file__).with_name("layouts.json")
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 23, "intermediate_size": 24}
ATTENTION = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 3}
MODELS: dict[str, dict[str, Any]] = {
    "hgrn": {"model_type": "hgrn"},
    "hgrn-short-conv": {"model_type": "hgrn", "use_short_conv": True, "tie_word_embeddings": True},
    "hgrn2": {"model_type": "hgrn2", "expand_ratio": 4},
    "hgrn2-hybrid": {"model_type": "hgrn2", "expand_ratio": 8, "use_short_conv": True, "attn": ATTENTION},
    "hgrn2-unbounded": {"model_type": "hgrn2", "expand_ratio": None, "num_heads": 2, "use_lower_bound": False},
    "gla": {"model_type": "gla", "num_heads": 2},
    "gla-grouped": {"model_type": "gla", "num_heads": 4, "num_kv_heads": 2, "use_short_conv": True, "expand_v": 2.0},
    "gla-unfused": {"model_type": "gla", "num_heads": 2, "fuse_norm": False},
    "gla-ungated": {"model_type": "gla", "num_heads": 2, "use_output_gate": False, "elementwise_affine": False},
    "retnet": {"model_type": "retnet", "num_heads": 2},
    "retnet-hybrid": {"model_type": "retnet", "num_heads": 2, "attn": [ATTENTION, {"layers": [2], "num_heads": 2}]},
    "transformer": {"model_type": "transformer", "num_heads": 4},
    "transformer-biased": {"model_type": "transformer", "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True,
                           "qk_norm": True, "window_size": 3, "rope_theta": 500.0},
}  # fmt: skip


def written_by_fla(settings: Mapping[str, Any], directory: Path) -> Any:
    """Builds and saves a model with flash-linear-attention. Its kernels can't run without a GPU, its modules can."""
    import fla.layers.attn
    import fla.models
    from transformers import AutoConfig, AutoModelForCausalLM

    if fla.layers.attn.flash_attn_func is None:
        fla.layers.attn.flash_attn_func = _never  # it refuses to build attention without FlashAttention
    settings = dict(settings)
    config = AutoConfig.for_model(settings.pop("model_type"), **SIZES | settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def synthesised(label: str, directory: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Builds the same from `layouts.json`, without flash-linear-attention. Returns the tensors, named as stored."""
    layout = json.loads(LAYOUTS.read_text())[label]
    tensors = {}
    for name, shape in layout["tensors"].items():
        start = 1.0 if "norm" in name else 0.0
        tensors[name] = (start + 0.3 * torch.randn(shape)).to(dtype)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(layout["config"]))
    (directory / "generation_config.json").write_text("{}")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


@torch.no_grad()
def logits(config: Mapping[str, Any], tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Computes [B,T,vocabulary] in fp64, from their config.json and tensors."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    eps = config["norm_eps"]
    x = w["model.embeddings.weight"][ids]
    bounds = None
    if config.get("use_lower_bound"):
        shares = w["model.lower_bounds"].softmax(0)
        bounds = shares.cumsum(0) - shares[0]
    specs = config.get("attn") or []
    attention = {layer: spec for spec in ([specs] if isinstance(specs, dict) else specs) for layer in spec["layers"]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        own = {name.removeprefix(at + "attn."): tensor for name, tensor in w.items() if name.startswith(at + "attn.")}
        h = rms_norm(x, w[at + "attn_norm.weight"], eps)
        bound = bounds[layer] if bounds is not None else torch.zeros(())
        if layer in attention or config["model_type"] == "transformer":
            x = x + softmax_attention(h, own, {**config, **attention.get(layer, {})})
        else:
            x = x + MIXERS[config["model_type"]](h, own, config, bound)
        h = rms_norm(x, w[at + "mlp_norm.weight"], eps)
        gate, up = (h @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
    x = rms_norm(x, w["model.norm.weight"], eps)
    return x @ w["model.embeddings.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


def hgrn(x: Tensor, w: Mapping[str, Tensor], config: Mapping[str, Any], bound: Tensor) -> Tensor:
    """`h_t = f_t h_{t-1} + (1-f_t) SiLU(i_t), y = W_o (RMSNorm(h) SiLU(g)), f = bound + (1-bound) sigmoid(W_f x)`."""
    i, f = (convolved(x @ w[f"{n}_proj.weight"].T, w.get(f"{n}_conv1d.weight")) for n in ("i", "f"))
    f = bound + (1 - bound) * f.sigmoid()
    h, ys = torch.zeros_like(f[:, 0]), []
    for t in range(x.shape[1]):
        h = f[:, t] * h + (1 - f[:, t]) * silu(i[:, t])
        ys.append(h)
    y = rms_norm(torch.stack(ys, 1), w.get("g_norm.weight"), config["norm_eps"])
    return (y * silu(x @ w["g_proj.weight"].T)) @ w["o_proj.weight"].T


def hgrn2(x: Tensor, w: Mapping[str, Tensor], config: Mapping[str, Any], bound: Tensor) -> Tensor:
    """Computes GLA with k = 1 - f, its output normed over the whole width, always with 1e-5."""
    q, f, i = (convolved(x @ w[f"{n}_proj.weight"].T, w.get(f"{n}_conv1d.weight")) for n in ("q", "f", "i"))
    f = bound + (1 - bound) * f.sigmoid()
    K = config["expand_ratio"] or config["hidden_size"] // config["num_heads"]
    y = linear_attention(*(part.unflatten(-1, (-1, K)) for part in (silu(q), 1 - f, i, f)))
    return rms_norm(y.flatten(-2), w.get("g_norm.weight"), 1e-5) @ w["o_proj.weight"].T


def gla(x: Tensor, w: Mapping[str, Tensor], config: Mapping[str, Any], bound: Tensor) -> Tensor:
    H, G = config["num_heads"], config["num_kv_heads"] or config["num_heads"]
    q, k, v = (x @ w[f"{n}_proj.weight"].T for n in ("q", "k", "v"))
    if config["use_short_conv"]:
        q, k, v = (
            silu(convolved(part, w[f"{n}_conv1d.weight"])) for n, part in zip(("q", "k", "v"), (q, k, v), strict=True)
        )
    gate = x @ w["gk_proj.0.weight"].T @ w["gk_proj.1.weight"].T + w["gk_proj.1.bias"]
    f = gate.sigmoid() ** (1 / 16)
    q = q.unflatten(-1, (H, -1))
    k, v, f = (part.unflatten(-1, (G, -1))[:, :, [h * G // H for h in range(H)]] for part in (k, v, f))
    return _headwise_readout(linear_attention(q, k, v, f), x, w, config)


def retnet(x: Tensor, w: Mapping[str, Tensor], config: Mapping[str, Any], bound: Tensor) -> Tensor:
    H = config["num_heads"]
    q, k, v = ((x @ w[f"{n}_proj.weight"].T).unflatten(-1, (H, -1)) for n in ("q", "k", "v"))
    q, k = turned(q, 10000.0), turned(k, 10000.0)
    f = (1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64)))[:, None].expand_as(k)
    return _headwise_readout(linear_attention(q, k, v, f), x, w, config)


def softmax_attention(x: Tensor, w: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    H, G, T = config["num_heads"], config["num_kv_heads"] or config["num_heads"], x.shape[1]
    q, k, v = (F.linear(x, w[f"{n}_proj.weight"], w.get(f"{n}_proj.bias")) for n in ("q", "k", "v"))
    q, k, v = q.unflatten(-1, (H, -1)), k.unflatten(-1, (G, -1)), v.unflatten(-1, (G, -1))
    if "q_norm.weight" in w:
        q, k = rms_norm(q, w["q_norm.weight"], 1e-5), rms_norm(k, w["k_norm.weight"], 1e-5)
    q, k = turned(q, config["rope_theta"]), turned(k, config["rope_theta"])
    k, v = (part[:, :, [h * G // H for h in range(H)]] for part in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    distance = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (distance < 0) | (distance >= (config["window_size"] or T))
    y = torch.einsum("bhts,bshv->bthv", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
    return y.flatten(-2) @ w["o_proj.weight"].T


def linear_attention(q: Tensor, k: Tensor, v: Tensor, f: Tensor) -> Tensor:
    """`S_t = Diag(f_t) S_{t-1} + k_t v_t^T`, `y_t = K^-0.5 q_t S_t`."""
    S, ys = 0, []
    for t in range(q.shape[1]):
        S = f[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None]
        ys.append((q[:, t, :, :, None] * S).sum(-2) * q.shape[-1] ** -0.5)
    return torch.stack(ys, 1)


def turned(x: Tensor, base: float) -> Tensor:
    """Turns channels j and j+K/2 by position * base^(-2j/K)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], -1)


def convolved(x: Tensor, weight: Tensor | None) -> Tensor:
    """Applies a causal, depthwise convolution; weight [channels,1,W]."""
    if weight is None:
        return x
    padded = F.pad(x, (0, 0, weight.shape[-1] - 1, 0))
    return F.conv1d(padded.transpose(1, 2), weight, groups=weight.shape[0]).transpose(1, 2)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (1 if weight is None else weight)


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


MIXERS = {"hgrn": hgrn, "hgrn2": hgrn2, "gla": gla, "retnet": retnet}


def _headwise_readout(y: Tensor, x: Tensor, w: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    weight = w.get("g_norm_swish_gate.weight", w.get("g_norm.weight"))
    y = rms_norm(y, weight, config["norm_eps"]).flatten(-2)
    if config["use_output_gate"]:
        y = y * silu(x @ w["g_proj.weight"].T)
    return y @ w["o_proj.weight"].T


def _never(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError("only builds")


def _main() -> None:
    from safetensors.torch import load_file

    found = {}
    for label, settings in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            written_by_fla(settings, Path(folder))
            config = json.loads((Path(folder) / "config.json").read_text())
            tensors = load_file(Path(folder) / "model.safetensors")
            found[label] = {"config": config, "tensors": {name: list(t.shape) for name, t in sorted(tensors.items())}}
    lines = (f"{json.dumps(label)}: {json.dumps(layout)}" for label, layout in found.items())
    LAYOUTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _main()
