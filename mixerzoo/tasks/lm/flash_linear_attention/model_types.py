"""Translates flash-linear-attention's models into the zoo's words: which configurations compute the same.

    their model_type    our mixer, in their convention
    hgrn                hgrn1: real state, RMSNorm, no biases
    hgrn2               hgrn2: readout scaled by expand^-0.5, RMSNorm
    gla                 gla
    retnet              retnet: RMSNorm, rotary positions that pair channels (j, j+K/2)
    transformer         attention

`attn` in their configuration makes some layers attention; their lower bounds are our `skip_first`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mixerzoo.registry.catalog import build_mixer
from mixerzoo.tasks.lm.configuration import MixerConfig

COMMON: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "vocab_size": 32000,
    "hidden_ratio": 4,
    "intermediate_size": None,
    "hidden_act": "swish",
    "norm_eps": 1e-6,
    "elementwise_affine": True,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn": None,
    "attnres_block_size": None,
}
CONV = {"use_short_conv": False, "conv_size": 4}
ATTENTION = {"num_kv_heads": None, "qkv_bias": False, "qk_norm": False, "window_size": None, "rope_theta": 10000.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "hgrn": {**CONV, "expand_ratio": 1, "use_lower_bound": True},
    "hgrn2": {**CONV, "num_heads": None, "expand_ratio": 128, "use_lower_bound": True},
    "gla": {**CONV, "expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "num_kv_heads": None, "feature_map": None,
            "use_output_gate": True, "clamp_min": None},
    "retnet": {"hidden_ratio": 2, "expand_k": 1.0, "expand_v": 2.0, "num_heads": 8, "num_kv_heads": None,
               "feature_map": None, "use_output_gate": True},
    "transformer": {**ATTENTION, "num_heads": 32},
}  # fmt: skip
FAMILY = {"hgrn1": "hgrn", "hgrn2": "hgrn2", "gla": "gla", "retnet": "retnet"}
KEPT = ("hidden_size", "num_hidden_layers", "vocab_size", "norm_eps", "initializer_range", "max_position_embeddings",
        "tie_word_embeddings", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id")  # fmt: skip
HOW_THEY_RUN = (
    "attn_mode",
    "fuse_norm",
    "fuse_swiglu",
    "fuse_cross_entropy",
    "fuse_linear_cross_entropy",
    "use_l2warp",
)
DEFAULT_EPS = 1e-5  # of every mixer's own norm, and of theirs where they don't pass on `norm_eps`


def read_config(values: Mapping[str, Any]) -> MixerConfig:
    """Returns our configuration of the model that their config.json describes.

    Raises ValueError for a `model_type` or a setting that no mixer of the zoo has."""
    family = values.get("model_type")
    if family not in DEFAULTS:
        raise ValueError(f"model_type must be one of {', '.join(DEFAULTS)}, got {family!r}")
    c = {**COMMON, **DEFAULTS[family], **values}
    only: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("swish",),
        "attnres_block_size": (None,),
        "feature_map": (None,),
        "clamp_min": (None,),
    }
    if family == "hgrn":
        only["expand_ratio"] = (1, 1.0)
    if family == "retnet":
        only["num_kv_heads"] = (None, c["num_heads"])
    if "use_short_conv" in DEFAULTS[family] and c["use_short_conv"]:
        only["conv_size"] = (4,)
    for key, allowed in only.items():
        if key in c and c[key] not in allowed:
            raise ValueError(f"{family} with {key}={c[key]!r} isn't in the zoo; supported: {allowed[-1]!r}")
    mixers = [_native(family, c)] * c["num_hidden_layers"]
    for spec in [c["attn"]] if isinstance(c["attn"], Mapping) else c["attn"] or []:
        if not {"layers", "num_heads"} <= set(spec):
            raise ValueError(f"attn needs layers and num_heads, got {sorted(spec)}")
        for layer in spec["layers"]:
            if not 0 <= layer < len(mixers):
                raise ValueError(f"attn names layer {layer}, the model has {len(mixers)}")
            mixers[layer] = _attention({**ATTENTION, **spec})
    return MixerConfig(
        mixer=mixers if c["attn"] else mixers[0],
        intermediate_size=c["intermediate_size"] or _intermediate_size(c["hidden_size"], c["hidden_ratio"] or 4),
        lower_bounds="skip_first" if c.get("use_lower_bound") else None,
        dtype=c.get("dtype") or c.get("torch_dtype"),
        flash_linear_attention={key: c[key] for key in HOW_THEY_RUN if key in c},
        **{key: c[key] for key in KEPT},
    )


def write_config(config: MixerConfig) -> dict[str, Any]:
    """Returns their config.json of the model that ours describes: `read_config` gives back one that computes the same.

    Raises ValueError, with the settings in question, where flash-linear-attention has no such model."""
    mixers = [_resolved(mixer) for mixer in config.mixers]
    native = [mixer for mixer in mixers if mixer["name"] != "attention"]
    if any(mixer != native[0] for mixer in native) or (native and native[0]["name"] not in FAMILY):
        names = sorted({str(mixer["name"]) for mixer in native})
        raise ValueError(f"flash-linear-attention mixes attention with one of {', '.join(FAMILY)}, got {names}")
    family = FAMILY[native[0]["name"]] if native else "transformer"
    first = mixers.index(native[0]) if native else 0
    c: dict[str, Any] = {
        "model_type": family,
        "architectures": [f"{_CLASSES[family]}ForCausalLM"],
        **{key: getattr(config, key) for key in KEPT},
        "intermediate_size": glu_of(config)["hidden"],
        "hidden_act": "swish",
        "dtype": str(config.dtype).removeprefix("torch.") if config.dtype is not None else None,
        **_their_keywords(mixers[first], config.mixers[first]),
        **getattr(config, "flash_linear_attention", {}),
    }
    if family in ("hgrn", "hgrn2"):
        c["use_lower_bound"] = config.lower_bounds is not None
    if native and len(native) < len(mixers):
        c["attn"] = _attention_specs(mixers)
    ours, theirs = _computes(config), _computes(read_config(c))
    wrong = [f"{key}={ours[key]!r} (only {theirs[key]!r})" for key in theirs if ours.get(key) != theirs[key]]
    if wrong:
        raise ValueError(f"flash-linear-attention has no {family} with {'; '.join(wrong)}")
    return c


_CLASSES = {"hgrn": "HGRN", "hgrn2": "HGRN2", "gla": "GLA", "retnet": "RetNet", "transformer": "Transformer"}


def _native(family: str, c: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mixer of the layers that `attn` doesn't name."""
    norm = {"norm": "rms" if c["elementwise_affine"] else "srms"}
    conv = {"short_conv": 4 if c.get("use_short_conv") else 0}
    eps = {"norm_eps": c["norm_eps"]} if c["norm_eps"] != DEFAULT_EPS else {}
    widths = {key: c[key] for key in ("num_heads", "expand_k", "expand_v") if key in c}
    match family:
        case "hgrn":
            return {"name": "hgrn1", "complex": False, "bias": False, **norm, **eps, **conv}
        case "hgrn2":
            if not (c["expand_ratio"] or c["num_heads"]):
                raise ValueError("hgrn2 needs expand_ratio or num_heads, got neither")
            expand = c["expand_ratio"] or c["hidden_size"] // c["num_heads"]
            return {"name": "hgrn2", "expand": expand, "scale": expand**-0.5, **norm, **conv}
        case "gla":
            gate = {"num_kv_heads": c["num_kv_heads"], "output_gate": c["use_output_gate"]}
            return {"name": "gla", **widths, **gate, **norm, **eps, **conv}
        case "retnet":
            return {"name": "retnet", **widths, "rotary": "rope", "output_gate": c["use_output_gate"], **norm, **eps}
    return _attention(c)


