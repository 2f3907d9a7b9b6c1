"""What the kernels do within one chunk of C tokens: load tiles, form keys and gates, sum gates, compare tokens.

Products of gates are powers of two of sums of `g = log2 f`, and every sum starts at a reference point between the two
tokens it relates, so that no exponent is positive and no two large sums are subtracted (the decay tree):

    level m = C/2, ..., 2, 1 splits every block of 2m rows in an even and an odd half; c is where the odd one starts
    w_m(t) = f_c ... f_t in an odd half, f_{t+1} ... f_{c-1} in an even one: log2 w_m = R_m g, R_m of zeros and ones
    A_ij   = q_i w_m(i) . w_m(j) k_j, i in the odd and j in the even half of one block: each i > j at one level

A level is one tile X (rows of q w in odd halves, of k w in even ones), and all its A are entries of X X^T.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# A gate of 2^-60 forgets everything in fp32 and in fp64, and can still be divided by.
SMALLEST_LOG2_GATE = tl.constexpr(-60.0)


@triton.jit
def matmul(a, b, OPERAND: tl.constexpr, ACC: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision="ieee", out_dtype=ACC)


@triton.jit
def two_parts(x, OPERAND: tl.constexpr):
    """x = high + low to twice the operands' precision; low is not used where one operand holds x."""
    high = x.to(OPERAND)
    return high, (x - high.to(x.dtype)).to(OPERAND)


@triton.jit
def sum_rows(chosen, high, low, ACC: tl.constexpr):
    """`chosen @ (high + low)`: for every row, the sum over the rows that `chosen` [...,C,C] names."""
    weights = chosen.to(high.dtype)
    total = tl.dot(weights, high, input_precision="ieee", out_dtype=ACC)
    if high.dtype == tl.bfloat16:
        total = tl.dot(weights, low, total, out_dtype=ACC)
    return total


@triton.jit
def sum_columns(chosen, high, low, ACC: tl.constexpr):
    """`(high + low) @ chosen`: as `sum_rows`, of tiles with time across."""
    weights = chosen.to(high.dtype)
    total = tl.dot(high, weights, input_precision="ieee", out_dtype=ACC)
    if high.dtype == tl.bfloat16:
        total = tl.dot(low, weights, total, out_dtype=ACC)
    return total


