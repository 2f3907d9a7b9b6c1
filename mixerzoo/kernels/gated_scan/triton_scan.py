"""The gated scan in Triton, `h_t = a_t h_{t-1} + x_t` with `a = exp(log_f)` or `exp(log_f + i theta)`, and its adjoint.

A program owns some channels of one sequence and walks its time in blocks of SEGMENTS x STEPS tokens. Segments lie
across threads, the steps of a segment inside one: each segment is reduced to its map `h -> a h + b`, an associative
scan over these maps gives the state before every segment, and a second walk over the steps, all still in registers,
the state before every token. So one value in STEPS crosses threads. Gates are only ever multiplied: exact for -inf.

Backward, with `a_t h_{t-1}` computed again from the state that the forward pass carried into the block:

    dx_t = dh_t + conj(a_{t+1}) dx_{t+1},  dlog_f_t + i dtheta_t = dx_t conj(a_t h_{t-1}),  dh_0 = conj(a_1) dx_1

`reverse` is a matter of addresses. `both` first walks from the other end, only to know what is carried into each block,
and then adds the two directions up in registers: every output is written once, nothing is flipped.
"""

# Tuples grow by `+`, step by step: Triton knows no starred expression, mypy no tuple that grows.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .triton_number import conjugate, cos_sin, plus, read, read_or_zero, times, write


