"""Makes the zoo's language models models of transformers: `MixerModel` and `MixerForCausalLM`.

Importing this module registers them with AutoConfig, AutoModel and AutoModelForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mixerzoo.blocks.channel_mixers import GLU
from mixerzoo.blocks.depth import DepthWalk, share_over_depth
from mixerzoo.blocks.residual import ResidualBlock
from mixerzoo.mixers.parts import DepthShared, Mixer
from mixerzoo.mixers.parts.norms import make_norm
from mixerzoo.registry.catalog import build_mixer
from mixerzoo.tasks.lm.configuration import CACHE_NAMES, MixerConfig
from mixerzoo.tasks.lm.flash_linear_attention.checkpoints import (
    generation_settings,
    published_directory,
    read_published,
)

from .batch import packed_documents, token_mask
from .cache import CACHE_NAME, MixerCache, MixerCacheLayer, accepts_past_key_values, adopt, cache_for, holds_tokens
from .loss import linear_cross_entropy, shifted

__all__ = ["MixerCache", "MixerConfig", "MixerForCausalLM", "MixerModel"]


class MixerBlock(GradientCheckpointingLayer, ResidualBlock):
    """Adapts a residual block to transformers: [B,T,D] -> [B,T,D], checkpointed on demand, its state in a cache."""

    def __init__(self, config: MixerConfig, mixer: Mapping[str, Any]) -> None:
        super().__init__(
            build_mixer(mixer),
            None if config.glu is None else GLU(config.hidden_size, **config.glu),
            norm=config.norm,
            mixer_branch=nn.Dropout(config.dropout),
            channel_branch=nn.Dropout(config.dropout),
        )
        for norm in (self.mixer_norm, self.channel_norm):
            if norm is not None:
                norm.eps = config.norm_eps  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        names: tuple[str, ...] = (),
        *values: Tensor,
        cache: MixerCacheLayer | None = None,
    ) -> Tensor:
        """names, values: what the layers share, one by one, as gradients reach tensors of a reentrant checkpoint only
        so."""
        shared = dict(zip(names, values, strict=True))
        if cache is not None:
            return cache.advance(self, x, mask, shared)
        if cu_seqlens is None:
            return ResidualBlock.forward(self, x, mask=mask, shared=shared)
        in_time = self.mixer.shared_in_time
        shared = {name: _one_row(value) if name in in_time else value for name, value in shared.items()}
        return ResidualBlock.forward(self, _one_row(x), cu_seqlens=cu_seqlens, shared=shared).view_as(x)

    def first_value(self, x: Tensor, *, cu_seqlens: Tensor | None = None, **ways: Any) -> Tensor:
        if cu_seqlens is None:
            return ResidualBlock.first_value(self, x, **ways)
        value = ResidualBlock.first_value(self, _one_row(x), cu_seqlens=cu_seqlens)
        return value.unflatten(1, x.shape[:2]).squeeze(0)


def _one_row(x: Tensor) -> Tensor:
    """[B,T,...] -> [1,B T,...]: packed documents are one row to a mixer, also where transformers packs every row."""
    return x.reshape(1, -1, *x.shape[2:])


class MixerPreTrainedModel(PreTrainedModel):
    config: MixerConfig
    config_class = MixerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MixerBlock"]
    _can_compile_fullgraph = True
    _skip_keys_device_placement = list(CACHE_NAMES)
    _can_record_outputs = {"hidden_states": MixerBlock}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Loads as transformers' own does, and also a checkpoint in flash-linear-attention's format.

        Raises ValueError for one of those that is damaged or isn't the model that its config.json describes."""
        if config is None and kwargs.get("state_dict") is None and pretrained_model_name_or_path is not None:
            directory = published_directory(pretrained_model_name_or_path, kwargs)
            if directory is not None:
                config, tensors = read_published(directory, stored_shapes)
                kwargs = {**generation_settings(directory), **kwargs, "state_dict": tensors}
                pretrained_model_name_or_path = None
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DepthShared) and callable(reset := getattr(module, "reset_parameters", None)):
            reset()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Starts what no checkpoint has given: a mixer as one whole, the rest as transformers does."""
        # transformers passes over modules of others that have no parameters of their own, as most mixers have none.
        mixers = [module for module in self.modules() if isinstance(module, Mixer)]
        new = [mixer for mixer in mixers if not getattr(mixer, "_is_hf_initialized", False)]
        super().initialize_weights()
        for mixer in new:
            given = [tensor for tensor in mixer.parameters() if getattr(tensor, "_is_hf_initialized", False)]
            values = [tensor.clone() for tensor in given]
            mixer.reset_parameters(self.config.initializer_range)
            for tensor, value in zip(given, values, strict=True):
                tensor.copy_(value)


class MixerModel(MixerPreTrainedModel):
    """Maps ids [B,T] to hidden states [B,T,D]: embedding, residual blocks and final norm."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MixerBlock(config, mixer) for mixer in config.mixers)
        self.norm = make_norm(config.norm, config.hidden_size, config.norm_eps)
        mixers = [cast(Mixer, block.mixer) for block in self.layers]
        share_over_depth(
            self, mixers, dim=config.hidden_size, depth=len(mixers), options={"lower_bounds": config.lower_bounds}
        )
        self.post_init()

    @accepts_past_key_values
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Returns hidden states after the final norm, and the cache.

        Args:
            attention_mask: [B,T] or [B,past+T], nonzero = token; padding may stand anywhere.
            position_ids: [B,T]. Mixers count tokens themselves; where there is neither padding nor a past, a position
                that doesn't follow the one before it starts a document (transformers' `DataCollatorWithFlattening`).
            cu_seqlens: [N+1], N documents packed into one row, also under transformers' name `cu_seq_lens_q`. Packed
                rows leave no cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = token_mask(attention_mask, x)
        started = cache is not None and holds_tokens(cache)
        cu_seqlens = kwargs.get("cu_seq_lens_q") if cu_seqlens is None else cu_seqlens
        if cu_seqlens is None and position_ids is not None and mask is None and not started:
            cu_seqlens = packed_documents(position_ids.expand(x.shape[:2]))
        if cu_seqlens is not None and (started or mask is not None):
            raise ValueError("packed documents exclude padding and a past; remedy: leave padding out of the packed row")
        checkpointing = self.training and torch.is_grad_enabled() and any(b.gradient_checkpointing for b in self.layers)
        if cu_seqlens is not None or checkpointing:
            cache = None
        elif cache is not None:
            cache = adopt(cache, self.config)
        elif use_cache and not self.training:
            cache = MixerCache(self.config)

        states: Any = [None] * len(self.layers) if cache is None else cache.layers
        walk = DepthWalk(self)
        for block, state in zip(self.layers[: self.config.num_hidden_layers], states, strict=False):
            if state is not None:
                state.prepare(block, x)
            shared = walk(block, x, mask=mask, cu_seqlens=cu_seqlens, state=None if state is None else state.state)
            x = block(x, mask, cu_seqlens, tuple(shared), *shared.values(), cache=state)
        return BaseModelOutputWithPast(self.norm(x), cache)  # by position, whatever this version calls it


