"""Gated linear attention in chunks, plain torch: O(T) time and memory, matrix products, no loop over tokens.

    inside a chunk      y  = A v,                       A: scores from the decay tree
    state entering it   y += (q * prefix) S             prefix: gates from the chunk's start
    state leaving it    S' = Diag(total) S + (k * suffix)^T v

Chunks are worked off in segments that stay in cache. The backward pass keeps the chunks' states, recomputes the rest.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exported_linear_attention import exported
from ..gated_scan.chunked import scan
from ..heads import shared
from ..packing import ChunkAlignment, align_to_chunks
from .decay_tree import decay_tree, decay_tree_backward
from .reference import recurrent_step

CHUNK = 64
SEGMENT_ELEMENTS = 2**19  # q of one segment; measured best on CPUs with 1 to 2 MiB of cache a core
SMALL_STATE = 32  # up to K V = 32 an elementwise scan over the state moves less than [C,C] scores


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_exporting() and cu_seqlens is None:
        return exported(q, k, v, log_f, initial_state)
    return chunked_with_gates(q, k, v, log_f.exp(), initial_state, cu_seqlens)


def chunked_with_gates(
    q: Tensor, k: Tensor, v: Tensor, f: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes the same from the gates f in [0, 1] themselves, which HGRN2 has without a logarithm."""
    if torch.compiler.is_exporting() and cu_seqlens is None:
        return exported(q, k, v, f.log(), initial_state)
    length, state_elements = q.shape[1], k.shape[-1] * v.shape[-1]
    if length == 1 and cu_seqlens is None:
        y, state = recurrent_step(q[:, 0], k[:, 0], v[:, 0], f[:, 0], initial_state)
        return y[:, None], state
    if state_elements <= SMALL_STATE:
        return _small(q, k, v, f, initial_state, cu_seqlens)

    chunk = min(CHUNK, 2 ** math.ceil(math.log2(length)))
    if cu_seqlens is None:
        if padding := -length % chunk:
            q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
            f = F.pad(f, (0, 0, 0, 0, 0, padding), value=1.0)
        y, leaving = _Chunked.apply(q, k, v, f, initial_state, chunk, None)
        return y[:, :length], leaving.view(initial_state.shape)

    alignment = align_to_chunks(cu_seqlens, length, chunk)
    slots = (1, alignment.num_chunks * chunk)
    q, k, v, f = (
        x.new_full((*slots, *x.shape[2:]), fill).index_copy(1, alignment.slot, x)
        for x, fill in ((q, 0.0), (k, 0.0), (v, 0.0), (f, 1.0))
    )
    y, leaving = _Chunked.apply(q, k, v, f, initial_state, chunk, alignment)
    final_state = torch.where(alignment.nonempty[:, None, None, None], leaving[alignment.last], initial_state)
    return y[:, alignment.slot], final_state


