"""The forward kernel: a program walks the chunks of one segment of one sequence and head, the state S on chip.

    y_i = q_i pre_i S + sum_{j<=i} A_ij v_j        pre_i = f_1 ... f_i        from the chunk's start to i
    S  <- total S + sum_j (suf_j k_j) v_j^T        suf_j = f_{j+1} ... f_C    from behind j to its end

The schedule is the length of a segment: the whole sequence (one launch; many heads and rows), or a few chunks whose
first states `triton_states` has found before (few heads, long T). A_ij: see `triton_chunk`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_chunk import (
    activate,
    chunk_rows,
    find_segment,
    first_slot,
    keys_and_gates,
    load_first_state,
    load_gamma,
    load_tile,
    matmul,
    odd_half,
    pairs,
    reach,
    sequence_bounds,
    state_at,
    store_state,
    store_tile,
    sum_columns,
    two_parts,
    within,
)


@triton.jit
def forward_kernel(
    q,
    key,
    v,
    gate,
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
    PER_BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST_WAY: tl.constexpr,
    LAST_WAY: tl.constexpr,
    SEGMENTED: tl.constexpr,
    FAST_LOG2: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid (segments, H, blocks of V). Ways are 0, ahead, and 1, back; a block of K is walked after the other: their y
    add up. States are [ways,slots,H,K,V]: `first_states` one a segment, or None; `block_states` one a block of
    C PER_BLOCK tokens, or None; `final_states` one a sequence.

    Tiles are [K or V, C] here, time across: the matrix unit has its warps down the longer side.
    """
    GATE_STRIDE: tl.constexpr = H if GATE == "head" else H * K
    PARTS: tl.constexpr = BK // 16  # of a sum over K, one a warp
    SEVERAL: tl.constexpr = LAST_WAY - FIRST_WAY > 1 or K > BK
    slot, head, v0 = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BV
    sequence, segment = slot, slot * 0
    if SEGMENTED:
        sequence, segment = find_segment(cu_seqlens, slot, sequences, T, segment_size)
    row0, total = sequence_bounds(cu_seqlens, sequence, T)
    begin = segment * segment_size
    length = tl.minimum(total - begin, segment_size)
    chunks = tl.cdiv(length, C)
    block0 = first_slot(cu_seqlens, sequence, T, C * PER_BLOCK) + begin // (C * PER_BLOCK)
    q, key, v, y = q + head * K, key + head * K, v + head * V, y + head * V
    if GATE != "logits":
        gate += head * (GATE_STRIDE // H)

    t, s = tl.arange(0, C)[None, :], tl.arange(0, C)[:, None]
    v_index = v0 + tl.arange(0, BV)[:, None]
    if (length > 0) | (segment == 0):
        for way in range(FIRST_WAY, LAST_WAY):
            axis = way - FIRST_WAY
            for k0 in range(0, K, BK):
                if SEVERAL:
                    tl.debug_barrier()  # y of other threads is read again
                k_index, k_across = k0 + tl.arange(0, BK)[:, None], k0 + tl.arange(0, BK)[None, :]
                gamma = load_gamma(gate, head, k_index, K, GATE, ACC)
                state = load_first_state(
                    first_states, axis, segment_slots, slot, head, k_across, v_index, H, K, V, BK, BV, ACC
                )
                for n in range(chunks):
                    chunk = n + way * (chunks - 1 - 2 * n)
                    if block_states is not None:  # noqa: SIM102, before anything else is loaded, while registers are free
                        if (chunk % PER_BLOCK == way * (PER_BLOCK - 1)) | (n == 0):
                            block = block0 + chunk // PER_BLOCK
                            entered = state_at(block_states, axis, block_slots, block, head, H, K, V)
                            store_state(entered, state, k_across, v_index, K, V, BK, BV)
                    base = row0 + begin + chunk * C
                    row, inside = chunk_rows(length, chunk, t, way, C)
                    here, v_here = within(inside, k_index, K, BK), within(inside, v_index, V, BV)
                    q_tile = scale * activate(load_tile(q, base, row, H * K, k_index, here, ACC), ACTIVATION)
                    key_tile = load_tile(key, base, row, H * K, k_index, here, ACC)
                    v_tile = load_tile(v, base, row, H * V, v_index, v_here, ACC).to(OPERAND)
                    k, g = keys_and_gates(
                        key_tile, gate, gamma, base, row, k_index, here, GATE, GATE_STRIDE, FAST_LOG2, ACC
                    )
                    high, low = two_parts(g, OPERAND)

                    pre = tl.exp2(sum_columns(s <= t, high, low, ACC))
                    y_tile = matmul(state, q_tile * pre, OPERAND, ACC)
                    a = tl.zeros((PARTS, C, C), ACC)
                    for level in tl.static_range(LEVELS):
                        odd = odd_half(t, 2**level)
                        if level == 0:
                            w = tl.exp2(tl.where(odd, g, 0.0))
                        else:
                            w = tl.exp2(sum_columns(reach(t, s, 2**level), high, low, ACC))
                        x = tl.reshape((tl.where(odd, q_tile, k) * w).to(OPERAND), (PARTS, BK // PARTS, C))
                        products = matmul(tl.permute(x, (0, 2, 1)), x, OPERAND, ACC)
                        a += tl.where(pairs(t, s, 2**level)[None, :, :], products, 0.0)
                    a = tl.sum(a, 0) + tl.where(s == t, tl.sum(q_tile * k, 0)[None, :], 0.0)
                    y_tile += matmul(v_tile, a, OPERAND, ACC)
                    if SEVERAL:
                        again = v_here & (0 * row + axis + k0 > 0)
                        y_tile += load_tile(y, base, row, H * V, v_index, again, ACC)
                    store_tile(y, y_tile, base, row, H * V, v_index, v_here)

                    suf = tl.exp2(sum_columns(s > t, high, low, ACC))
                    state *= tl.exp2(tl.sum(g, 1))[None, :]
                    state += matmul(v_tile, tl.trans(k * suf), OPERAND, ACC)
                if (way == 1) & (segment == 0) | (way == 0) & (begin + length == total):
                    last = state_at(final_states, axis, sequences, sequence, head, H, K, V)
                    store_state(last, state, k_across, v_index, K, V, BK, BV)