@triton.jit(do_not_specialize=["sequences", "T", "slots"])
def scan_forward(
    x, log_f, theta, initial_state, cu_seqlens, h, final_state, carries, sequences, T, D, slots,
    COMPLEX: tl.constexpr, THETA_IN_TIME: tl.constexpr, REVERSE: tl.constexpr, BOTH: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENTS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    sequence, d, start, length, slot = _place(cu_seqlens, T, D, CHANNELS, SEGMENTS * STEPS)
    blocks, inside, step = tl.cdiv(length, SEGMENTS * STEPS), d < D, -D if REVERSE else D
    at = tl.arange(0, SEGMENTS)[:, None] * STEPS * step + d
    turn = _turn(theta, d, inside, COMPLEX, THETA_IN_TIME, ACC)
    if BOTH:
        carry = read_or_zero(initial_state, (sequences + sequence) * D, d, inside, COMPLEX, ACC)
        for i in tl.range(blocks, num_stages=STAGES):
            block = blocks - 1 - i
            write(carries, (slots + slot + block) * D, d, inside, carry)
            base, left = _block(start, length, block, D, inside, REVERSE, SEGMENTS, STEPS)
            a = _gates(log_f, theta, turn, base, at, step, left, COMPLEX, THETA_IN_TIME, STEPS, ACC)
            xs = _numbers(x, base, at, step, left, COMPLEX, STEPS, ACC)
            carry = _scan(a, xs, carry, True, SEGMENTS, STEPS)[STEPS]
        write(final_state, (sequences + sequence) * D, d, inside, carry)
        tl.debug_barrier()

    carry = read_or_zero(initial_state, sequence * D, d, inside, COMPLEX, ACC)
    for block in tl.range(blocks, num_stages=STAGES):
        write(carries, (slot + block) * D, d, inside, carry)
        base, left = _block(start, length, block, D, inside, REVERSE, SEGMENTS, STEPS)
        a = _gates(log_f, theta, turn, base, at, step, left, COMPLEX, THETA_IN_TIME, STEPS, ACC)
        xs = _numbers(x, base, at, step, left, COMPLEX, STEPS, ACC)
        before = _scan(a, xs, carry, False, SEGMENTS, STEPS)
        carry = before[STEPS]
        if BOTH:
            other = read(carries, (slots + slot + block) * D, d, inside, COMPLEX, ACC)
            behind = _scan(a, xs, other, True, SEGMENTS, STEPS)
        for u in tl.static_range(STEPS):
            y = plus(times(a[u], before[u]), xs[u])
            if BOTH:
                y = plus(y, plus(times(a[u], behind[u]), xs[u]))
            write(h, base, at + u * step, left > u, y)
    write(final_state, sequence * D, d, inside, carry)


@triton.jit(do_not_specialize=["sequences", "T", "slots"])
def scan_backward(
    dh, dfinal_state, x, log_f, theta, carries, cu_seqlens, dx, dlog_f, dtheta, dinitial_state, dcarries,
    sequences, T, D, slots,
    COMPLEX: tl.constexpr, THETA_IN_TIME: tl.constexpr, REVERSE: tl.constexpr, BOTH: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENTS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    sequence, d, start, length, slot = _place(cu_seqlens, T, D, CHANNELS, SEGMENTS * STEPS)
    blocks, inside, step = tl.cdiv(length, SEGMENTS * STEPS), d < D, -D if REVERSE else D
    at = tl.arange(0, SEGMENTS)[:, None] * STEPS * step + d
    turn = _turn(theta, d, inside, COMPLEX, THETA_IN_TIME, ACC)
    if BOTH:
        carry = read_or_zero(dfinal_state, (sequences + sequence) * D, d, inside, COMPLEX, ACC)
        for block in tl.range(blocks, num_stages=STAGES):
            write(dcarries, (slot + block) * D, d, inside, carry)
            base, left = _block(start, length, block, D, inside, REVERSE, SEGMENTS, STEPS)
            a = _gates(log_f, theta, turn, base, at, step, left, COMPLEX, THETA_IN_TIME, STEPS, ACC)
            dhs = _numbers(dh, base, at, step, left, COMPLEX, STEPS, ACC)
            carry = _adjoint(a, dhs, carry, False, SEGMENTS, STEPS)[STEPS]
        write(dinitial_state, (sequences + sequence) * D, d, inside, carry)
        tl.debug_barrier()

    carry = read_or_zero(dfinal_state, sequence * D, d, inside, COMPLEX, ACC)
    turned = tl.zeros((SEGMENTS, CHANNELS), ACC)
    for i in tl.range(blocks, num_stages=STAGES):
        block = blocks - 1 - i
        base, left = _block(start, length, block, D, inside, REVERSE, SEGMENTS, STEPS)
        a = _gates(log_f, theta, turn, base, at, step, left, COMPLEX, THETA_IN_TIME, STEPS, ACC)
        xs = _numbers(x, base, at, step, left, COMPLEX, STEPS, ACC)
        dhs = _numbers(dh, base, at, step, left, COMPLEX, STEPS, ACC)
        before = _scan(a, xs, read(carries, (slot + block) * D, d, inside, COMPLEX, ACC), False, SEGMENTS, STEPS)
        dxs = _adjoint(a, dhs, carry, True, SEGMENTS, STEPS)
        carry = dxs[STEPS]
        if BOTH:
            other = read(carries, (slots + slot + block) * D, d, inside, COMPLEX, ACC)
            behind = _scan(a, xs, other, True, SEGMENTS, STEPS)
            other = read(dcarries, (slot + block) * D, d, inside, COMPLEX, ACC)
            dxs_behind = _adjoint(a, dhs, other, False, SEGMENTS, STEPS)
        for u in tl.static_range(STEPS):
            mask = left > u
            dx_u = dxs[u]
            dgate = times(dx_u, conjugate(times(a[u], before[u])))
            if BOTH:
                dgate = plus(dgate, times(dxs_behind[u], conjugate(times(a[u], behind[u]))))
                dx_u = plus(dx_u, dxs_behind[u])
            write(dx, base, at + u * step, mask, dx_u)
            tl.store(dlog_f + base + at + u * step, dgate[0], mask=mask)
            if THETA_IN_TIME:
                tl.store(dtheta + base + at + u * step, dgate[1], mask=mask)
            elif COMPLEX:
                turned += tl.where(mask, dgate[1], 0.0)
    write(dinitial_state, sequence * D, d, inside, carry)
    if COMPLEX and not THETA_IN_TIME:
        tl.store(dtheta + sequence * D + d, tl.sum(turned, 0, keep_dims=True), mask=inside)


@triton.jit
def _scan(a, b, carry, BACKWARDS: tl.constexpr, SEGMENTS: tl.constexpr, STEPS: tl.constexpr):
    """`h_t = a_t h_{t-1} + b_t` over a block: the state before each token, and the one after the block."""
    FIRST: tl.constexpr = STEPS - 1 if BACKWARDS else 0
    END: tl.constexpr = -1 if BACKWARDS else STEPS
    NEXT: tl.constexpr = -1 if BACKWARDS else 1
    total, end = a[FIRST], b[FIRST]
    for u in tl.static_range(FIRST + NEXT, END, NEXT):
        total, end = times(a[u], total), plus(times(a[u], end), b[u])
    state, carry = _across(total, end, carry, BACKWARDS, SEGMENTS)
    before = ()
    for u in tl.static_range(FIRST, END, NEXT):
        before = (state,) + before if BACKWARDS else before + (state,)
        state = plus(times(a[u], state), b[u])
    return before + (carry,)


@triton.jit
def _adjoint(a, dh, carry, BACKWARDS: tl.constexpr, SEGMENTS: tl.constexpr, STEPS: tl.constexpr):
    """`dx_t = dh_t + conj(a_{t+1}) dx_{t+1}` over a block, with `conj(a_{t+1}) dx_{t+1}` as the state before t."""
    gates, handed_on = (), ()
    for u in tl.static_range(STEPS):
        gates = gates + (conjugate(a[u]),)
        handed_on = handed_on + (times(conjugate(a[u]), dh[u]),)
    states = _scan(gates, handed_on, carry, BACKWARDS, SEGMENTS, STEPS)
    dx = ()
    for u in tl.static_range(STEPS):
        dx = dx + (plus(dh[u], states[u]),)
    return dx + (states[STEPS],)


@triton.jit
def _across(a, b, carry, BACKWARDS: tl.constexpr, SEGMENTS: tl.constexpr):
    """Segments [SEGMENTS, CHANNELS] map h to a h + b: the state before each of them, and the one after them all."""
    zero = tl.zeros_like(b[0])
    if len(a) == 2:
        _, _, _, _, p, pi, q, qi = tl.associative_scan(
            (a[0], a[1], b[0], b[1], zero + 1, zero, zero, zero), 0, _then_complex, reverse=BACKWARDS
        )
        before = plus(times((p, pi), carry), (q, qi))
    else:
        _, _, p, q = tl.associative_scan((a[0], b[0], zero + 1, zero), 0, _then, reverse=BACKWARDS)
        before = plus(times((p,), carry), (q,))
    after = plus(times(a, before), b)
    last = tl.arange(0, SEGMENTS)[:, None] == (0 if BACKWARDS else SEGMENTS - 1)
    if len(a) == 2:
        return before, (_only(after[0], last), _only(after[1], last))
    else:
        return before, (_only(after[0], last),)


@triton.jit
def _then(a1, b1, p1, q1, a2, b2, p2, q2):
    """One run of segments after another. A run maps h to a h + b; without its last segment, to p h + q."""
    return a2 * a1, a2 * b1 + b2, p2 * a1, p2 * b1 + q2


@triton.jit
def _then_complex(a1, ai1, b1, bi1, p1, pi1, q1, qi1, a2, ai2, b2, bi2, p2, pi2, q2, qi2):
    a, ai = a2 * a1 - ai2 * ai1, a2 * ai1 + ai2 * a1
    b, bi = a2 * b1 - ai2 * bi1 + b2, a2 * bi1 + ai2 * b1 + bi2
    p, pi = p2 * a1 - pi2 * ai1, p2 * ai1 + pi2 * a1
    q, qi = p2 * b1 - pi2 * bi1 + q2, p2 * bi1 + pi2 * b1 + qi2
    return a, ai, b, bi, p, pi, q, qi


@triton.jit
def _only(x, row):
    return tl.sum(tl.where(row, x, 0.0), 0, keep_dims=True)


@triton.jit
def _place(cu_seqlens, T, D, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's sequence, channels [1, CHANNELS], first token, number of tokens, and first slot of carries."""
    columns = tl.cdiv(D, CHANNELS)
    sequence = (tl.program_id(0) // columns).to(tl.int64)
    d = (tl.program_id(0) % columns) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    if cu_seqlens is None:
        start = sequence * T
        end = start + T
    else:
        start = tl.load(cu_seqlens + sequence).to(tl.int64)
        end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    # No two sequences share a slot: each has as many blocks as its tokens fill, and one more.
    return sequence, d, start, (end - start).to(tl.int32), start // BLOCK + sequence


@triton.jit
def _block(start, length, block, D, inside, REVERSE: tl.constexpr, SEGMENTS: tl.constexpr, STEPS: tl.constexpr):
    """Finds where a block begins, and the tokens left from each segment on: [SEGMENTS, CHANNELS]."""
    passed = block * SEGMENTS * STEPS
    left = tl.where(inside, length - passed - tl.arange(0, SEGMENTS)[:, None] * STEPS, 0)
    if REVERSE:
        return (start + length - 1 - passed) * D, left
    else:
        return (start + passed) * D, left


@triton.jit
def _turn(theta, d, inside, COMPLEX: tl.constexpr, THETA_IN_TIME: tl.constexpr, ACC: tl.constexpr):
    """cos and sin of a theta that is the same for every token."""
    if COMPLEX and not THETA_IN_TIME:
        angle = tl.load(theta + d, mask=inside, other=0.0).to(ACC)
        return cos_sin(angle)
    else:
        return ()


@triton.jit
def _gates(
    log_f, theta, turn, base, at, step, left,
    COMPLEX: tl.constexpr, THETA_IN_TIME: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """a of every step, 1 beyond the sequence's end."""
    gates = ()
    for u in tl.static_range(STEPS):
        mask = left > u
        f = tl.exp(tl.load(log_f + base + at + u * step, mask=mask, other=0.0).to(ACC))
        if THETA_IN_TIME:
            angle = tl.load(theta + base + at + u * step, mask=mask, other=0.0).to(ACC)
            cosine, sine = cos_sin(angle)
            gates = gates + ((f * cosine, f * sine),)
        elif COMPLEX:
            gates = gates + ((tl.where(mask, f * turn[0], 1.0), tl.where(mask, f * turn[1], 0.0)),)
        else:
            gates = gates + ((f,),)
    return gates


@triton.jit
def _numbers(
    pointer, base, at, step, left, COMPLEX: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """The numbers of every step, 0 beyond the sequence's end, and 0 altogether where there is no tensor."""
    numbers = ()
    for u in tl.static_range(STEPS):
        numbers = numbers + (read_or_zero(pointer, base, at + u * step, left > u, COMPLEX, ACC),)
    return numbers
