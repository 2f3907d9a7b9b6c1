"""Defines the configuration of a language model of the zoo, as transformers stores it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from mixerzoo.blocks.stack import CHANNEL_MIXER_KEYS
from mixerzoo.registry.catalog import MIXERS, mixer_info
from mixerzoo.registry.pattern import Pattern, resolved, tiled
from mixerzoo.registry.registry import unknown

CACHE_NAMES = ("cache", "past_key_values")  # a model's cache, which transformers 5.24 renamed
HEADS = {"num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads"}


class MixerConfig(PreTrainedConfig):
    """Configures a pre-norm language model with any mixer or pattern of mixers.

    Args:
        mixer: a mixer's name, its configuration (`{"name": "hgrn2", "expand": 64}`), or a list to tile over depth.
        vocab_size: rows of the embedding.
        hidden_size: width D.
        num_hidden_layers: depth.
        num_attention_heads, num_key_value_heads: for every mixer that has heads and doesn't say how many; None: the
            mixer's own default.
        intermediate_size: hidden width of the channel mixers; None: 8/3 D, or what `channel_mixer` says.
        channel_mixer: keywords of `GLU` (multiplier, hidden, activation, bias); None for no channel mixer.
        norm: layer | rms | srms | group, before every mixer and channel mixer and at the end.
        norm_eps: of those norms.
        lower_bounds: skip_first | skip_last, the convention of HGRN's learned lower bounds; None for none.
        dropout: on every residual branch.
        max_position_embeddings: the length of the training rows. Nothing depends on it: no mixer has learned positions.
        initializer_range: standard deviation of embeddings and linear maps.
        fused_loss: while training, take the loss without logits (`transformers_model/loss.py`): `logits` is None then.
        tie_word_embeddings: the head's weight is the embedding's.

    Raises ValueError for a `mixer` that is malformed, unknown, not causal or of another width, for a size that is no
    whole number, and for an unknown keyword of `channel_mixer`. Mixers check their own keywords.
    """

    model_type = "mixerzoo"
    keys_to_ignore_at_inference = list(CACHE_NAMES)

    def __init__(
        self,
        mixer: Pattern = "hgrn2",
        vocab_size: int = 32000,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        channel_mixer: Mapping[str, Any] | None = {},
        norm: str = "rms",
        norm_eps: float = 1e-5,
        lower_bounds: str | None = "skip_first",
        dropout: float = 0.0,
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        fused_loss: bool = True,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        counts = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "intermediate_size": 1 if intermediate_size is None else intermediate_size,
        }
        for key, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{key} must be a whole number, at least 1, got {count!r}")
        if not isinstance(channel_mixer, Mapping | None):
            raise ValueError(f"channel_mixer must be keywords of GLU, or None for none, got {channel_mixer!r}")
        self.mixer = resolved(mixer)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.intermediate_size = intermediate_size
        self.channel_mixer = None if channel_mixer is None else dict(channel_mixer)
        self.norm = norm
        self.norm_eps = norm_eps
        self.lower_bounds = lower_bounds
        self.dropout = dropout
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.fused_loss = fused_loss
        self.use_cache = use_cache
        for key in self.channel_mixer or {}:
            if key not in CHANNEL_MIXER_KEYS:
                raise ValueError(unknown("keyword of channel_mixer", key, CHANNEL_MIXER_KEYS))
        _ = self.mixers  # says what is wrong with them, now and in its own words
        super().__init__(  # type: ignore[call-arg]
            tie_word_embeddings=tie_word_embeddings,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )

    @property
    def mixers(self) -> list[dict[str, Any]]:
        """Returns every layer's complete mixer configuration, width and heads included."""
        return [self._complete(mixer) for mixer in tiled(self.mixer, self.num_hidden_layers)]

    @property
    def layer_types(self) -> list[str]:
        """Returns transformers' words: linear_attention (constant state), full_attention or sliding_attention."""
        return [_layer_type(mixer) for mixer in self.mixers]

    @property
    def sliding_window(self) -> int | None:
        """Returns what transformers wants to know of sliding_attention layers; None without one."""
        return next((mixer["window"] for mixer in self.mixers if mixer.get("window")), None)

    @property
    def glu(self) -> dict[str, Any] | None:
        """Returns the complete keywords of every layer's channel mixer; None without one."""
        if self.channel_mixer is None or self.intermediate_size is None:
            return self.channel_mixer
        return {"hidden": self.intermediate_size, **self.channel_mixer}

    def _complete(self, mixer: Mapping[str, Any]) -> dict[str, Any]:
        if mixer.get("dim", self.hidden_size) != self.hidden_size:
            raise ValueError(
                f"the model has hidden_size={self.hidden_size}, got a mixer with dim={mixer['dim']}; "
                "remedy: leave it out"
            )
        if mixer.get("bidirectional"):
            raise ValueError("a causal language model can't have bidirectional=True; remedy: leave it out")
        if "causal" not in mixer_info(mixer["name"]).capabilities:
            raise ValueError(f"a causal language model can't have {mixer['name']!r}, which looks both ways")
        takes = inspect.signature(MIXERS.get(mixer["name"]).__init__).parameters
        heads = {own: getattr(self, name) for name, own in HEADS.items() if own in takes and getattr(self, name)}
        return {**heads, **mixer, "dim": self.hidden_size}


def _layer_type(mixer: Mapping[str, Any]) -> str:
    if "constant_state" in mixer_info(mixer["name"]).capabilities:
        return "linear_attention"
    return "sliding_attention" if mixer.get("window") else "full_attention"