def _attention(c: Mapping[str, Any]) -> dict[str, Any]:
    heads = {"num_heads": c["num_heads"], "num_kv_heads": c["num_kv_heads"]}
    rare = {"qkv_bias": c["qkv_bias"]} if c["qkv_bias"] else {}
    if c["rope_theta"] != ATTENTION["rope_theta"]:
        rare["rotary_base"] = c["rope_theta"]
    return {"name": "attention", **heads, "qk_norm": c["qk_norm"], "window": c["window_size"], **rare}


def _their_keywords(mixer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns their names for the keywords of one of our mixers, and those that its configuration gives."""
    their = {
        "elementwise_affine": mixer.get("norm") != "srms",
        "use_short_conv": mixer.get("short_conv") == 4,
        "use_output_gate": mixer.get("output_gate"),
        "expand_ratio": mixer.get("expand", 1),
        "window_size": mixer.get("window"),
        "rope_theta": mixer.get("rotary_base", ATTENTION["rope_theta"]),
        "qkv_bias": mixer.get("qkv_bias", False),
        **mixer,
        "num_kv_heads": given.get("num_kv_heads"),
    }
    family = FAMILY.get(mixer["name"], "transformer")
    return {key: their[key] for key in (*DEFAULTS[family], "elementwise_affine") if key in their}


def _attention_specs(mixers: Sequence[Mapping[str, Any]]) -> Any:
    """Returns their `attn`: which layers are attention, and of which kind."""
    specs: list[dict[str, Any]] = []
    for layer, mixer in enumerate(mixers):
        if mixer["name"] == "attention":
            theirs = _their_keywords(mixer, mixer)
            kind = {key: theirs[key] for key in ("num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")}
            same = next((spec for spec in specs if spec == {**kind, "layers": spec["layers"]}), None)
            if same is None:
                specs.append({**kind, "layers": [layer]})
            else:
                same["layers"].append(layer)
    return specs if len(specs) > 1 else specs[0]


def _resolved(mixer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mixer's configuration with every keyword, heads in numbers."""
    with torch.device("meta"):
        module = build_mixer(mixer)
    heads = {key: getattr(module, key) for key in ("num_heads", "num_kv_heads") if hasattr(module, key)}
    return {**module.config, **heads}


def glu_of(config: MixerConfig) -> dict[str, Any]:
    given = {"activation": "none at all"} if config.glu is None else config.glu
    glu: dict[str, Any] = {"activation": "silu", "bias": False, **given}
    return {"hidden": int(glu.get("multiplier", 8 / 3) * config.hidden_size), **glu}


def _computes(config: MixerConfig) -> dict[str, Any]:
    """Returns everything in a configuration on which its outputs depend, in a form that can be compared."""
    mixers = {f"mixers[{i}]": _resolved(mixer) for i, mixer in enumerate(config.mixers)}
    settings = {f"{layer}.{key}": value for layer, mixer in mixers.items() for key, value in mixer.items()}
    glu = {f"channel_mixer.{key}": glu_of(config)[key] for key in ("hidden", "activation", "bias")}
    bounds = any(mixer["name"] in ("hgrn1", "hgrn2") for mixer in mixers.values())
    return {
        **settings,
        **glu,
        **({"lower_bounds": config.lower_bounds} if bounds else {}),
        "norm": config.norm,
        "norm_eps": config.norm_eps,
        "hidden_size": config.hidden_size,
    }


def _intermediate_size(hidden_size: int, ratio: float) -> int:
    """Returns theirs: 2/3 of ratio * D, rounded up to 256s."""
    return 256 * -(-int(hidden_size * ratio * 2 / 3) // 256)
