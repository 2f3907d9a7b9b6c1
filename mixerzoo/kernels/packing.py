"""Arithmetic on `cu_seqlens` (several documents packed into one row) with static shapes and no host synchronisation.

`cu_seqlens: [N+1]`, `cu_seqlens[i]` is where document i starts, the last entry is T. A document may be empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """Says to which document every packed token belongs. For an empty one `last` is an index without meaning."""

    document: Tensor  # [T] the document of each token
    start: Tensor  # [T] where that document starts
    last: Tensor  # [N] the last token of each document
    nonempty: Tensor  # [N]


def documents(cu_seqlens: Tensor, length: int) -> Documents:
    cu_seqlens = cu_seqlens.long()
    document = torch.searchsorted(cu_seqlens[1:], torch.arange(length, device=cu_seqlens.device), right=True)
    return Documents(document, cu_seqlens[document], (cu_seqlens[1:] - 1).clamp(min=0), cu_seqlens.diff() > 0)


class ChunkAlignment(NamedTuple):
    """Says where packed tokens go so that every document starts at a chunk boundary."""

    num_chunks: int
    slot: Tensor  # [T] the place of each token among num_chunks * chunk_size
    first: Tensor  # [num_chunks] the chunk opens a document
    document: Tensor  # [num_chunks] which one
    last: Tensor  # [N] the chunk that closes document i
    nonempty: Tensor  # [N]


def align_to_chunks(cu_seqlens: Tensor, length: int, chunk_size: int) -> ChunkAlignment:
    """At most `length // chunk_size + N` chunks hold N documents that may not share a chunk."""
    cu_seqlens = cu_seqlens.long()
    num_chunks = length // chunk_size + cu_seqlens.numel() - 1
    chunks = (cu_seqlens.diff() + chunk_size - 1) // chunk_size
    end = chunks.cumsum(0)
    begin = end - chunks

    tokens = documents(cu_seqlens, length)
    slot = begin[tokens.document] * chunk_size + torch.arange(length, device=cu_seqlens.device) - tokens.start
    chunk = torch.arange(num_chunks, device=cu_seqlens.device)
    document = torch.searchsorted(end, chunk, right=True).clamp(max=end.numel() - 1)
    first = (chunk == begin[document]) & tokens.nonempty[document]
    return ChunkAlignment(num_chunks, slot, first, document, (end - 1).clamp(min=0), tokens.nonempty)
