"""Attention scores with a decay per channel, exact for every gate in [0, 1], as matrix products.

`A_ij = sum_c q_ic k_jc prod_{m=j+1..i} f_mc` for j <= i. Cut a block of 2s tokens into two halves. For i right and j
left the product of gates splits at the cut into (prefix of the right half up to i) * (suffix of the left half after j):

    A_right,left = Q_right K_left^T,        Q = q * prefix in its half,  K = k * suffix in its half,

and each half is the same problem again. So blocks double, log2(C) times: after the product, Q_right takes up the left
half's total and K_left the right half's. Every factor is a product of gates, hence in [0, 1]: nothing overflows, a
closed gate (f = 0) is an exact zero, and no difference of cumulative sums loses digits. The gradient is taken with
respect to f, not log f, so that it is exact at f = 0 too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Level(NamedTuple):
    """Keeps what the backward pass needs of one doubling: [n,C/2size,size,K], and [n,C/2size,1,K] for the totals."""

    size: int
    right_q: Tensor
    left_k: Tensor
    left_total: Tensor
    right_total: Tensor


class DecayTree(NamedTuple):
    """Holds the scores of a chunk and its decayed queries and keys.

    scores: [n,C,C], zero above the diagonal · q, k: [n,C,K] decayed from the start and to the end of the chunk, as
    the state that enters and the state that leaves need them · total: [n,1,K], all the gates' product."""

    scores: Tensor
    q: Tensor
    k: Tensor
    total: Tensor
    levels: list[Level]


def decay_tree(q: Tensor, k: Tensor, f: Tensor, keep_levels: bool = False) -> DecayTree:
    """q, k: [n,C,K], f: [n,C,K] or, one gate a head, [n,C,1]; C is a power of two."""
    if f.shape[-1] < q.shape[-1]:
        gates = decay_tree(torch.ones_like(f), torch.ones_like(f), f, keep_levels)
        return DecayTree(gates.scores * (q @ k.mT), q * gates.q, k * gates.k, gates.total, gates.levels)

    scores = q.new_zeros(*q.shape[:2], q.shape[1])
    scores.diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
    q, k, total, levels = _flush(q * f), k.clone(), _flush(f), []
    size = 1
    while size < f.shape[1]:
        right_q, left_k = _halves(q, size)[1], _halves(k, size)[0]
        left_total, right_total = total[:, 0::2, None], total[:, 1::2, None]
        _off_diagonal(scores, size).copy_(_matmul(right_q, left_k.mT))
        if keep_levels:
            levels.append(Level(size, right_q.clone(), left_k.clone(), left_total, right_total))
        right_q.copy_(_flush(right_q * left_total))
        left_k.copy_(_flush(left_k * right_total))
        total = _flush(left_total * right_total).squeeze(2)
        size *= 2
    return DecayTree(scores, q, k, total, levels)


def decay_tree_backward(
    q: Tensor, k: Tensor, f: Tensor, tree: DecayTree, dscores: Tensor, dtree_q: Tensor, dtree_k: Tensor, dtotal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, df from the gradients of the tree's scores, q, k and total. Overwrites those of q and k."""
    if f.shape[-1] < q.shape[-1]:
        ones = torch.ones_like(f)
        gates = decay_tree(ones, ones, f, keep_levels=True)
        dproduct = dscores * gates.scores
        dgate_q, dgate_k = (dtree_q * q).sum(-1, keepdim=True), (dtree_k * k).sum(-1, keepdim=True)
        _, _, df = decay_tree_backward(ones, ones, f, gates, dscores * (q @ k.mT), dgate_q, dgate_k, dtotal)
        return torch.baddbmm(dtree_q * gates.q, dproduct, k), torch.baddbmm(dtree_k * gates.k, dproduct.mT, q), df

    dq, dk = dtree_q, dtree_k
    for size, right_q, left_k, left_total, right_total in reversed(tree.levels):
        dright_q, dleft_k = _halves(dq, size)[1], _halves(dk, size)[0]
        dblock, dtotal = _off_diagonal(dscores, size).contiguous(), dtotal[:, :, None]
        dleft_total = dtotal * right_total + (dright_q * right_q).sum(2, keepdim=True)
        dright_total = dtotal * left_total + (dleft_k * left_k).sum(2, keepdim=True)
        dright_q.mul_(left_total).add_(_matmul(dblock, left_k))
        dleft_k.mul_(right_total).add_(_matmul(dblock.mT, right_q))
        dtotal = torch.cat([dleft_total, dright_total], 2).flatten(1, 2)
    df = dtotal.addcmul(dq, q)
    ddiagonal = dscores.diagonal(dim1=1, dim2=2)[..., None]
    return (dq * f).addcmul_(ddiagonal, k), dk.addcmul_(ddiagonal, q), df


def _flush(x: Tensor) -> Tensor:
    """Zero for what is nearly subnormal (below 1e-30 in fp32): arithmetic with such numbers is several times slower."""
    return F.hardshrink(x, 1e8 * torch.finfo(x.dtype).tiny)


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[n,C,D] -> the left and the right half of every block of 2 size tokens, views [n,C/2size,size,D]."""
    blocks = x.unflatten(1, (-1, 2, size))
    return blocks[:, :, 0], blocks[:, :, 1]


def _off_diagonal(scores: Tensor, size: int) -> Tensor:
    """[n,C,C] -> the (right, left) corner of every diagonal block of 2 size tokens, a view [n,C/2size,size,size]."""
    blocks = scores.unflatten(2, (-1, 2, size)).unflatten(1, (-1, 2, size))
    return blocks[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Batched product, without a GEMM where it is one row times one column or a single number times a row."""
    if a.shape[-2] == 1:
        return a * b if a.shape[-1] == 1 else (a * b.mT).sum(-1, keepdim=True)
    return a @ b
