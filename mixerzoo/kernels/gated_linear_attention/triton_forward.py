"""The forward kernel: a program walks one segment of one sequence and head chunk by chunk, the state S on chip.

With c_i = log2 f_1 ... f_i from the chunk's start and any number h per channel,

    q^_i = q_i 2^(c_i - h)     k^_j = k_j 2^(h - c_j)     A_ij = q^_i . k^_j, i >= j     2^(c_i - c_j) = f_{j+1} ... f_i
    S^ = 2^h S                 y_i = q^_i S^ + sum_{j<=i} A_ij v_j
    S <- 2^(c_C - h) (S^ + sum_j k^_j v_j^T)

h = c_C / 2 keeps the exponents within half of the chunk's sum, either way. A chunk in which some channel's gates would
sum to less than -SPAN ends before: exponents never leave fp32's range, for any gates, and one token always fits.

The schedule is the length of a segment: the whole sequence (one launch; many heads and rows), or a few chunks whose
first states `triton_states` has found before (few heads, long T).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_chunk import (
    activate,
    find_segment,
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
    store_tile,
    sum_gates,
    within,
)

# A round takes a 32nd of what is left, at the least, so that these suffice for any length.
ROUNDS = tl.constexpr(1024)


@triton.jit(do_not_specialize=["T", "sequences", "segment_size", "segment_slots", "block_slots"])
def forward_kernel(
    q,
    k,
    logits,
    v,
    log_f,
    lower_bound,
    first_states,
    y,
    block_states,
    final_states,
    cu_seqlens,
    T,
    sequences,
    segment_size,
    segment_slots,
    block_slots,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST_WAY: tl.constexpr,
    LAST_WAY: tl.constexpr,
    SEGMENTED: tl.constexpr,
    FAST_MATH: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid (segments, H, blocks of V). Ways are 0, ahead, and 1, back; a block of K is walked after the other: their y
    add up. States are [ways,slots,H,K,V]: `first_states` one a segment, or None; `block_states` one a BLOCK of tokens,
    or None; `final_states` one a sequence.

    Tiles are [K or V, C] here, time across: the matrix unit has its warps down the longer side.
    """
    F_STRIDE: tl.constexpr = H if KIND == "head" else H * K
    SEVERAL: tl.constexpr = LAST_WAY - FIRST_WAY > 1 or K > BK
    slot, head, v0 = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BV
    sequence, segment = slot, slot * 0
    if SEGMENTED:
        sequence, segment = find_segment(cu_seqlens, slot, sequences, T, segment_size)
    row0, total = sequence_bounds(cu_seqlens, sequence, T)
    begin = segment * segment_size
    length = tl.minimum(total - begin, segment_size)
    block0 = first_slot(cu_seqlens, sequence, T, BLOCK) + begin // BLOCK
    source = logits if KIND == "logits" else k
    q, source, v, y = q + head * K, source + head * K, v + head * V, y + head * V
    if log_f is not None:
        log_f += head * (F_STRIDE // H)

    t, s = tl.arange(0, C)[None, :], tl.arange(0, C)[:, None]
    v_index = v0 + tl.arange(0, BV)[:, None]
    if (length > 0) | (segment == 0):
        for way in tl.static_range(FIRST_WAY, LAST_WAY):
            axis = way - FIRST_WAY
            for k0 in range(0, K, BK):
                if SEVERAL:
                    tl.debug_barrier()  # y of other threads is read again
                k_index, k_across = k0 + tl.arange(0, BK)[:, None], k0 + tl.arange(0, BK)[None, :]
                bound = load_lower_bound(lower_bound, head, k_index, K, ACC)
                state = load_first_state(
                    first_states, axis, segment_slots, slot, head, k_across, v_index, H, K, V, BK, BV, ACC
                )
                if block_states is not None:
                    blocks = state_at(block_states, axis, block_slots, block0, head, H, K, V)
                owed = tl.zeros((BK,), ACC)  # S = 2^owed state
                done = length * 0
                # `while done < length`, for Triton 3.3: once, and as often again as chunks ending early make it.
                for again in range(2):
                    for _ in range(tl.where(again == 0, 1, tl.where(done < length, ROUNDS, 0))):
                        for _ in range(tl.cdiv(length - done, C)):
                            # The next token: of `first` are as many in its block as are walked from it on.
                            first = done + way * (length - 1 - 2 * done)
                            in_block = first % BLOCK
                            if block_states is not None:  # noqa: SIM102, while registers are free
                                if (done == 0) | (in_block == way * (BLOCK - 1)):
                                    entered = blocks + (first // BLOCK).to(tl.int64) * (H * K * V)
                                    store_state(
                                        entered, state * tl.exp2(owed)[None, :], k_across, v_index, K, V, BK, BV
                                    )
                            size = tl.minimum(length - done, BLOCK * (1 - way) + (2 * way - 1) * in_block + way)
                            size = tl.minimum(size, C)
                            base, row, inside = row0 + begin + first, t * (1 - 2 * way), t < size
                            here, v_here = within(inside, k_index, K, BK), within(inside, v_index, V, BV)
                            source_tile = load_tile(source, base, row, H * K, k_index, here, ACC)
                            q_tile = load_tile(q, base, row, H * K, k_index, here, q.dtype.element_ty)
                            v_tile = load_tile(v, base, row, H * V, v_index, v_here, ACC).to(OPERAND)
                            q_tile = hold(q_tile, FAST_MATH).to(ACC)
                            q_tile = scale * activate(q_tile, ACTIVATION, FAST_MATH)
                            k_tile, g = keys_and_gates(
                                source_tile, log_f, bound, base, row, k_index, here, KIND, F_STRIDE, FAST_MATH, ACC
                            )
                            c = sum_gates(g, s <= t, OPERAND, ACC)
                            half = 0.5 * tl.sum(tl.where(t == C - 1, c, 0.0), 1)
                            if tl.min(half, 0) < -0.5 * SPAN:
                                fits = (tl.min(c, 0) >= -SPAN).to(tl.int32)
                                size = tl.minimum(size, tl.maximum(tl.sum(fits, 0), 1))
                                half = 0.5 * tl.sum(tl.where(t == size - 1, c, 0.0), 1)
                                c = tl.where(t < size, c, float("inf"))  # k^ = 0, and nobody stores y

                            done += size
                            after = tl.minimum(done, length - 1)
                            near = row0 + begin + after + way * (length - 1 - 2 * after)
                            near_row = tl.minimum(t, length - 1 - after) * (1 - 2 * way)
                            prefetch(source, near, near_row, H * K, k0, K, BK, FAST_MATH)
                            prefetch(q, near, near_row, H * K, k0, K, BK, FAST_MATH)
                            prefetch(v, near, near_row, H * V, v0, V, BV, FAST_MATH)

                            c -= half[:, None]
                            q_tile = (q_tile * tl.exp2(c)).to(OPERAND)
                            k_tile = (k_tile * tl.exp2(-c)).to(OPERAND)
                            state *= tl.exp2(owed + half)[None, :]
                            owed = half
                            y_tile = matmul(state, q_tile, OPERAND, ACC)
                            a = tl.where(s <= t, matmul(tl.trans(k_tile), q_tile, OPERAND, ACC), 0.0)
                            y_tile += matmul(v_tile, a, OPERAND, ACC)
                            v_here = within(t < size, v_index, V, BV)
                            if SEVERAL:
                                stored = v_here & (0 * row + axis + k0 > 0)
                                y_tile += load_tile(y, base, row, H * V, v_index, stored, ACC)
                            store_tile(y, y_tile, base, row, H * V, v_index, v_here)
                            state += matmul(v_tile, tl.trans(k_tile), OPERAND, ACC)
                at_end = segment == 0 if way == 1 else begin + length == total
                if at_end:
                    last = state_at(final_states, axis, sequences, sequence, head, H, K, V)
                    store_state(last, state * tl.exp2(owed)[None, :], k_across, v_index, K, V, BK, BV)
