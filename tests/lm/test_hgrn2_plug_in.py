"""flash-linear-attention's HGRN2 layers give the same on our op.

Their layer needs a GPU. A layer written from its equations stands in for it: equal argument names, cache layout and
weights.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.kernels.gated_linear_attention import gated_linear_attention
from mixerzoo.tasks.lm.flash_linear_attention.hgrn2_plug_in import HOME, replace_hgrn2

from ..tolerances import assert_close

DIM, HEADS, B, T = 12, 3, 2, 9
MASK = torch.ones(B, T, dtype=torch.long).index_put((torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])), torch.tensor(0))


class Convolution(nn.Module):
    """Mixes a token with the one before it, which it remembers."""

    def forward(self, x: Tensor, cache: Tensor | None, output_final_state: bool, cu_seqlens: Tensor | None) -> Any:
        before = torch.zeros_like(x[:, :1]) if cache is None else cache
        shifted = torch.cat([before, x[:, :-1]], 1)
        if cu_seqlens is not None:
            shifted = shifted.index_fill(1, cu_seqlens[:-1], 0.0)
        return x + 0.5 * shifted, x[:, -1:] if output_final_state else None


class HGRN2Attention(nn.Module):
    """Imitates their layer: names, cache and values, by its equations."""

    def __init__(self, layer_idx: int, use_short_conv: bool = False) -> None:
        super().__init__()
        self.layer_idx, self.use_short_conv = layer_idx, use_short_conv
        self.num_heads, self.head_f_dim = HEADS, DIM // HEADS
        self.q_proj, self.f_proj, self.i_proj, self.o_proj = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.q_conv1d, self.f_conv1d, self.i_conv1d = (Convolution() for _ in range(3))
        self.g_norm = nn.RMSNorm(DIM)
        self.g_norm.bias = None
        nn.init.normal_(self.g_norm.weight)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: list | None = None,
        use_cache: bool = False,
        lower_bound: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None, list | None]:
        length = hidden_states.shape[1]
        last = get_layer_cache(self, past_key_values)
        x, indices, cu_seqlens = unpad_hidden_states(hidden_states, cu_seqlens, attention_mask, length)
        q, f, i = self.q_proj(x), self.f_proj(x), self.i_proj(x)
        memory: Any = None
        if self.use_short_conv:
            memories = last["conv_state"] if last else (None, None, None)
            (q, a), (f, b), (i, c) = (
                convolution(part, m, use_cache, cu_seqlens)
                for convolution, part, m in zip(
                    (self.q_conv1d, self.f_conv1d, self.i_conv1d), (q, f, i), memories, strict=True
                )
            )
            memory = (a, b, c)
        g = F.logsigmoid(f)
        if lower_bound is not None and self.layer_idx > 0:
            g = torch.logaddexp(lower_bound.log(), torch.log1p(-lower_bound) + g)
        q, k, g, i = (x.unflatten(-1, (HEADS, -1)) for x in (F.silu(q), 1 - g.exp(), g, i))
        state = last["recurrent_state"].transpose(-1, -2) if last else None
        y, state = gated_linear_attention(
            q, k, i, g, scale=(DIM // HEADS) ** -0.5, initial_state=state, cu_seqlens=cu_seqlens, backend="reference"
        )
        state = state.transpose(-1, -2) if use_cache else None
        update_layer_cache(self, past_key_values, recurrent_state=state, conv_state=memory, offset=length)
        y = rms_norm_linear(y.flatten(-2), self.g_norm.weight, None, self.o_proj.weight, None)
        return repad_hidden_states(y, indices, hidden_states.shape[0], length), None, past_key_values


def get_layer_cache(layer: Any, cache: list | None) -> dict | None:
    return cache[layer.layer_idx] if cache else None


def update_layer_cache(layer: Any, cache: list | None, *, recurrent_state: Any, conv_state: Any, offset: int) -> None:
    if cache is not None:
        seen = cache[layer.layer_idx]["seen"] if cache else 0
        entry = {"recurrent_state": recurrent_state, "conv_state": conv_state, "seen": seen + offset}
        cache[:] = [entry] * (layer.layer_idx + 1)


def unpad_hidden_states(x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None, length: int) -> Any:
    if mask is None:
        return x, None, cu_seqlens
    indices = mask.flatten().nonzero().flatten()
    return x.flatten(0, 1)[indices][None], indices, F.pad(mask.sum(1).cumsum(0), (1, 0))


def repad_hidden_states(x: Tensor, indices: Tensor | None, batch: int, length: int) -> Tensor:
    if indices is None:
        return x
    return x.new_zeros(batch * length, x.shape[-1]).index_put((indices,), x[0]).unflatten(0, (batch, length))


def rms_norm_linear(x: Tensor, weight: Tensor, bias: None, linear_weight: Tensor, linear_bias: None) -> Tensor:
    return F.linear(F.rms_norm(x, x.shape[-1:], weight, eps=1e-5), linear_weight)


@pytest.fixture(autouse=True)
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Makes a package `fla` with one layer."""
    home = ModuleType(HOME)
    parts = get_layer_cache, update_layer_cache, unpad_hidden_states, repad_hidden_states, rms_norm_linear
    for part in (*parts, HGRN2Attention):
        setattr(home, part.__name__, part)
    for name in ("fla", "fla.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, HOME, home)
    return home


def pair(layer_idx: int, use_short_conv: bool) -> tuple[nn.Module, nn.Module]:
    """Makes a layer and its twin on our op."""
    layer = HGRN2Attention(layer_idx, use_short_conv).double()
    twin = copy.deepcopy(layer)
    assert replace_hgrn2(twin) == 1
    return layer, twin


each_layer = pytest.mark.parametrize("layer_idx", [0, 1])
each_convolution = pytest.mark.parametrize("use_short_conv", [False, True])


@each_layer
@each_convolution
@pytest.mark.parametrize(
    "arguments",
    [{}, {"attention_mask": MASK}, {"cu_seqlens": torch.tensor([0, 4, 18])}, {"lower_bound": None}],
    ids=["plain", "mask", "packed", "no bound"],
)
def test_a_layer_on_our_op_gives_what_it_gave(layer_idx: int, use_short_conv: bool, arguments: dict) -> None:
    x = torch.randn(B, T, DIM, dtype=torch.float64)
    if "cu_seqlens" in arguments:
        x = x.flatten(0, 1)[None]
    bound = torch.rand(DIM, dtype=torch.float64)
    results = []
    for layer in pair(layer_idx, use_short_conv):
        leaves = [x.clone().requires_grad_(), bound.clone().requires_grad_()]
        y, attention, cache = layer(leaves[0], output_attentions=False, **{"lower_bound": leaves[1]} | arguments)
        assert attention is None and cache is None
        wanted = [*leaves, *layer.parameters()]
        gradients = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True)
        results.append((y, *gradients))
    theirs, ours = results
    assert_close(ours, theirs)