class MixerForCausalLM(MixerPreTrainedModel, GenerationMixin):
    """Maps ids [B,T] to logits [B,T,vocabulary]: `MixerModel` and a linear head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.model = MixerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @accepts_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Returns logits, and with `labels` the loss.

        Args:
            labels: [B,T], the ids themselves; they are shifted here, -100 is left out. `shift_labels` are already
                shifted, `num_items_in_batch` divides the sum in place of the number of labels.
            logits_to_keep: only of the last so many positions, or of those in a tensor; 0: of all.
            skip_logits: take the loss without logits; None: as config.fused_loss says while training, else False.

        The rest is as for `MixerModel`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if skip_logits is None:
            skip_logits = self.training and self.config.fused_loss and isinstance(logits_to_keep, int)
        wanted = labels is not None or kwargs.get("shift_labels") is not None
        logits = loss = None
        if wanted and skip_logits:
            loss = self._loss_without_logits(hidden, labels, **kwargs)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        if wanted and not skip_logits:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        cache = getattr(outputs, CACHE_NAME)
        return CausalLMOutputWithPast(loss, logits, cache, outputs.hidden_states, outputs.attentions)

    def _loss_without_logits(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        *,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> Tensor:
        targets = shifted(cast(Tensor, labels), ignore_index) if shift_labels is None else shift_labels
        return linear_cross_entropy(
            hidden, self.lm_head, targets, num_items=num_items_in_batch, ignore_index=ignore_index
        )

    @staticmethod
    def create_masks_for_generate(inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """Returns the mask of the new tokens alone.

        `generate` asks for it where it compiles, and there a shape must not grow.
        """
        return token_mask(attention_mask, inputs_embeds)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Makes our cache: that of `generate` would know nothing of mixers."""
        if model_kwargs.get(CACHE_NAME) is not None:
            adopt(model_kwargs[CACHE_NAME], self.config)
            super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
        elif generation_config.use_cache is not False:
            implementation = generation_config.cache_implementation
            model_kwargs[CACHE_NAME] = cache_for(self.config, implementation, max_cache_length)
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None and (
            generation_mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant
        ):
            for layer in cache.layers:
                layer.activate_past_recording()


def stored_shapes(config: MixerConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of what a checkpoint holds."""
    with torch.device("meta"):
        model = MixerForCausalLM(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


AutoConfig.register(MixerConfig.model_type, MixerConfig, exist_ok=True)
AutoModel.register(MixerConfig, MixerModel, exist_ok=True)
AutoModelForCausalLM.register(MixerConfig, MixerForCausalLM, exist_ok=True)
# Trainer's label smoothing, pipelines and lm-evaluation-harness know a causal language model by these lists of names.
MODEL_MAPPING_NAMES[MixerConfig.model_type] = MixerModel.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MixerConfig.model_type] = MixerForCausalLM.__name__
