"""Real and complex numbers in Triton: a number is a tuple of tensors, (re,) or (re, im).

Complex tensors lie in memory as torch.view_as_real gives them, re and im side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plus(a, b):
    if len(a) == 2:
        return a[0] + b[0], a[1] + b[1]
    else:
        return (a[0] + b[0],)


@triton.jit
def times(a, b):
    if len(a) == 2:
        return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]
    else:
        return (a[0] * b[0],)


@triton.jit
def conjugate(a):
    if len(a) == 2:
        return a[0], -a[1]
    else:
        return a


@triton.jit
def cos_sin(angle):
    """To rounding for |angle| up to some 10^4. Triton's own cos and sin keep a table for huge angles on the stack."""
    quarter = tl.floor(angle * 0.6366197723675814 + 0.5)
    # pi / 2 in three parts, of which the first two times a quarter are exact in fp32.
    r = ((angle - quarter * 1.5703125) - quarter * 4.837512969970703125e-4) - quarter * 7.54978995489188e-8
    z = r * r
    s, c = 1 / 362880, 1 / 40320
    if angle.dtype == tl.float64:
        s += z * (-1 / 39916800 + z * (1 / 6227020800))
        c += z * (-1 / 3628800 + z * (1 / 479001600 + z * (-1 / 87178291200)))
    s = r + r * z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * s)))
    c = 1 + z * (-1 / 2 + z * (1 / 24 + z * (-1 / 720 + z * c)))
    quadrant = quarter.to(tl.int32)
    odd = (quadrant & 1) == 1
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quadrant + 1) & 2) == 0, cosine, -cosine), tl.where((quadrant & 2) == 0, sine, -sine)


@triton.jit
def read(pointer, base, at, mask, COMPLEX: tl.constexpr, ACC: tl.constexpr):
    if COMPLEX:
        pair = pointer + 2 * base + (2 * at[:, :, None] + tl.arange(0, 2))
        return tl.split(tl.load(pair, mask=mask[:, :, None], other=0.0).to(ACC))
    else:
        return (tl.load(pointer + base + at, mask=mask, other=0.0).to(ACC),)


@triton.jit
def read_or_zero(pointer, base, at, mask, COMPLEX: tl.constexpr, ACC: tl.constexpr):
    """Numbers from a tensor that may be missing, which is zero."""
    if pointer is not None:
        return read(pointer, base, at, mask, COMPLEX, ACC)
    elif COMPLEX:
        return tl.zeros(at.shape, ACC), tl.zeros(at.shape, ACC)
    else:
        return (tl.zeros(at.shape, ACC),)


@triton.jit
def write(pointer, base, at, mask, number):
    if len(number) == 2:
        pair = pointer + 2 * base + (2 * at[:, :, None] + tl.arange(0, 2))
        tl.store(pair, tl.join(number[0], number[1]), mask=mask[:, :, None])
    else:
        tl.store(pointer + base + at, number[0], mask=mask)
