"""Lets the HGRN2 layers of flash-linear-attention run on our op: one call from the raw projections to the output.

    model = HGRN2ForCausalLM(config)      # flash-linear-attention's
    replace_hgrn2(model)                  # the number of layers that changed

Weights, checkpoints, caches, the layers' results and their norm stay as they are. The change is between the projections
and the norm, where a chain of gate operations around `chunk_gla` was.
"""

from __future__ import annotations

from importlib import import_module
from types import MethodType
from typing import Any

from torch import Tensor, nn

from mixerzoo.kernels.hgrn2 import hgrn2

HOME = "fla.layers.hgrn2"
NEEDED = ("get_layer_cache", "update_layer_cache", "unpad_hidden_states", "repad_hidden_states", "rms_norm_linear")


def replace_hgrn2(model: nn.Module) -> int:
    """Gives every `fla.layers.HGRN2Attention` in a model, itself included, our forward pass; returns their number.

    Raises ImportError where flash-linear-attention is missing or isn't of the version that this was written for."""
    try:
        home = import_module(HOME)
    except ImportError as error:
        raise ImportError(f"{HOME} can't be imported; remedy: pip install flash-linear-attention==0.6.0") from error
    if missing := [name for name in NEEDED if not hasattr(home, name)]:
        raise ImportError(f"{HOME} has no {', '.join(missing)}; remedy: pip install flash-linear-attention==0.6.0")
    layers = [module for module in model.modules() if isinstance(module, home.HGRN2Attention)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    lower_bound: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None, Any]:
    """Runs as the layer's own.

    Blocks of flash-linear-attention hand every layer also what only other layers take.
    """
    home = import_module(HOME)
    B, T, _ = hidden_states.shape
    cache = home.get_layer_cache(layer, past_key_values)
    x, indices, cu_seqlens = home.unpad_hidden_states(hidden_states, cu_seqlens, attention_mask, T)
    projected, conv_state = _project(layer, x, cache, use_cache, cu_seqlens)
    q, logits, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in projected)
    gamma = 0.0 if lower_bound is None or layer.layer_idx == 0 else lower_bound.view(layer.num_heads, -1)
    state = None if cache is None else cache["recurrent_state"]
    y, state = hgrn2(
        q,
        logits,
        v,
        gamma,
        scale=layer.head_f_dim**-0.5,
        q_activation="silu",
        initial_state=None if state is None else state.transpose(-1, -2),  # the cache holds [N,H,V,K]
        cu_seqlens=cu_seqlens,
    )
    recurrent_state = state.transpose(-1, -2) if use_cache else None
    home.update_layer_cache(layer, past_key_values, recurrent_state=recurrent_state, conv_state=conv_state, offset=T)
    norm, out = layer.g_norm, layer.o_proj
    y = home.rms_norm_linear(y.flatten(-2), norm.weight, norm.bias, out.weight, out.bias)
    return home.repad_hidden_states(y, indices, B, T), None, past_key_values


def _project(
    layer: Any, x: Tensor, cache: Any, use_cache: bool | None, cu_seqlens: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Any, ...] | None]:
    """Returns q, logits and v, and what their convolutions remember; None without convolutions."""
    projected = layer.q_proj(x), layer.f_proj(x), layer.i_proj(x)
    if not layer.use_short_conv:
        return projected, None
    convolutions = layer.q_conv1d, layer.f_conv1d, layer.i_conv1d
    memories = (None,) * 3 if cache is None else cache["conv_state"]
    results = [
        convolve(x=part, cache=memory, output_final_state=use_cache, cu_seqlens=cu_seqlens)
        for convolve, part, memory in zip(convolutions, projected, memories, strict=True)
    ]
    return tuple(part for part, _ in results), tuple(memory for _, memory in results)
