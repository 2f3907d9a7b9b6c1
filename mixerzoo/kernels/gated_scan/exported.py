"""The gated scan as one graph for every length, in real numbers alone: what torch.export and ONNX get.

A channel of the scan is a head of gated linear attention with one key. A complex one turns by an angle that does not
depend on the state, so it is a real one in turning coordinates: with `phi_t = theta_1 + ... + theta_t`,

    g_t = e^{-i phi_t} h_t = f_t g_{t-1} + e^{-i phi_t} x_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..exported_linear_attention import exported as linear_attention


def exported(x: Tensor, log_f: Tensor, theta: Tensor | None, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    """x: [B,T,D], initial_state: [B,D], both complex with theta: [B,T,D] -> h and the last h."""
    one = torch.ones_like(log_f)[..., None]
    if theta is None:
        h, final_state = linear_attention(one, one, x[..., None], log_f[..., None], initial_state[..., None, None])
        return h[..., 0], final_state[..., 0, 0]
    angle = theta.double().cumsum(1)
    cos, sin = angle.cos().to(log_f.dtype), angle.sin().to(log_f.dtype)
    turned = _turn(torch.view_as_real(x), cos, -sin)
    start = torch.view_as_real(initial_state)[..., None, :]
    h, _ = linear_attention(one, one, turned, log_f[..., None], start)
    h = torch.view_as_complex(_turn(h, cos, sin))
    return h, h[:, -1]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(cos + i sin) x for x: [...,2], real and imaginary part."""
    real, imag = x.unbind(-1)
    return torch.stack([real * cos - imag * sin, real * sin + imag * cos], -1)
