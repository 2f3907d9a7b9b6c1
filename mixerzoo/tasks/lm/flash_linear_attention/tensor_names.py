"""Maps the tensors of flash-linear-attention's checkpoints to ours and back.

Most are the same under another name. Their short convolutions are apart; ours is one over all channels. Their RetNet
turns channels (j, j+K/2) and ours neighbours: the rows of W_q and W_k change places, which leaves every q k^T as it is.
Two old layouts are read as well: both halves of the GLU in `mlp.gate_proj`, and `g_norm` for the norm that was later
fused with the output gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixerzoo.tasks.lm.configuration import MixerConfig

from .model_types import glu_of


class Row(NamedTuple):
    """Maps one tensor of ours to those of theirs that it is made of, with their shapes."""

    ours: str
    theirs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    read: Callable[[Sequence[Tensor]], Tensor]
    write: Callable[[Tensor], Sequence[Tensor]]


def rows(config: MixerConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
    """Returns how the tensors of our model, whose shapes are given, correspond to theirs."""
    return [_row(key, config, shapes) for key in shapes]


def modernised(tensors: Mapping[str, Tensor], config: MixerConfig) -> dict[str, Tensor]:
    """Returns the tensors in today's layout: GLU halves apart, and the gated norm under its present name."""
    tensors = dict(tensors)
    for key in [key for key in tensors if key.endswith("mlp.gate_proj.weight")]:
        up = key.replace("gate_proj", "up_proj")
        if up not in tensors and tensors[key].shape[0] == 2 * glu_of(config)["hidden"]:
            tensors[key], tensors[up] = (half.contiguous() for half in tensors[key].chunk(2))
    for layer, mixer in enumerate(config.mixers):
        plain, gated = (f"model.layers.{layer}.attn.{name}.weight" for name in ("g_norm", "g_norm_swish_gate"))
        if _norm_name(mixer, config) == "g_norm_swish_gate" and plain in tensors:
            tensors[gated] = tensors.pop(plain)
    return tensors


_TOP = {"model.embed_tokens.weight": "model.embeddings.weight", "model.lower_bounds.logits": "model.lower_bounds"}
_BLOCK = {"mixer_norm": "attn_norm", "channel_norm": "mlp_norm", "channel_mixer": "mlp", "mixer": "attn"}
_MIXER = {
    "hgrn1": {"c_proj": "i_proj", "conv": "f_conv1d i_conv1d"},
    "hgrn2": {"conv": "q_conv1d f_conv1d i_conv1d"},
    "gla": {"f_proj": "gk_proj", "conv": "q_conv1d k_conv1d v_conv1d"},
    "retnet": {},
    "attention": {},
}
_CONVOLVED = {"hgrn1": ("f_proj", "c_proj"), "hgrn2": ("q_proj", "f_proj", "i_proj"),
              "gla": ("q_proj", "k_proj", "v_proj")}  # fmt: skip


def _row(key: str, config: MixerConfig, shapes: Mapping[str, tuple[int, ...]]) -> Row:
    found = re.match(r"(model\.layers\.(\d+)\.)(\w+)\.(?:([a-z_]+)\.)?(.+)$", key)
    if found is None:
        return Row(key, (_TOP.get(key, key),), (shapes[key],), _only, _alone)
    layer, number, part, module, rest = found.groups()
    if part != "mixer":
        return Row(
            key, (f"{layer}{_BLOCK[part]}.{module + '.' if module else ''}{rest}",), (shapes[key],), _only, _alone
        )
    mixer = config.mixers[int(number)]
    name = mixer["name"]
    if module == "conv":
        widths = [shapes[f"{layer}mixer.{proj}.weight"][0] for proj in _CONVOLVED[name]]
        names = tuple(f"{layer}attn.{conv}.weight" for conv in _MIXER[name]["conv"].split())
        parts = tuple((width, 1, shapes[key][1]) for width in widths)
        return Row(key, names, parts, _joined, lambda weight: [w[:, None].clone() for w in weight.split(widths)])
    theirs = _norm_name(mixer, config) if module == "norm" else _MIXER[name].get(module, module)
    names = (f"{layer}attn.{theirs}.{rest}",)
    if name == "retnet" and module in ("q_proj", "k_proj"):
        heads = mixer["num_heads"]
        return Row(key, names, (shapes[key],), lambda ws: _neighbours(ws[0], heads), lambda w: [_halves(w, heads)])
    return Row(key, names, (shapes[key],), _only, _alone)


def _only(parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


def _alone(whole: Tensor) -> Sequence[Tensor]:
    return [whole]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part[:, 0] for part in parts])


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Puts rows (j, j+K/2) of every head next to each other."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def _halves(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _norm_name(mixer: Mapping[str, Any], config: MixerConfig) -> str:
    """Returns their name for a mixer's own norm: where one kernel does norm and output gate it is another module."""
    fused = getattr(config, "flash_linear_attention", {}).get("fuse_norm", True)
    gated = mixer["name"] in ("gla", "retnet") and mixer.get("output_gate", True)
    return "g_norm_swish_gate" if fused and gated else "g_norm"