@triton.jit
def same_block(i, j, m: tl.constexpr):
    return (i // (2 * m)) == (j // (2 * m))


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
    return same_block(i, j, m) & odd_half(i, m) & ((j // m) % 2 == 0)


@triton.jit
def level_weights(i, j, g, high, low, m: tl.constexpr, ACC: tl.constexpr):
    """w_m, [C,K]."""
    if m == 1:
        return tl.exp2(tl.where(odd_half(i, 1), g, 0.0))
    else:
        return tl.exp2(sum_rows(reach(i, j, m), high, low, ACC))


@triton.jit
def activate(q, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return q * tl.sigmoid(q)
    elif ACTIVATION == "sigmoid":
        return tl.sigmoid(q)
    else:
        return q


@triton.jit
def activation_gradient(q, dq, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        s = tl.sigmoid(q)
        return dq * s * (1.0 + q * (1.0 - s))
    elif ACTIVATION == "sigmoid":
        s = tl.sigmoid(q)
        return dq * s * (1.0 - s)
    else:
        return dq


@triton.jit
def log2(x, FAST_LOG2: tl.constexpr):
    """FAST_LOG2: NVIDIA's instruction, right to 2^-22; tl.log2 spends forty of them on the last bits of fp32."""
    if FAST_LOG2:
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def open_and_closed(x):
    """sigmoid(x) and sigmoid(-x), each to its own relative precision."""
    small = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + small)
    return tl.where(x >= 0, large, small * large), tl.where(x >= 0, small * large, large)


@triton.jit
def keys_and_gates(
    key,
    gate,
    gamma,
    base,
    row,
    column,
    here,
    GATE: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    FAST_LOG2: tl.constexpr,
    ACC: tl.constexpr,
):
    """k and g = log2 f, a tile; where `here` is False, k = 0 and g = 0.

    GATE is "logits": key are logits and gamma the lower bound; or "channel" | "head": log f is loaded.
    """
    if GATE == "logits":
        opened, closed = open_and_closed(key)
        k = tl.where(here, (1.0 - gamma) * closed, 0.0)
        g = tl.where(here, log2(gamma + (1.0 - gamma) * opened, FAST_LOG2), 0.0)
    else:
        k = key
        if GATE == "head":
            column = 0 * column
        g = LOG2_E * load_tile(gate, base, row, GATE_STRIDE, column, here, ACC)
    return k, tl.maximum(g, SMALLEST_LOG2_GATE)


@triton.jit
def chunk_rows(length, chunk, i, way, C: tl.constexpr):
    """(rows from the chunk's first on, which of them are tokens), in walking order: way 0 is ahead, 1 is back."""
    size = tl.minimum(length - chunk * C, C)
    return i + way * (size - 1 - 2 * i), i < size


@triton.jit
def load_gamma(gate, head, column, K: tl.constexpr, GATE: tl.constexpr, ACC: tl.constexpr):
    """The lower bound [BK] that goes with logits; else log f needs none."""
    if GATE == "logits":
        return tl.load(gate + head * K + column, mask=column < K, other=0.0).to(ACC)
    else:
        return 0.0


@triton.jit
def state_at(states, axis, slots, slot, head, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr):
    """Pointer to [axis,slot,head] of states [ways,slots,H,K,V]."""
    return states + ((slot + axis * slots).to(tl.int64) * H + head) * (K * V)


@triton.jit
def load_tile(pointer, base, row, stride, column, here, ACC: tl.constexpr):
    """Rows base + row, of which only the scalar needs 64 bits."""
    return tl.load(pointer + base * stride + (row * stride + column), mask=here, other=0.0).to(ACC)


@triton.jit
def store_tile(pointer, tile, base, row, stride, column, here):
    tile = tile.to(pointer.dtype.element_ty)
    tl.store(pointer + base * stride + (row * stride + column), tile, mask=here)


@triton.jit
def within(inside, column, size: tl.constexpr, BLOCK: tl.constexpr):
    """`inside`, and column < size. Where blocks fill `size` nothing is compared: masks cost registers."""
    if size % BLOCK == 0:
        return inside
    else:
        return inside & (column < size)


@triton.jit
def load_state(pointer, k, v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, ACC: tl.constexpr):
    """The entries k x v of a state, laid out as k and v are broadcast."""
    if K % BK == 0 and V % BV == 0:
        return tl.load(pointer + k * V + v).to(ACC)
    else:
        return tl.load(pointer + k * V + v, mask=(k < K) & (v < V), other=0.0).to(ACC)


@triton.jit
def load_first_state(
    states,
    axis,
    slots,
    slot,
    head,
    k,
    v,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    ACC: tl.constexpr,
):
    """`load_state` of [axis,slot,head]; zero where there are no states."""
    if states is None:
        return (0 * (k + v)).to(ACC)
    else:
        return load_state(state_at(states, axis, slots, slot, head, H, K, V), k, v, K, V, BK, BV, ACC)


@triton.jit
def store_state(pointer, state, k, v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    state = state.to(pointer.dtype.element_ty)
    if K % BK == 0 and V % BV == 0:
        tl.store(pointer + k * V + v, state)
    else:
        tl.store(pointer + k * V + v, state, mask=(k < K) & (v < V))


@triton.jit
def sequence_bounds(cu_seqlens, sequence, T):
    """(first row, length) of a sequence: a row of the batch, or a packed document."""
    if cu_seqlens is None:
        return sequence.to(tl.int64) * T, T
    else:
        first = tl.load(cu_seqlens + sequence).to(tl.int64)
        return first, (tl.load(cu_seqlens + sequence + 1).to(tl.int64) - first).to(tl.int32)


@triton.jit
def first_slot(cu_seqlens, sequence, T, size):
    """Where a sequence's parts of `size` tokens lie in a buffer that all sequences share.

    Document n needs at most ceil(length / size) slots, one if it is empty, and has them from start/size + n on: no
    prefix sum over the documents, and no two overlap.
    """
    if cu_seqlens is None:
        return sequence * tl.cdiv(T, size)
    else:
        return (tl.load(cu_seqlens + sequence) // size).to(tl.int32) + sequence


@triton.jit
def find_segment(cu_seqlens, slot, sequences, T, size):
    """(sequence, number of the segment in it) of a slot: bisection over the sequences' first slots."""
    if cu_seqlens is None:
        per_sequence = tl.cdiv(T, size)
        return slot // per_sequence, slot % per_sequence
    else:
        low, high = slot * 0, slot * 0 + sequences
        while high - low > 1:
            middle = (low + high) // 2
            before = first_slot(cu_seqlens, middle, T, size) <= slot
            low, high = tl.where(before, middle, low), tl.where(before, high, middle)
        return low, slot - first_slot(cu_seqlens, low, T, size)
