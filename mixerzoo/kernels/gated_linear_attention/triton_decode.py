"""One token: `S = Diag(f) S + k v^T`, `y = q S`, from the raw inputs to the new state in one pass over it.

No matrix product: the state, read and written once, is all there is to move.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_chunk import (
    activate,
    keys_and_gates,
    load_first_state,
    load_lower_bound,
    load_tile,
    state_at,
    store_state,
    store_tile,
)


@triton.jit
def decode_kernel(
    q,
    k,
    logits,
    v,
    log_f,
    lower_bound,
    first_states,
    y,
    final_states,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid (rows, H, blocks of V). q, k or logits, v and y hold one token a row; `first_states` [1,rows,H,K,V] or None;
    `final_states` may be the same memory."""
    F_STRIDE: tl.constexpr = H if KIND == "head" else H * K
    row, head = tl.program_id(0), tl.program_id(1)
    base = row.to(tl.int64)
    k_index, v_index = tl.arange(0, BK)[:, None], tl.program_id(2) * BV + tl.arange(0, BV)[None, :]
    k_here, v_here = k_index < K, v_index < V
    source = logits if KIND == "logits" else k
    if log_f is not None:
        log_f += head * (F_STRIDE // H)
    bound = load_lower_bound(lower_bound, head, k_index, K, ACC)
    q_tile = scale * activate(load_tile(q + head * K, base, 0, H * K, k_index, k_here, ACC), ACTIVATION, False)
    source_tile = load_tile(source + head * K, base, 0, H * K, k_index, k_here, ACC)
    k_tile, g = keys_and_gates(source_tile, log_f, bound, base, 0, k_index, k_here, KIND, F_STRIDE, False, ACC)
    v_tile = load_tile(v + head * V, base, 0, H * V, v_index, v_here, ACC)

    state = load_first_state(first_states, 0, 0, row, head, k_index, v_index, H, K, V, BK, BV, ACC)
    state = tl.exp2(g) * state + k_tile * v_tile
    store_state(state_at(final_states, 0, 0, row, head, H, K, V), state, k_index, v_index, K, V, BK, BV)
    store_tile(y + head * V, tl.sum(q_tile * state, 0)[None, :], base, 0, H * V, v_index, v_here)
