"""Defines a causal language model: `logits = norm(stack(embedding(ids))) @ head^T`, the head tied or not.

ids: int64 [B,T] · logits: [B,T,vocabulary]. Generation is one prefill and then steps, for padded prompts too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.blocks.stack import Stack
from mixerzoo.blocks.start import reset_parameters
from mixerzoo.registry.pattern import Pattern
from mixerzoo.tasks.config import BackboneConfig

IGNORED = -100


class LanguageModel(nn.Module):
    """Predicts tokens: `LanguageModel(256, dim=64, depth=2, mixer="hgrn2")`.

    `mixer` is a name, a configuration, or a list to tile.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        mixer: Pattern,
        *,
        channel_mixer: Mapping[str, Any] | None = {},
        norm: str = "rms",
        lower_bounds: str | None = "skip_first",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        embedding_std: float = 0.02,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.stack = Stack(
            dim,
            depth,
            mixer,
            channel_mixer=channel_mixer,
            norm=norm,
            lower_bounds=lower_bounds,
            dropout=dropout,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.embedding_std = embedding_std
        self._start_embeddings()
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def reset_parameters(self) -> None:
        """Starts every parameter as after construction; also after `to_empty`."""
        reset_parameters(self.stack)
        self._start_embeddings()

    def _start_embeddings(self) -> None:
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.normal_(self.embedding.weight, std=self.embedding_std)

    @classmethod
    def from_backbone(
        cls, vocab_size: int, backbone: BackboneConfig, *, tie_embeddings: bool = True, embedding_std: float = 0.02
    ) -> LanguageModel:
        """Builds the model from a run's configuration."""
        return cls(
            vocab_size,
            backbone.dim,
            backbone.depth,
            backbone.mixer,
            channel_mixer=asdict(backbone.channel_mixer) if backbone.channel_mixer else None,
            norm=backbone.norm,
            lower_bounds=backbone.lower_bounds,
            dropout=backbone.dropout,
            tie_embeddings=tie_embeddings,
            embedding_std=embedding_std,
            gradient_checkpointing=backbone.gradient_checkpointing,
        )

    def forward(self, ids: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Returns logits [B,T,vocabulary]. `mask` and `cu_seqlens` are as in the mixers' contract."""
        return self.head(self.stack(self.embedding(ids), mask=mask, cu_seqlens=cu_seqlens))

    def loss(
        self, ids: Tensor, labels: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Returns the mean cross-entropy in nats over the positions whose label is not -100.

        `labels` are already shifted.
        """
        return token_loss(self(ids, mask=mask, cu_seqlens=cu_seqlens), labels)

    def state_size(self, length: int) -> int:
        """Returns the elements of state or key-value cache that one sequence holds after `length` tokens."""
        return self.stack.state_size(length)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the continuation [B,max_new_tokens] of a prompt [B,T], greedy at temperature 0.

        mask: bool [B,T], True = real token, for prompts of different lengths (padding wherever it stands).
        """
        batch, length = prompt.shape
        if length == 0 or (mask is not None and not mask.any(1).all()):
            raise ValueError("every prompt needs at least one token; remedy: start it with a separator of your own")
        state = self.stack.init_state(batch, max_length=length + max_new_tokens)
        y, state = self.stack.prefill(self.embedding(prompt), state, mask=mask)
        last = y[torch.arange(batch), _last_token(mask)] if mask is not None else y[:, -1]
        tokens: list[Tensor] = []
        for _ in range(max_new_tokens):
            if tokens:
                last, state = self.stack.step(self.embedding(tokens[-1]), state)
            tokens.append(_sample(self.head(last), temperature, generator))
        return torch.stack(tokens, dim=1) if tokens else prompt[:, :0]


def token_loss(logits: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Returns the cross-entropy of [B,T,vocabulary] logits against [B,T] labels in nats, in fp32.

    Label -100 is left out.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=reduction)


def _last_token(mask: Tensor) -> Tensor:
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)


def _sample(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
