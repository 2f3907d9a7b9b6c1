"""Attention scores with a decay per channel, exact for every gate in [0, 1], as matrix products.

`A_ij = sum_c q_ic k_jc prod_{m=j+1..i} f_mc` for j <= i. Cut a block of 2s tokens into two halves. For i right and j
left the product of gates splits at the cut into (prefix of the right half up to i) * (suffix of the left half after j):

    A_right,left = (q * prefix)_right  @  (k * suffix)_left^T,

and each half is the same problem again: log2(C) levels. Every factor is a product of gates, hence in [0, 1]: nothing
overflows, a closed gate (f = 0) is an exact zero, and no difference of cumulative sums loses digits. The gradient is
taken with respect to f, not log f, so that it is exact at f = 0 too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """Gate products inside the halves of every block of 2 size tokens, [n,C/2size,size or 1,K]."""

    size: int
    left_total: Tensor
    right_prefix: Tensor
    left_suffix: Tensor


class DecayTree:
    """Gate products of a chunk, f: [n,C,K] or [n,C,1] (one gate a head), C a power of two.

    `prefix_i = prod_{m<=i} f_m` carries the state that enters the chunk to token i, `suffix_j = prod_{m>j} f_m` carries
    token j to the state that leaves it.
    """

    def __init__(self, f: Tensor) -> None:
        self.levels: list[Level] = []
        self.prefix, self.suffix = f, torch.ones_like(f)
        size = 1
        while size < f.shape[1]:
            left_prefix, right_prefix = _halves(self.prefix, size)
            left_suffix, right_suffix = _halves(self.suffix, size)
            left_total, right_total = left_prefix[:, :, -1:], right_prefix[:, :, -1:]
            self.levels.append(Level(size, left_total, right_prefix, left_suffix))
            self.prefix = torch.cat([left_prefix, right_prefix * left_total], 2).flatten(1, 2)
            self.suffix = torch.cat([left_suffix * right_total, right_suffix], 2).flatten(1, 2)
            size *= 2

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """A: [n,C,C], zero above the diagonal."""
        if self.prefix.shape[-1] < q.shape[-1]:
            return self.scores(*self._ones()) * (q @ k.mT)
        scores = q.new_zeros(*q.shape[:2], q.shape[1])
        scores.diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
        for level in self.levels:
            right_q, left_k = _halves(q, level.size)[1], _halves(k, level.size)[0]
            block = _matmul(right_q * level.right_prefix, (left_k * level.left_suffix).mT)
            _off_diagonal(scores, level.size).copy_(block)
        return scores

    def backward(
        self, q: Tensor, k: Tensor, dscores: Tensor, dprefix: Tensor, dsuffix: Tensor, dq: Tensor, dk: Tensor
    ) -> Tensor:
        """Adds the gradient of the scores to dq and dk and returns df. Overwrites dprefix and dsuffix."""
        if self.prefix.shape[-1] < q.shape[-1]:
            ones, _ = self._ones()
            dproduct = dscores * self.scores(ones, ones)
            dq += dproduct @ k
            dk += dproduct.mT @ q
            unused = torch.zeros_like(ones)
            return self.backward(ones, ones, dscores * (q @ k.mT), dprefix, dsuffix, unused, unused)

        diagonal = dscores.diagonal(dim1=1, dim2=2)[..., None]
        dq.addcmul_(diagonal, k)
        dk.addcmul_(diagonal, q)
        for size, left_total, right_prefix, left_suffix in reversed(self.levels):
            (dleft_prefix, dright_prefix), (dleft_suffix, _) = _halves(dprefix, size), _halves(dsuffix, size)
            dleft_total = (dright_prefix * right_prefix).sum(2, keepdim=True)
            dright_total = (dleft_suffix * left_suffix).sum(2, keepdim=True)
            dright_prefix *= left_total
            dleft_suffix *= right_prefix[:, :, -1:]
            dleft_prefix[:, :, -1:] += dleft_total
            dright_prefix[:, :, -1:] += dright_total

            right_q, left_k = _halves(q, size)[1], _halves(k, size)[0]
            block = _off_diagonal(dscores, size).contiguous()
            dright_q = _matmul(block, left_k * left_suffix)
            dleft_k = _matmul(block.mT, right_q * right_prefix)
            _halves(dq, size)[1].addcmul_(dright_q, right_prefix)
            _halves(dk, size)[0].addcmul_(dleft_k, left_suffix)
            dright_prefix.addcmul_(dright_q, right_q)
            dleft_suffix.addcmul_(dleft_k, left_k)
        return dprefix

    def _ones(self) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(self.prefix)
        return ones, ones


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[n,C,D] -> the left and the right half of every block of 2 size tokens, views [n,C/2size,size,D]."""
    left, right = x.unflatten(1, (-1, 2, size)).unbind(2)
    return left, right


def _off_diagonal(scores: Tensor, size: int) -> Tensor:
    """[n,C,C] -> the (right, left) corner of every diagonal block of 2 size tokens, a view [n,C/2size,size,size]."""
    blocks = scores.unflatten(2, (-1, 2, size)).unflatten(1, (-1, 2, size))
    return blocks[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Batched product, without a GEMM where it is one row times one column or a single number times a row."""
    if a.shape[-2] == 1:
        return a * b if a.shape[-1] == 1 else (a * b.mT).sum(-1, keepdim=True)
    return a @ b
