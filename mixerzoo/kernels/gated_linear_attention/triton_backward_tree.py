"""The gradients of a block of tokens whose gates are too small for `triton_backward`, or in fp32: the decay tree.

Every sum of g = log2 f starts at a reference point between the two tokens it relates, so that no exponent is positive
and no two large sums are subtracted:

    level m = 32, 16, ..., 2, 1 splits every block of 2m rows in an even and an odd half; c is where the odd one starts
    w_m(t) = f_c ... f_t in an odd half, f_{t+1} ... f_{c-1} in an even one: log2 w_m = R_m g, R_m of zeros and ones
    A_ij   = q_i w_m(i) . w_m(j) k_j, i in the odd and j in the even half of one block: each i > j at one level

A level is one tile X (rows of q w in odd halves, of k w in even ones), all its A are entries of X X^T, and

    dX = sym(dA) X      dq, dk: w dX in odd, even halves      E = X dX:   d log f += R_m^T E
    dq_i  = pre_i (S dy_i) + ...          pre_i = f_1 ... f_i          E = q dq over the rows i >= t
    dk_j  = suf_j (dS v_j) + ...          suf_j = f_{j+1} ... f_C      E = k dk over the rows j < t, and total (S . dS)
    dv_j  = dS^T (suf_j k_j) + sum_{i>=j} A_ij dy_i

All that is added to d log f_t has the factor f_t: nothing cancels, and `df_t = (d log f_t) / f_t` stays precise for the
smallest gates. Levels below 16 are tiles [4,16,K] of sub-blocks, those above add sums over whole sub-blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_chunk import (
    activate,
    activation_gradient,
    chunk_rows,
    gates_operand,
    keys_and_gates,
    load_lower_bound,
    load_state,
    load_tile,
    logits_gradient,
    matmul,
    state_at,
    store_tile,
    within,
)


@triton.jit
def odd_half(i, m: tl.constexpr):
    return (i // m) % 2 == 1


@triton.jit
def reach(i, j, m: tl.constexpr):
    """R_m: the gates j between row i and the middle of its block."""
    same_half = (i // m) == (j // m)
    return same_half & ((odd_half(i, m) & (j <= i)) | ((i // m) % 2 == 0) & (j > i))


@triton.jit
def pairs(i, j, m: tl.constexpr):
    """The rows i and columns j whose A_ij is level m's."""
    return ((i // (2 * m)) == (j // (2 * m))) & odd_half(i, m) & ((j // m) % 2 == 0)


@triton.jit
def level_weights(i, j, g, summed, m: tl.constexpr, ACC: tl.constexpr):
    """w_m, [C,K]."""
    if m == 1:
        return tl.exp2(tl.where(odd_half(i, 1), g, 0.0))
    else:
        return tl.exp2(matmul(reach(i, j, m), summed, summed.dtype, ACC))


@triton.jit
def other_blocks(b, c, m: tl.constexpr):
    """The sub-blocks c that lie between b and the middle of b's 2m sub-blocks, whole."""
    return ((b // m) == (c // m)) & ((odd_half(b, m) & (c < b)) | (((b // m) % 2 == 0) & (c > b)))


@triton.jit
def sum_blocks(chosen, x):
    """[B,1,K]: for every sub-block, the sum over the sub-blocks that `chosen` [B,B] names of their rows x [B,16,K]."""
    return tl.sum(tl.where(chosen[:, :, None], tl.sum(x, 1)[None, :, :], 0.0), 1)[:, None, :]


@triton.jit
def flat(x):
    return tl.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]))


@triton.jit
def span(rows, blocks, g, summed, ACC: tl.constexpr):
    """Products of gates [B,16,K]: over the rows that `rows` [B,16,16] names in a sub-block, and over whole `blocks`."""
    return tl.exp2(matmul(rows, summed, summed.dtype, ACC) + sum_blocks(blocks, g))


@triton.jit
def spread(rows, blocks, e, OPERAND: tl.constexpr, ACC: tl.constexpr):
    """The adjoint of `span` for the logarithms of the gates, `rows` and `blocks` transposed."""
    return matmul(rows, e, OPERAND, ACC) + sum_blocks(blocks, e)


@triton.jit
def tree_backward(
    q,
    source,
    v,
    log_f,
    lower_bound,
    dy,
    dq,
    dsource,
    dv,
    dlog_f,
    dlower_bound,
    block_states,
    block_gradients,
    slot,
    slots,
    head,
    base,
    length,
    zero,
    k_end,
    v_end,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDE: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST_WAY: tl.constexpr,
    LAST_WAY: tl.constexpr,
    FAST_MATH: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
):
    """A block's gradients, `length` <= C tokens from row `base` on; the tensors' pointers are at the head. `zero` is 0;
    where the compiler doesn't know that, what it is added to is formed here, and not kept in registers from before."""
    base, length = base + zero, length + zero
    BK: tl.constexpr = 16
    BV: tl.constexpr = 16
    BLOCKS: tl.constexpr = C // 16
    LEVELS: tl.constexpr = (BLOCKS > 1) + (BLOCKS > 2)
    F_STRIDE: tl.constexpr = H if KIND == "head" else H * K
    SEVERAL: tl.constexpr = LAST_WAY - FIRST_WAY > 1
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    b, c = tl.arange(0, BLOCKS)[:, None], tl.arange(0, BLOCKS)[None, :]
    in_block = tl.arange(0, BLOCKS)[:, None, None]
    i, j = 0 * in_block + tl.arange(0, 16)[None, :, None], 0 * in_block + tl.arange(0, 16)[None, None, :]
    k_column, v_column = tl.arange(0, BK), tl.arange(0, BV)[None, :]
    for way in range(FIRST_WAY, LAST_WAY):
        state = state_at(block_states, way - FIRST_WAY, slots, slot, head, H, K, V)
        dstate = state_at(block_gradients, way - FIRST_WAY, slots, slot, head, H, K, V)
        row, inside = chunk_rows(length, 0, t, way, C)
        row16, inside16 = chunk_rows(length, 0, 16 * in_block + tl.arange(0, 16)[None, :, None], way, C)

        dlog_f_head = tl.zeros((BLOCKS, 16, 1), ACC)
        # In parts, each of which adds to what those before it stored: together they need too many registers.
        for part in tl.static_range(2 + (LEVELS > 0)):
            if SEVERAL or part > 0:
                tl.debug_barrier()
            if part > 0:
                a = tl.zeros((BLOCKS, 16, 16), ACC) if part == 1 else tl.zeros((C, C), ACC)
                da = tl.zeros((BLOCKS, 16, 16), ACC) if part == 1 else tl.zeros((C, C), ACC)
                for v0 in range(0, v_end, BV):
                    v_here = within(inside, v0 + v_column, V, BV)
                    dy_tile = load_tile(dy, base, row, H * V, v0 + v_column, v_here, ACC)
                    v_tile = load_tile(v, base, row, H * V, v0 + v_column, v_here, ACC)
                    if part == 1:
                        dy_tile, v_tile = tl.reshape(dy_tile, (BLOCKS, 16, BV)), tl.reshape(v_tile, (BLOCKS, 16, BV))
                        da += matmul(dy_tile, tl.permute(v_tile, (0, 2, 1)), OPERAND, ACC)
                    else:
                        da += matmul(dy_tile, tl.trans(v_tile), OPERAND, ACC)
                if part == 1:
                    diagonal = tl.sum(tl.where(i == j, da, 0.0), 2)[:, :, None]
                    da = tl.where(i > j, da, tl.permute(da, (0, 2, 1))).to(OPERAND)
                else:
                    da = tl.where(t > s, da, tl.trans(da)).to(OPERAND)
            for k0 in range(0, k_end, BK):
                column = k0 + k_column[None, None, :]
                here = within(inside16, column, K, BK)
                bound = load_lower_bound(lower_bound, head, column, K, ACC)
                source_tile = load_tile(source, base, row16, H * K, column, here, ACC)
                q_tile = scale * activate(load_tile(q, base, row16, H * K, column, here, ACC), ACTIVATION, FAST_MATH)
                k_tile, g = keys_and_gates(
                    source_tile, log_f, bound, base, row16, column, here, KIND, F_STRIDE, FAST_MATH, ACC
                )
                summed = gates_operand(g, OPERAND)

                if part == 0:
                    # Through the states on both sides.
                    dq_flat, dk_flat, between = tl.zeros((C, BK), ACC), tl.zeros((C, BK), ACC), tl.zeros((BK, BV), ACC)
                    for v0 in range(0, v_end, BV):
                        v_here = within(inside, v0 + v_column, V, BV)
                        s_tile = load_state(state, k0 + k_column[:, None], v0 + v_column, K, V, BK, BV, ACC)
                        ds_tile = load_state(dstate, k0 + k_column[:, None], v0 + v_column, K, V, BK, BV, ACC)
                        between += s_tile * ds_tile
                        dy_tile = load_tile(dy, base, row, H * V, v0 + v_column, v_here, ACC)
                        dq_flat += matmul(dy_tile, tl.trans(s_tile), OPERAND, ACC)
                        v_tile = load_tile(v, base, row, H * V, v0 + v_column, v_here, ACC)
                        dk_flat += matmul(v_tile, tl.trans(ds_tile), OPERAND, ACC)
                    dlog_f_tile = (tl.exp2(tl.sum(tl.sum(g, 1), 0)) * tl.sum(between, 1))[None, None, :]
                    dq_tile = span(j <= i, c < b, g, summed, ACC) * tl.reshape(dq_flat, (BLOCKS, 16, BK))
                    dlog_f_tile += spread(i <= j, b < c, q_tile * dq_tile, OPERAND, ACC)
                    dk_tile = span(j > i, c > b, g, summed, ACC) * tl.reshape(dk_flat, (BLOCKS, 16, BK))
                    dlog_f_tile += spread(i > j, b > c, k_tile * dk_tile, OPERAND, ACC)

                elif part == 1:
                    # Within sub-blocks.
                    dq_tile, dk_tile = diagonal * k_tile, diagonal * q_tile
                    dlog_f_tile = tl.zeros((BLOCKS, 16, BK), ACC)
                    a += tl.where(i == j, tl.sum(q_tile * k_tile, 2)[:, :, None], 0.0)
                    for level in tl.static_range(4):
                        odd = odd_half(i, 2**level)
                        w = level_weights(i, j, g, summed, 2**level, ACC)
                        x = tl.where(odd, q_tile, k_tile) * w
                        a += tl.where(pairs(i, j, 2**level), matmul(x, tl.permute(x, (0, 2, 1)), OPERAND, ACC), 0.0)
                        both_ways = pairs(i, j, 2**level) | pairs(j, i, 2**level)
                        dx = matmul(tl.where(both_ways, da, 0.0), x, OPERAND, ACC)
                        dlog_f_tile += matmul(reach(j, i, 2**level), x * dx, OPERAND, ACC)
                        dq_tile += tl.where(odd, w * dx, 0.0)
                        dk_tile += tl.where(odd, 0.0, w * dx)

                else:
                    # Between tokens of different sub-blocks.
                    dq_tile, dk_tile = tl.zeros((BLOCKS, 16, BK), ACC), tl.zeros((BLOCKS, 16, BK), ACC)
                    dlog_f_tile = tl.zeros((BLOCKS, 16, BK), ACC)
                    for level in tl.static_range(LEVELS):
                        odd = odd_half(in_block, 2**level)
                        within_half = matmul((j <= i) == odd, summed, summed.dtype, ACC)
                        if level > 0:
                            within_half += sum_blocks(other_blocks(b, c, 2**level), g)
                        w = tl.exp2(within_half)
                        x = tl.where(odd, q_tile, k_tile) * w
                        x_flat = flat(x).to(OPERAND)
                        a += tl.where(pairs(t, s, 16 * 2**level), matmul(x_flat, tl.trans(x_flat), OPERAND, ACC), 0.0)
                        both_ways = pairs(t, s, 16 * 2**level) | pairs(s, t, 16 * 2**level)
                        dx = tl.reshape(matmul(tl.where(both_ways, da, 0.0), x_flat, OPERAND, ACC), (BLOCKS, 16, BK))
                        dlog_f_tile += matmul((i <= j) == odd, x * dx, OPERAND, ACC)
                        if level > 0:
                            dlog_f_tile += sum_blocks(other_blocks(c, b, 2**level), x * dx)
                        dq_tile += tl.where(odd, w * dx, 0.0)
                        dk_tile += tl.where(odd, 0.0, w * dx)

                # Loaded again: what is computed from it would otherwise be kept in registers for all of the above.
                q_tile = load_tile(q, base, row16, H * K, column, here, ACC)
                dq_tile = activation_gradient(q_tile, scale * dq_tile, ACTIVATION, FAST_MATH)
                if KIND == "logits":
                    source_tile = load_tile(source, base, row16, H * K, column, here, ACC)
                    dk_tile, parts = logits_gradient(source_tile, dlog_f_tile, dk_tile, bound, here, FAST_MATH)
                    dbound, known = tl.sum(tl.sum(parts, 1), 0), k0 + k_column < K
                    if SEVERAL or part > 0:
                        stored = known & (0 * k_column + way + part > 0)
                        dbound += tl.load(dlower_bound + k0 + k_column, mask=stored, other=0.0)
                    tl.store(dlower_bound + k0 + k_column, dbound, mask=known)
                elif KIND == "channel":
                    if SEVERAL or part > 0:
                        stored = here & (0 * row16 + way + part > 0)
                        dlog_f_tile += load_tile(dlog_f, base, row16, F_STRIDE, column, stored, ACC)
                    store_tile(dlog_f, dlog_f_tile, base, row16, F_STRIDE, column, here)
                else:
                    dlog_f_head += tl.sum(tl.where(here, dlog_f_tile, 0.0), 2)[:, :, None]
                if SEVERAL or part > 0:
                    dq_tile += load_tile(dq, base, row16, H * K, column, here & (0 * row16 + way + part > 0), ACC)
                    dk_tile += load_tile(dsource, base, row16, H * K, column, here & (0 * row16 + way + part > 0), ACC)
                store_tile(dq, dq_tile, base, row16, H * K, column, here)
                store_tile(dsource, dk_tile, base, row16, H * K, column, here)
            if part > 0:
                # Wide tiles of V: for each of them all gates are formed again.
                wide_column = zero + tl.arange(0, WIDE)[None, :]
                for v0 in range(0, v_end, WIDE):
                    here = within(inside, v0 + wide_column, V, WIDE)
                    dy_tile = load_tile(dy, base, row, H * V, v0 + wide_column, here, ACC)
                    if part == 1:
                        dy_tile = tl.reshape(dy_tile, (BLOCKS, 16, WIDE))
                        dv_tile = flat(matmul(tl.permute(a, (0, 2, 1)), dy_tile, OPERAND, ACC))
                        i_now, b_now = i + zero * v0, b + zero * v0
                        for k0 in range(0, k_end, BK):
                            column = k0 + k_column[None, None, :]
                            k_here = within(inside16, column, K, BK)
                            bound = load_lower_bound(lower_bound, head, column, K, ACC)
                            source_tile = load_tile(source, base, row16, H * K, column, k_here, ACC)
                            k_tile, g = keys_and_gates(
                                source_tile, log_f, bound, base, row16, column, k_here, KIND, F_STRIDE, FAST_MATH, ACC
                            )
                            suf = span(j > i_now, c > b_now, g, gates_operand(g, OPERAND), ACC)
                            ds_tile = load_state(dstate, k0 + k_column[:, None], v0 + wide_column, K, V, BK, WIDE, ACC)
                            dv_tile += matmul(flat(k_tile * suf), ds_tile, OPERAND, ACC)
                    else:
                        dv_tile = matmul(tl.trans(a), dy_tile, OPERAND, ACC)
                    if SEVERAL or part > 1:
                        stored = here & (0 * row + way + part > 1)
                        dv_tile += load_tile(dv, base, row, H * V, v0 + wide_column, stored, ACC)
                    store_tile(dv, dv_tile, base, row, H * V, v0 + wide_column, here)
        if KIND == "head":
            if SEVERAL:
                dlog_f_head += load_tile(dlog_f, base, row16, H, 0 * in_block, inside16 & (0 * row16 + way > 0), ACC)
            store_tile(dlog_f, dlog_f_head, base, row16, H, 0 * in_block, inside16)
