"""Causal windows: what a mixer sees of a token's last neighbours before its recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import Layout


class Window(nn.Module):
    """A causal function of the last `width` tokens of the same sequence or document.

    Its state, the past, is the last width-1 inputs, [B,width-1,channels].
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"the width of a window must be at least 1, got {width!r}")
        self.channels, self.width = channels, width

    def forward(self, x: Tensor, past: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
        """x: [B,T,channels], past: [B,width-1,channels] or None -> y [B,T,.] and the new past, fp32 at least."""
        reach = self.width - 1
        past = x.new_zeros(x.shape[0], reach, x.shape[2]) if past is None else past.to(x.dtype)
        history = torch.cat([past, x], 1)
        return self.of_taps(self._taps(history, x.shape[1], layout)), _last(history, reach, layout.valid)

    def of_taps(self, taps: list[Tensor]) -> Tensor:
        """Makes y of x, the inputs one token back, two back, ...: each [B,T,channels], zero before the start."""
        raise NotImplementedError

    def _taps(self, history: Tensor, length: int, layout: Layout) -> list[Tensor]:
        reach = self.width - 1
        taps = [history[:, reach - back : reach - back + length] for back in range(self.width)]
        if layout.cu_seqlens is None:
            return taps
        position = layout.position
        return [tap if back == 0 else tap * (position >= back)[..., None] for back, tap in enumerate(taps)]


class ShortConv(Window):
    """`y_tc = act(sum_{j<W} w_cj x_{t-W+1+j,c} + b_c)`: causal, depthwise, width W; act is the identity or SiLU."""

    def __init__(self, channels: int, width: int, activation: str = "none", *, bias: bool = False) -> None:
        super().__init__(channels, width)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    @property
    def products_per_token(self) -> int:
        return self.weight.numel()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.width**-0.5), self.width**-0.5)

    def of_taps(self, taps: list[Tensor]) -> Tensor:
        y = taps[0] * self.weight[:, self.width - 1]
        for back, tap in enumerate(taps[1:], start=1):
            y = y + tap * self.weight[:, self.width - 1 - back]
        y = y if self.bias is None else y + self.bias
        return F.silu(y) if self.activation == "silu" else y


class TokenShift(Window):
    """`y_t = [x_t, x_{t-1}]`: beside every token the one before, zero for the first (RWKV, arXiv:2305.13048, 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2)

    def of_taps(self, taps: list[Tensor]) -> Tensor:
        return torch.cat(taps, -1)


def _last(history: Tensor, reach: int, valid: Tensor | None) -> Tensor:
    """Takes the last `reach` inputs of every row, padding (on the right) left out."""
    dtype = torch.promote_types(history.dtype, torch.float32)
    if valid is None:
        return history[:, history.shape[1] - reach :].to(dtype)
    index = valid.sum(1)[:, None] + torch.arange(reach, device=history.device)
    return history.gather(1, index[..., None].expand(-1, -1, history.shape[2])).to(dtype)
