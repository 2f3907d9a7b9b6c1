"""Maps a sequence to one vector, and on to classes: embedding, positions, the zoo's stack, pooling, head.

    tokens [B,T] or features [B,T,C]  ->  embedding + position  ->  Stack  ->  pooling over the tokens  ->  [B,D]

Padding changes nothing, wherever it stands: positions count a sequence's own tokens, and pooling leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.blocks.scan_order import check_scan_order, scan_passes
from mixerzoo.blocks.stack import Stack
from mixerzoo.mixers.parts.checks import check_choice
from mixerzoo.mixers.parts.layout import ScanOrder
from mixerzoo.registry.catalog import mixer_info
from mixerzoo.registry.pattern import pattern_of
from mixerzoo.tasks.config import BackboneConfig

POOLINGS = ("mean", "last", "class")
POSITIONS = ("none", "learned", "sinusoidal")
PAIR_HEADS = ("nli", "concat")


class SequenceEncoder(nn.Module):
    """Maps a sequence to one vector: [B,T] ids, or [B,T,C] features, to [B,D].

    Args:
        backbone: width, depth and mixer.
        vocab_size: of ids; or else
        channels: C of features, which a linear map takes to D.
        pooling: mean over the tokens | last token | class, a learned token after the sequence's end.
        positions: none | learned (sequences up to `max_length` tokens) | sinusoidal (arXiv:1706.03762, section 3.5).
        bidirectional: for every mixer; one that can't makes the encoder causal.
        embedding_std: of the initial embeddings.
        embedding_dropout: after embedding and position.
        scan_order: a name of `blocks/scan_order.py`; other than row they need
        grid: height and width of the image that the tokens are, row after row, and a pooling without a class token.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        vocab_size: int | None = None,
        channels: int | None = None,
        pooling: str = "mean",
        positions: str = "none",
        max_length: int | None = None,
        bidirectional: bool = True,
        embedding_std: float = 0.02,
        embedding_dropout: float = 0.0,
        scan_order: str = "row",
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, POOLINGS)
        check_choice("positions", positions, POSITIONS)
        check_scan_order(scan_order)
        if scan_order != "row" and (grid is None or pooling == "class"):
            raise ValueError(
                f"scan order {scan_order!r} goes through an image, got grid={grid} and pooling={pooling!r}; "
                "remedy: grid=(height, width), and pooling mean or last"
            )
        if (vocab_size is None) == (channels is None):
            raise ValueError(
                f"an encoder needs either vocab_size or channels, got vocab_size={vocab_size} and channels={channels}"
            )
        if positions == "learned" and max_length is None:
            raise ValueError(
                "learned positions need max_length; remedy: give the longest sequence's, or take sinusoidal"
            )
        self.pooling, self.positions, self.channels = pooling, positions, channels
        self.scan_order, self.grid = scan_order, grid
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.embedding: nn.Module = (
            nn.Linear(channels, backbone.dim) if channels is not None else nn.Embedding(vocab_size or 0, backbone.dim)
        )
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=embedding_std)
        self.position: nn.Embedding | None = None
        if positions == "learned" and max_length is not None:
            self.position = nn.Embedding(max_length + 1, backbone.dim)  # one more for the class token
            nn.init.normal_(self.position.weight, std=embedding_std)
        self.class_token = nn.Parameter(torch.randn(backbone.dim) * embedding_std) if pooling == "class" else None
        self.stack = Stack(
            backbone.dim,
            backbone.depth,
            backbone.mixer,
            channel_mixer=asdict(backbone.channel_mixer) if backbone.channel_mixer else None,
            norm=backbone.norm,
            lower_bounds=backbone.lower_bounds,
            bidirectional=bidirectional and all(map(_goes_both_ways, pattern_of(backbone.mixer))),
            dropout=backbone.dropout,
            gradient_checkpointing=backbone.gradient_checkpointing,
        )

    def forward(self, inputs: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Maps [B,T] int64 or [B,T,C] to [B,D].

        mask: bool [B,T], True = token, at least one a row; None: all are.

        An order of an image takes no mask, and raises ValueError for one, or for another number of tokens.
        """
        x = self.embedding(inputs)
        if self.class_token is not None:
            x = torch.cat([x, self.class_token.to(x.dtype).expand(len(x), 1, -1)], dim=1)
            mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        tokens = torch.ones_like(x[:1, :, 0], dtype=torch.bool) if mask is None else mask
        place = (tokens.cumsum(1) - 1).clamp(min=0)
        x = self.embedding_dropout(self._with_positions(x, place))
        return self._pool(self.stack(x, mask=mask, passes=self._passes(x.shape[1])), mask)

    def state_size(self, length: int) -> int:
        """Returns the numbers that one direction's states or caches hold after `length` tokens."""
        return self.stack.state_size(length)

    def _passes(self, tokens: int) -> tuple[tuple[ScanOrder, ...], ...]:
        if self.scan_order == "row" or self.grid is None:
            return ((),)
        height, width = self.grid
        if height * width != tokens:
            raise ValueError(f"scan order {self.scan_order!r} needs {height} x {width} tokens, got {tokens}")
        return scan_passes(self.scan_order, height, width)

    def _with_positions(self, x: Tensor, place: Tensor) -> Tensor:
        if self.positions == "none":
            return x
        if self.position is None:
            return x + sinusoids(place, x.shape[-1]).to(x.dtype)
        if place.shape[1] > self.position.num_embeddings:
            raise ValueError(
                f"learned positions reach to {self.position.num_embeddings - 1} tokens, got {place.shape[1]}; "
                "remedy: a larger max_length, or positions none or sinusoidal"
            )
        return x + self.position(place)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return x.mean(1) if self.pooling == "mean" else x[:, -1]
        if self.pooling == "mean":
            return x.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        return x[torch.arange(len(x), device=x.device), last]


class SequenceClassifier(nn.Module):
    """Adds a linear head to an encoder: logits [B,classes].

    `encoder` holds the keywords of `SequenceEncoder`.
    """

    def __init__(self, backbone: BackboneConfig, classes: int, encoder: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(backbone, **encoder)
        self.head = nn.Linear(backbone.dim, classes)

    def forward(self, inputs: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(inputs, mask=mask))

    def state_size(self, length: int) -> int:
        return self.encoder.state_size(length)


class PairClassifier(nn.Module):
    """Has two towers that share their weights, as for LRA's Retrieval: logits [B,classes] of two sequences.

    `encoder` holds the keywords of `SequenceEncoder`. head: nli | concat. nli has the features [a, b, a-b, a*b] and one
    hidden layer of D with GELU (Nystromformer's and S4's). concat has [a, b] and hidden layers of 2D and D with ReLU
    (LRA's own).
    """

    def __init__(
        self, backbone: BackboneConfig, classes: int, encoder: Mapping[str, Any], *, head: str = "nli"
    ) -> None:
        super().__init__()
        check_choice("head", head, PAIR_HEADS)
        dim = backbone.dim
        self.nli = head == "nli"
        self.encoder = SequenceEncoder(backbone, **encoder)
        if self.nli:
            self.head = nn.Sequential(nn.Linear(4 * dim, dim), nn.GELU(), nn.Linear(dim, classes))
        else:
            hidden = [nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim), nn.ReLU()]
            self.head = nn.Sequential(*hidden, nn.Linear(dim, classes))

    def forward(self, inputs: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Maps pairs [B,2,T] to [B,classes]; mask: bool [B,2,T].

        Both of a pair go through the encoder in one batch.
        """
        vectors = self.encoder(inputs.flatten(0, 1), mask=None if mask is None else mask.flatten(0, 1))
        a, b = vectors.unflatten(0, (-1, 2)).unbind(1)
        return self.head(torch.cat([a, b, a - b, a * b] if self.nli else [a, b], dim=-1))

    def state_size(self, length: int) -> int:
        return self.encoder.state_size(length)


def sinusoids(place: Tensor, dim: int) -> Tensor:
    """Maps [B,T] places to [B,T,dim]: sines in the first half of the channels, cosines in the second."""
    half = (dim + 1) // 2
    rates = torch.exp(torch.arange(half, device=place.device) * (-math.log(10_000) / max(1, half - 1)))
    angles = place[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :dim]


def _goes_both_ways(mixer: Mapping[str, Any]) -> bool:
    return "bidirectional" in mixer_info(mixer["name"]).capabilities
