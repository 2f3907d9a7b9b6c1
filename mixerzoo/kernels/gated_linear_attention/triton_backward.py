"""The backward kernel computes all gradients of a block of tokens and a head in one program.

A program has the state S that enters the block and the gradient dS that leaves it. `triton_forward` has stored the one
and `triton_states` the other.

With q^, k^, A, h and c of `triton_forward`, for the block in one piece, and dA_ts = dy_t . v_s for s <= t, else 0,

    dq^ = 2^h S dy + dA k^            dq = 2^(c - h) dq^
    dk^ = 2^h dS v + dA^T q^          dk = 2^(h - c) dk^
    dv  = 2^h k^ dS + A^T dy

A gate's gradient `d log f_t` is the sum of all products of a query side i >= t and a key side j < t, over tokens of the
block, S and dS. With E = k^ dk^ - q^ dq^ it is what S gives to all behind it, and then a running sum of E:

    d log f_t = 2^2h (S . dS) + sum_i q^_i 2^h (S dy_i) + sum_{i<t} E_i

The sums cancel but for rounding, and q^, k^ in E are the rounded ones that made dq^, dk^, so that little is left over.
`df_t = (d log f_t) / f_t` magnifies it nevertheless: a block with a gate below 2^FLOOR (of logits; where log gates are
given, nobody divides), or whose gates sum to less than -SPAN in some channel, is done again by `triton_backward_tree`.

For logits x and a lower bound b: `dx = (df - dk) (1-b) sigmoid(x) sigmoid(-x)`, `db = sum_t (df - dk) sigmoid(-x)`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_backward_tree import tree_backward
from .triton_chunk import (
    activate,
    activation_gradient,
    chunk_rows,
    find_segment,
    hold,
    keys_and_gates,
    load_lower_bound,
    load_state,
    load_tile,
    logits_gradient,
    matmul,
    prefetch,
    sequence_bounds,
    state_at,
    store_tile,
    sum_before,
    sum_gates,
    within,
)


@triton.jit(do_not_specialize=["T", "sequences"])
def backward_kernel(
    q,
    k,
    logits,
    v,
    log_f,
    lower_bound,
    dy,
    dq,
    dk,
    dlogits,
    dv,
    dlog_f,
    dlower_bound,
    block_states,
    block_gradients,
    cu_seqlens,
    T,
    sequences,
    k_end,
    v_end,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    WIDE: tl.constexpr,
    C: tl.constexpr,
    FACTORED: tl.constexpr,
    SPAN: tl.constexpr,
    FLOOR: tl.constexpr,
    FORGET: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST_WAY: tl.constexpr,
    LAST_WAY: tl.constexpr,
    FAST_MATH: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid (blocks of C tokens of all sequences, H). `block_states` and `block_gradients` [ways,blocks,H,K,V] are S
    ahead of every block and dS behind it, in walking order. `dlower_bound` is [blocks,H,K]. `k_end` and `v_end`
    are K and V up to whole tiles: known when compiled, they would unroll loops, which takes registers. FORGET: the
    tree keeps nothing in registers that was formed before it.

    Tiles are [K or V, C], time across, as in the forward kernel.
    """
    F_STRIDE: tl.constexpr = H if KIND == "head" else H * K
    SEVERAL: tl.constexpr = LAST_WAY - FIRST_WAY > 1
    slot, head, slots = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    sequence, block = find_segment(cu_seqlens, slot, sequences, T, C)
    row0, total = sequence_bounds(cu_seqlens, sequence, T)
    base, length = row0 + block * C, tl.minimum(total - block * C, C)
    source = logits if KIND == "logits" else k
    dsource = dlogits if KIND == "logits" else dk
    q, source, dq, dsource = q + head * K, source + head * K, dq + head * K, dsource + head * K
    v, dy, dv = v + head * V, dy + head * V, dv + head * V
    if KIND == "logits":
        dlower_bound += (slot.to(tl.int64) * H + head) * K
    else:
        log_f += head * (F_STRIDE // H)
        dlog_f += head * (F_STRIDE // H)

    if FACTORED:
        t, s = tl.arange(0, C)[None, :], tl.arange(0, C)[:, None]
        k_row, v_row, v_across = tl.arange(0, BK)[:, None], tl.arange(0, BV)[:, None], tl.arange(0, BV)[None, :]
        if length > 0:
            near = tl.minimum(t, length - 1)
            for k0 in range(0, k_end, BK):
                k_near = tl.minimum(k0 + tl.arange(0, BK)[None, :], K - 1)
                for axis in range(LAST_WAY - FIRST_WAY):
                    state = state_at(block_states, axis, slots, slot, head, H, K, V)
                    dstate = state_at(block_gradients, axis, slots, slot, head, H, K, V)
                    prefetch(state, 0, k_near, V, 0, V, V, FAST_MATH)
                    prefetch(dstate, 0, k_near, V, 0, V, V, FAST_MATH)
                prefetch(q, base, near, H * K, k0, K, BK, FAST_MATH)
                prefetch(source, base, near, H * K, k0, K, BK, FAST_MATH)
        deepest, smallest = tl.zeros((BK,), ACC), tl.zeros((BK, C), ACC)
        for way in range(FIRST_WAY, LAST_WAY):
            state = state_at(block_states, way - FIRST_WAY, slots, slot, head, H, K, V)
            dstate = state_at(block_gradients, way - FIRST_WAY, slots, slot, head, H, K, V)
            row, inside = chunk_rows(length, 0, t, way, C)
            da, a = tl.zeros((C, C), ACC), tl.zeros((C, C), ACC)  # transposed: [s,t]
            for v0 in range(0, v_end, BV):
                v_here = within(inside, v0 + v_row, V, BV)
                dy_tile = load_tile(dy, base, row, H * V, v0 + v_row, v_here, ACC).to(OPERAND)
                v_tile = load_tile(v, base, row, H * V, v0 + v_row, v_here, ACC)
                da += matmul(tl.trans(v_tile), hold(dy_tile, FAST_MATH), OPERAND, ACC)
            da = tl.where(s <= t, da, 0.0).to(OPERAND)
            dlog_f_head = tl.zeros((1, C), ACC)
            for k0 in range(0, k_end, BK):
                k_index = k0 + k_row
                dq_tile, dk_tile, through = tl.zeros((BK, C), ACC), tl.zeros((BK, C), ACC), tl.zeros((BK,), ACC)
                for v0 in range(0, v_end, BV):
                    v_here = within(inside, v0 + v_row, V, BV)
                    dy_tile = load_tile(dy, base, row, H * V, v0 + v_row, v_here, ACC).to(OPERAND)
                    v_tile = load_tile(v, base, row, H * V, v0 + v_row, v_here, ACC).to(OPERAND)
                    s_tile = load_state(state, k_index, v0 + v_across, K, V, BK, BV, OPERAND)
                    ds_tile = load_state(dstate, k_index, v0 + v_across, K, V, BK, BV, OPERAND)
                    s_tile = hold(s_tile, FAST_MATH)
                    through += tl.sum(s_tile.to(ACC) * ds_tile.to(ACC), 1)
                    dq_tile += matmul(s_tile, hold(dy_tile, FAST_MATH), OPERAND, ACC)
                    dk_tile += matmul(ds_tile, hold(v_tile, FAST_MATH), OPERAND, ACC)

                here = within(inside, k_index, K, BK)
                bound = load_lower_bound(lower_bound, head, k_index, K, ACC)
                q_tile = load_tile(q, base, row, H * K, k_index, here, q.dtype.element_ty)
                source_tile = load_tile(source, base, row, H * K, k_index, here, ACC)
                q_tile = scale * activate(hold(q_tile, FAST_MATH).to(ACC), ACTIVATION, FAST_MATH)
                k_tile, g = keys_and_gates(
                    source_tile, log_f, bound, base, row, k_index, here, KIND, F_STRIDE, FAST_MATH, ACC
                )
                c = sum_gates(g, tl.where(s <= t, 0.5, -0.5), OPERAND, ACC)  # c - h
                half = tl.sum(tl.where(t == C - 1, c, 0.0), 1)
                deepest = tl.minimum(deepest, half)
                ahead, back = tl.exp2(c), tl.exp2(-c)
                q_hat, k_hat = (q_tile * ahead).to(OPERAND), (k_tile * back).to(OPERAND)
                a += matmul(tl.trans(k_hat), q_hat, OPERAND, ACC)
                dq_tile *= tl.exp2(half)[:, None]
                dk_tile *= tl.exp2(half)[:, None]
                through = tl.exp2(2.0 * half) * through + tl.sum(q_hat.to(ACC) * dq_tile, 1)
                dq_tile += matmul(k_hat, da, OPERAND, ACC)
                dk_tile += matmul(q_hat, tl.trans(da), OPERAND, ACC)
                e = k_hat.to(ACC) * dk_tile - q_hat.to(ACC) * dq_tile
                dlog_f_tile = through[:, None] + sum_before(e, t, s, OPERAND, ACC)
                dq_tile, dk_tile = scale * ahead * dq_tile, back * dk_tile

                tl.debug_barrier()  # so that inputs are loaded again rather than kept in registers for all of the above
                q_tile = load_tile(q, base, row, H * K, k_index, here, ACC)
                dq_tile = activation_gradient(q_tile, dq_tile, ACTIVATION, FAST_MATH)
                if KIND == "logits":
                    source_tile = load_tile(source, base, row, H * K, k_index, here, ACC)
                    dk_tile, parts = logits_gradient(source_tile, dlog_f_tile, dk_tile, bound, here, FAST_MATH)
                    dbound, column = tl.sum(parts, 1), k0 + tl.arange(0, BK)
                    if SEVERAL:
                        dbound += tl.load(dlower_bound + column, mask=(column < K) & (0 * column + way > 0), other=0.0)
                    tl.store(dlower_bound + column, dbound, mask=column < K)
                elif KIND == "channel":
                    if SEVERAL:
                        stored = here & (0 * row + way > 0)
                        dlog_f_tile += load_tile(dlog_f, base, row, F_STRIDE, k_index, stored, ACC)
                    store_tile(dlog_f, dlog_f_tile, base, row, F_STRIDE, k_index, here)
                else:
                    dlog_f_head += tl.sum(tl.where(here, dlog_f_tile, 0.0), 0)[None, :]
                if SEVERAL:
                    dq_tile += load_tile(dq, base, row, H * K, k_index, here & (0 * row + way > 0), ACC)
                    dk_tile += load_tile(dsource, base, row, H * K, k_index, here & (0 * row + way > 0), ACC)
                store_tile(dq, dq_tile, base, row, H * K, k_index, here)
                store_tile(dsource, dk_tile, base, row, H * K, k_index, here)
            if KIND == "head":
                if SEVERAL:
                    dlog_f_head += load_tile(dlog_f, base, row, H, 0 * t, inside & (0 * row + way > 0), ACC)
                store_tile(dlog_f, dlog_f_head, base, row, H, 0 * t, inside)

            # Wide tiles of V: for each of them all gates are formed again.
            a = tl.where(s <= t, a, 0.0).to(OPERAND)
            wide_row, wide_across = tl.arange(0, WIDE)[:, None], tl.arange(0, WIDE)[None, :]
            for v0 in range(0, v_end, WIDE):
                v_here = within(inside, v0 + wide_row, V, WIDE)
                dy_tile = load_tile(dy, base, row, H * V, v0 + wide_row, v_here, ACC)
                dv_tile = matmul(dy_tile, tl.trans(a), OPERAND, ACC)
                for k0 in range(0, k_end, BK):
                    k_index = k0 + k_row
                    here = within(inside, k_index, K, BK)
                    bound = load_lower_bound(lower_bound, head, k_index, K, ACC)
                    ds_tile = load_state(dstate, k_index, v0 + wide_across, K, V, BK, WIDE, OPERAND)
                    source_tile = load_tile(source, base, row, H * K, k_index, here, ACC)
                    ds_tile = hold(ds_tile, FAST_MATH)
                    k_tile, g = keys_and_gates(
                        source_tile, log_f, bound, base, row, k_index, here, KIND, F_STRIDE, FAST_MATH, ACC
                    )
                    k_tile *= tl.exp2(sum_gates(g, s > t, OPERAND, ACC))
                    smallest = tl.minimum(smallest, g)
                    dv_tile += matmul(tl.trans(ds_tile), k_tile, OPERAND, ACC)
                if SEVERAL:
                    dv_tile += load_tile(dv, base, row, H * V, v0 + wide_row, v_here & (0 * row + way > 0), ACC)
                store_tile(dv, dv_tile, base, row, H * V, v0 + wide_row, v_here)
        least = tl.min(deepest, 0)
        steep = least < -0.5 * SPAN
        if KIND == "logits":
            steep = steep | (tl.min(tl.min(smallest, 1), 0) < FLOOR)
        zero = (least > 0.0).to(tl.int32) if FORGET else 0  # which the compiler doesn't know
        tl.debug_barrier()
    else:
        steep, zero = True, 0
    if steep:
        tree_backward(
            q, source, v, log_f, lower_bound, dy, dq, dsource, dv, dlog_f, dlower_bound, block_states, block_gradients,
            slot, slots, head, base, length, zero, k_end, v_end, scale,
            H, K, V, WIDE, C, KIND, ACTIVATION, FIRST_WAY, LAST_WAY, FAST_MATH, OPERAND, ACC,
        )  # fmt: skip