def _small(
    q: Tensor, k: Tensor, v: Tensor, f: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Holds the state of every token, which a state of few elements allows."""
    heads = initial_state.shape[1]
    k, v, f = (shared(x, heads) for x in (k, v, f))
    states, final_state = scan(f[..., None], k[..., None] * v[..., None, :], initial_state, cu_seqlens)
    q = shared(q, max(q.shape[2], heads)).unflatten(2, (heads, -1))  # [B,T,heads of state,readers of each,K]
    return (q[..., None] * states[:, :, :, None]).sum(-2).flatten(2, 3), final_state


class _Chunked(torch.autograd.Function):
    """Computes y: [B,T,O,V] and states: [1 or N,B S,K,V], after the last chunk or, packed, after every chunk.

    Adjoint, with S_n entering chunk n and dS_n the gradient that arrives at it: `dA = dy v^T`,
    `dS_n = (q * prefix)^T dy + Diag(total) dS_{n+1}`, `dv = A^T dy + (k * suffix) dS_{n+1}`, dq and dk likewise.

    Tensors with fewer heads than y's O are spread over them a segment at a time. The R = O/S heads of y that read one
    head of the state stand beside each other: [..O,C,.] is [..S,R C,.] to a product with the state.
    """

    @staticmethod
    def forward(ctx, q, k, v, f, initial_state, chunk: int, packing: ChunkAlignment | None):
        batch, states_of = q.shape[0], initial_state.shape[1]
        heads = max(q.shape[2], states_of)
        rows, num_chunks = batch * states_of, q.shape[1] // chunk
        readers = heads // states_of
        y = v.new_empty(*v.shape[:2], heads, v.shape[-1])
        states = q.new_zeros(num_chunks + 1, rows, q.shape[-1], v.shape[-1])
        if packing is None:
            states[0] = initial_state.flatten(0, 1)
        for start, stop in _segments(num_chunks, batch * heads * chunk * q.shape[-1]):
            q_, k_, v_, f_ = (_to_chunks(x, heads, chunk, start, stop) for x in (q, k, v, f))
            tree = decay_tree(q_, k_, f_)
            written, total = tree.k[::readers].mT @ v_[::readers], tree.total[::readers].mT
            update, total = (x.unflatten(0, (-1, rows)) for x in (written, total))
            if packing is not None:
                first, opening = _opening(packing, initial_state, start, stop)
                update, total = torch.where(first, update + total * opening, update), torch.where(first, 0, total)
            for n in range(stop - start):
                states[start + n + 1] = torch.addcmul(update[n], total[n], states[start + n])
            entering = states[start:stop] if packing is None else torch.where(first, opening, states[start:stop])
            local, reading = _beside(tree.scores @ v_, readers), _beside(tree.q, readers)
            _from_chunks(torch.baddbmm(local, reading, entering.flatten(0, 1)), y, chunk, start, stop)
        ctx.save_for_backward(q, k, v, f, initial_state, states)
        ctx.chunk, ctx.packing = chunk, packing
        return y, states[1:].clone() if packing else states[-1:].clone()

    @staticmethod
    def backward(ctx, dy, dleaving):
        q, k, v, f, initial_state, states = ctx.saved_tensors
        chunk, packing = ctx.chunk, ctx.packing
        num_chunks, rows, heads = states.shape[0] - 1, states.shape[1], dy.shape[2]
        readers = heads // initial_state.shape[1]
        dq, dk, dv, df = (torch.empty_like(x) for x in (q, k, v, f))
        dinitial_state = torch.zeros_like(initial_state)
        dstate = torch.zeros_like(states[0]) if packing else dleaving[0]
        for start, stop in reversed(_segments(num_chunks, q.shape[0] * heads * chunk * q.shape[-1])):
            q_, k_, v_, f_, dy_ = (_to_chunks(x, heads, chunk, start, stop) for x in (q, k, v, f, dy))
            tree = decay_tree(q_, k_, f_, keep_levels=True)
            dread, total = _beside(tree.q, readers).mT @ _beside(dy_, readers), tree.total[::readers].mT
            dread, total = (x.unflatten(0, (-1, rows)) for x in (dread, total))
            entering, carried_read, carried_total = states[start:stop], dread, total
            if packing is not None:
                first, opening = _opening(packing, initial_state, start, stop)
                entering = torch.where(first, opening, entering)
                carried_read, carried_total = torch.where(first, 0, dread), torch.where(first, 0, total)
            dafter = torch.empty_like(dread)
            for n in reversed(range(stop - start)):
                dafter[n] = dstate + dleaving[start + n] if packing else dstate
                dstate = torch.addcmul(carried_read[n], carried_total[n], dafter[n])
            if packing is not None:
                dopening = torch.where(first, dread + total * dafter, 0)
                dinitial_state.index_add_(0, packing.document[start:stop], dopening)

            before, after = entering.flatten(0, 1), dafter.flatten(0, 1)
            dtotal = (before * after).sum(-1)[:, None].sum_to_size(tree.total[::readers].shape)
            dtree_q = (_beside(dy_, readers) @ before.mT).reshape(q_.shape)
            # Keys, values and gates reach the state once, whoever reads it: the first reader stands for all.
            dtree_k, dtotal, dwritten = (
                _for_the_first(x, readers) for x in (v_[::readers] @ after.mT, dtotal, tree.k[::readers] @ after)
            )
            dv_ = torch.baddbmm(dwritten, tree.scores.mT, dy_)
            dq_, dk_, df_ = decay_tree_backward(q_, k_, f_, tree, dy_ @ v_.mT, dtree_q, dtree_k, dtotal)
            for x_, x in ((dq_, dq), (dk_, dk), (dv_, dv), (df_, df)):
                _from_chunks(x_, x, chunk, start, stop)
        return dq, dk, dv, df, dinitial_state if packing else dstate.view(initial_state.shape), None, None


def _beside(x: Tensor, readers: int) -> Tensor:
    """[n readers,C,D] -> [n,readers C,D]: the rows of all heads that read one state."""
    return x.reshape(-1, readers * x.shape[1], x.shape[2])


def _for_the_first(x: Tensor, readers: int) -> Tensor:
    """[n,...] -> [n readers,...]: x for the first of every state's readers, zero for the others."""
    if readers == 1:
        return x
    spread = x.new_zeros(x.shape[0], readers, *x.shape[1:])
    spread[:, 0] = x
    return spread.flatten(0, 1)


def _opening(packing: ChunkAlignment, initial_state: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Says which of the chunks open a document, [n,1,1,1], and the state each would then start from, [n,H,K,V]."""
    return packing.first[start:stop, None, None, None], initial_state[packing.document[start:stop]]


def _segments(num_chunks: int, chunk_elements: int) -> list[tuple[int, int]]:
    step = max(1, SEGMENT_ELEMENTS // chunk_elements)
    return [(start, min(start + step, num_chunks)) for start in range(0, num_chunks, step)]


def _to_chunks(x: Tensor, heads: int, chunk: int, start: int, stop: int) -> Tensor:
    """[B,T,H,D] -> [(stop-start) B heads,C,D], chunks start to stop, chunk-major and contiguous."""
    x = x[:, start * chunk : stop * chunk].unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
    if x.shape[2] < heads:
        x = x.unsqueeze(3).expand(-1, -1, -1, heads // x.shape[2], -1, -1)
    return x.reshape(-1, chunk, x.shape[-1])


def _from_chunks(x: Tensor, out: Tensor, chunk: int, start: int, stop: int) -> None:
    """Writes into `out` [B,T,H,D] the inverse of `_to_chunks`, summed over the heads that share one of out's."""
    B, _, H, D = out.shape
    x = x.view(stop - start, B, H, -1, chunk, D)
    x = x.squeeze(3) if x.shape[3] == 1 else x.sum(3)
    out[:, start * chunk : stop * chunk].view(B, stop - start, chunk, H, D).copy_(x.permute(1, 0, 3, 2, 4))