@each_layer
@each_convolution
def test_a_cache_goes_on_with_either(layer_idx: int, use_short_conv: bool) -> None:
    """It also continues across the two: their cache is ours."""
    x = torch.randn(B, T, DIM, dtype=torch.float64)
    layer, twin = pair(layer_idx, use_short_conv)
    results = []
    for first, second in ((layer, layer), (twin, twin), (layer, twin), (twin, layer)):
        cache: list = []
        head = first(x[:, :-1], past_key_values=cache, use_cache=True)
        tail = second(x[:, -1:], past_key_values=cache, use_cache=True)
        assert tail[2] is cache and cache[-1]["seen"] == T
        results.append((head[0], tail[0], cache[-1]["recurrent_state"]))
    for result in results[1:]:
        assert_close(result, results[0])


def test_every_layer_of_a_model_is_found() -> None:
    model = nn.Sequential(HGRN2Attention(0), nn.Linear(DIM, DIM), HGRN2Attention(1))
    names = set(model.state_dict())
    assert replace_hgrn2(model) == 2 and replace_hgrn2(nn.Linear(1, 1)) == 0
    assert set(model.state_dict()) == names


def test_a_missing_or_changed_peer_is_named(monkeypatch: pytest.MonkeyPatch, peer: ModuleType) -> None:
    monkeypatch.delattr(peer, "rms_norm_linear")
    with pytest.raises(ImportError, match=r"fla.layers.hgrn2 has no rms_norm_linear; remedy: pip install"):
        replace_hgrn2(nn.Identity())
    monkeypatch.setitem(sys.modules, HOME, None)
    with pytest.raises(ImportError, match=r"fla.layers.hgrn2 can't be imported; remedy: pip install flash-linear-att"):
        replace_hgrn2(nn.Identity())
