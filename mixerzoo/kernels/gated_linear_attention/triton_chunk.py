"""The kernels share what they do within one chunk of C tokens: load tiles, form keys and gates, sum gates.

Products of gates are powers of two of sums of `g = log2 f`, and the sums are matrix products with zeros and ones.
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
def gates_operand(g, OPERAND: tl.constexpr):
    """g as it is summed. Where operands are bf16 it goes in fp16, which holds -60: as if a gate were f^(1 +- 2^-12)."""
    operand = g.to(OPERAND)
    return g.to(tl.float16) if operand.dtype == tl.bfloat16 else operand


@triton.jit
def sum_gates(g, weights, OPERAND: tl.constexpr, ACC: tl.constexpr):
    """`g @ weights`: for every column a sum over tokens, with `weights` [C,C]."""
    g = gates_operand(g, OPERAND)
    return matmul(g, weights, g.dtype, ACC)


@triton.jit
def sum_before(x, t, s, OPERAND: tl.constexpr, ACC: tl.constexpr):
    """For every column the sum of the columns before it. Where operands are bf16, x goes as two, right to 2^-16."""
    before = (s < t).to(OPERAND)
    if before.dtype == tl.bfloat16:
        high = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        return tl.dot((x - high).to(OPERAND), before, matmul(high, before, OPERAND, ACC), out_dtype=ACC)
    else:
        return matmul(x, before, OPERAND, ACC)


@triton.jit
def log2(x, FAST_MATH: tl.constexpr):
    """FAST_MATH: NVIDIA's instruction, right to 2^-22; tl.log2 spends forty of them on the last bits of fp32."""
    if FAST_MATH:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def reciprocal(x, FAST_MATH: tl.constexpr):
    """FAST_MATH: right to one unit in the last place; a division takes five times as many instructions."""
    if FAST_MATH:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return 1.0 / x


@triton.jit
def sigmoid(x, FAST_MATH: tl.constexpr):
    return reciprocal(1.0 + tl.exp2(x * -LOG2_E), FAST_MATH)


@triton.jit
def open_and_closed(x, FAST_MATH: tl.constexpr):
    """sigmoid(x), 2^-60 at the least, and sigmoid(-x), each to its own relative precision."""
    odds = tl.exp2(tl.minimum(x * -LOG2_E, -SMALLEST_LOG2_GATE, propagate_nan=tl.PropagateNan.ALL))
    opened = reciprocal(1.0 + odds, FAST_MATH)
    return opened, odds * opened


@triton.jit
def activate(q, ACTIVATION: tl.constexpr, FAST_MATH: tl.constexpr):
    if ACTIVATION == "silu":
        return q * sigmoid(q, FAST_MATH)
    elif ACTIVATION == "sigmoid":
        return sigmoid(q, FAST_MATH)
    else:
        return q


@triton.jit
def activation_gradient(q, dq, ACTIVATION: tl.constexpr, FAST_MATH: tl.constexpr):
    if ACTIVATION == "silu":
        s = sigmoid(q, FAST_MATH)
        return dq * (s * (1.0 + q * (1.0 - s)))
    elif ACTIVATION == "sigmoid":
        s = sigmoid(q, FAST_MATH)
        return dq * (s * (1.0 - s))
    else:
        return dq


@triton.jit
def keys_and_gates(
    source,
    log_f,
    bound,
    base,
    row,
    column,
    here,
    KIND: tl.constexpr,
    F_STRIDE: tl.constexpr,
    FAST_MATH: tl.constexpr,
    ACC: tl.constexpr,
):
    """k and g = log2 f, a tile; where `here` is False, k = 0 and g = 0.

    KIND is "logits": both are formed from a tile of logits, `source`, and the lower bound; or "channel" | "head":
    `source` is k already, and log f is loaded.
    """
    if KIND == "logits":
        opened, closed = open_and_closed(source, FAST_MATH)
        k = tl.where(here, (1.0 - bound) * closed, 0.0)
        g = log2(bound + (1.0 - bound) * opened, FAST_MATH)
    else:
        if KIND == "head":
            column = 0 * column
        k = source
        g = LOG2_E * load_tile(log_f, base, row, F_STRIDE, column, here, ACC)
        g = tl.maximum(g, SMALLEST_LOG2_GATE, propagate_nan=tl.PropagateNan.ALL)
    # Loaded gates are zero there already. But without a mask Triton would form g once more in every warp that sums it.
    return k, tl.where(here, g, 0.0)


@triton.jit
def logits_gradient(logits, dlog_f, dk, bound, here, FAST_MATH: tl.constexpr):
    """dlogits, and what sums over time to the lower bound's gradient, a tile."""
    opened, closed = open_and_closed(logits, FAST_MATH)
    df = dlog_f * reciprocal(bound + (1.0 - bound) * opened, FAST_MATH)
    df = tl.where(here, df - dk, 0.0)
    return df * (closed * opened * (1.0 - bound)), df * closed


@triton.jit
def chunk_rows(length, chunk, i, way, C: tl.constexpr):
    """(rows from the chunk's first on, which of them are tokens), in walking order: way 0 is ahead, 1 is back."""
    size = tl.minimum(length - chunk * C, C)
    return i + way * (size - 1 - 2 * i), i < size


@triton.jit
def load_lower_bound(lower_bound, head, column, K: tl.constexpr, ACC: tl.constexpr):
    """The lower bound [BK] that goes with logits; log f needs none."""
    if lower_bound is None:
        return 0.0
    else:
        return tl.load(lower_bound + head * K + column, mask=column < K, other=0.0).to(ACC)


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
def hold(x, FAST_MATH: tl.constexpr):
    """x, just loaded. Triton puts an operand's way through shared memory right behind its load, and all that is loaded
    later waits for that; of what comes out of here it doesn't know that it was loaded."""
    if FAST_MATH:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    else:
        return x


@triton.jit
def prefetch(pointer, base, row, stride, column, END: tl.constexpr, BLOCK: tl.constexpr, FAST_MATH: tl.constexpr):
    """Asks for what is loaded later, so that it is in the L2 cache by then.

    These are BLOCK columns from `column` on, up to END, of rows base + row, all of them within the tensor. FAST_MATH:
    NVIDIA's instruction, for a line of 128 bytes."""
    if FAST_MATH:
        LINE: tl.constexpr = 1024 // pointer.dtype.element_ty.primitive_bitwidth
        LINES: tl.constexpr = 1 if BLOCK <= LINE else 2 if BLOCK <= 2 * LINE else 4  # of at most 256 columns
        columns = tl.minimum(column + LINE * tl.arange(0, LINES)[:, None], END - 1)
        lines = pointer + base * stride + (row * stride + columns)
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [lines], tl.int32, False, 1)


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
    """Finds where a sequence's parts of `size` tokens lie in a buffer that all sequences share.

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
