"""States between parts of a sequence, so that what happens within the parts can happen at the same time.

    S  <- total S + sum_j (suf_j k_j) v_j^T        walking ahead: what every part starts from
    dS <- total dS + sum_i (pre_i q_i) dy_i^T      the adjoint, walking back: the gradient that every part ends with

Entries of a state don't meet here, so that a program owns a block of them, for all of a sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_chunk import (
    activate,
    chunk_rows,
    first_slot,
    hold,
    keys_and_gates,
    load_first_state,
    load_lower_bound,
    load_tile,
    matmul,
    prefetch,
    sequence_bounds,
    state_at,
    store_state,
    sum_gates,
    within,
)


@triton.jit(do_not_specialize=["T", "sequences", "part_slots", "part_size"])
def states_kernel(
    q,
    k,
    logits,
    v,
    log_f,
    lower_bound,
    outer_states,
    part_states,
    last_states,
    cu_seqlens,
    T,
    sequences,
    part_slots,
    part_size,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST_WAY: tl.constexpr,
    ADJOINT: tl.constexpr,
    FAST_MATH: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid (ways * sequences, H, blocks of K * blocks of V). `part_states` [ways,slots,H,K,V] takes the
    state that each part of `part_size` tokens is entered with; `outer_states` [ways,sequences,H,K,V] or None is
    what the walk begins with, `last_states` or None takes what it ends with. For the adjoint v is dy."""
    directed, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, axis = directed % sequences, directed // sequences
    way = FIRST_WAY + axis
    from_the_end = (way == 1) != ADJOINT
    V_BLOCKS: tl.constexpr = (V + BV - 1) // BV
    t, s = tl.arange(0, C)[None, :], tl.arange(0, C)[:, None]
    k0, v0 = block // V_BLOCKS * BK, block % V_BLOCKS * BV
    k_index, v_across = k0 + tl.arange(0, BK)[:, None], v0 + tl.arange(0, BV)[None, :]
    row0, total = sequence_bounds(cu_seqlens, sequence, T)
    source = logits if KIND == "logits" else k
    q, source, v = q + head * K, source + head * K, v + head * V
    bound = load_lower_bound(lower_bound, head, k_index, K, ACC)
    F_STRIDE: tl.constexpr = H if KIND == "head" else H * K
    if log_f is not None:
        log_f += head * (F_STRIDE // H)

    parts = tl.maximum(tl.cdiv(total, part_size), 1)
    first = first_slot(cu_seqlens, sequence, T, part_size)
    state = load_first_state(outer_states, axis, sequences, sequence, head, k_index, v_across, H, K, V, BK, BV, ACC)
    part_states = state_at(part_states, axis, part_slots, first, head, H, K, V)
    for n in range(parts):
        part = tl.where(from_the_end, parts - 1 - n, n)
        length = tl.minimum(total - part * part_size, part_size)
        store_state(part_states + part.to(tl.int64) * (H * K * V), state, k_index, v_across, K, V, BK, BV)
        chunks = tl.cdiv(length, C)
        for m in range(chunks):
            chunk = tl.where(from_the_end, chunks - 1 - m, m)
            first_token = part * part_size + chunk * C
            base = row0 + first_token
            v_row, inside = chunk_rows(length, chunk, s, way, C)
            v_tile = load_tile(v, base, v_row, H * V, v_across, within(inside, v_across, V, BV), ACC).to(OPERAND)
            row, inside = chunk_rows(length, chunk, t, way, C)
            k_here = within(inside, k_index, K, BK)
            source_tile = load_tile(source, base, row, H * K, k_index, k_here, ACC)
            if ADJOINT:
                q_tile = load_tile(q, base, row, H * K, k_index, k_here, ACC)
            v_tile = hold(v_tile, FAST_MATH)

            near = tl.minimum(tl.maximum(first_token + tl.where(from_the_end, -C, C), 0), total - 1)
            near_row = tl.minimum(t, total - 1 - near)
            prefetch(v, row0 + near, near_row, H * V, v0, V, BV, FAST_MATH)
            prefetch(source, row0 + near, near_row, H * K, k0, K, BK, FAST_MATH)
            if ADJOINT:
                prefetch(q, row0 + near, near_row, H * K, k0, K, BK, FAST_MATH)

            k_tile, g = keys_and_gates(
                source_tile, log_f, bound, base, row, k_index, k_here, KIND, F_STRIDE, FAST_MATH, ACC
            )
            if ADJOINT:
                tile = scale * activate(q_tile, ACTIVATION, FAST_MATH) * tl.exp2(sum_gates(g, s <= t, OPERAND, ACC))
            else:
                tile = k_tile * tl.exp2(sum_gates(g, s > t, OPERAND, ACC))
            state = tl.exp2(tl.sum(g, 1))[:, None] * state + matmul(tile, v_tile, OPERAND, ACC)
    if last_states is not None:
        last = state_at(last_states, axis, sequences, sequence, head, H, K, V)
        store_state(last, state, k_index, v_across, K, V, BK, BV)
