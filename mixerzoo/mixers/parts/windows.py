"""The short convolution that linear mixers put before their recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import Layout


class ShortConv(nn.Module):
    """`y_tc = act(sum_{j<W} w_cj x_{t-W+1+j,c})`: causal, depthwise, width W; act is the identity or SiLU.

    It sees only tokens of the same sequence or document. Its state is the last W-1 inputs, [B,W-1,channels].
    """

    def __init__(self, channels: int, width: int, activation: str = "none") -> None:
        super().__init__()
        self.width, self.activation = width, activation
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -(self.width**-0.5), self.width**-0.5)

    def forward(self, x: Tensor, past: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
        """x: [B,T,channels], past: [B,W-1,channels] or None -> y and the new past (fp32 at least)."""
        T, reach = x.shape[1], self.width - 1
        past = x.new_zeros(x.shape[0], reach, x.shape[2]) if past is None else past.to(x.dtype)
        history = torch.cat([past, x], 1)
        y = history[:, reach:] * self.weight[:, reach]
        position = None if layout.cu_seqlens is None else layout.position
        for back in range(1, self.width):
            tap = history[:, reach - back : reach - back + T]
            if position is not None:
                tap = tap * (position >= back)[..., None]
            y = y + tap * self.weight[:, reach - back]
        return F.silu(y) if self.activation == "silu" else y, _last(history, reach, layout.valid)


def _last(history: Tensor, reach: int, valid: Tensor | None) -> Tensor:
    """The last `reach` inputs of every row, padding (on the right) left out."""
    dtype = torch.promote_types(history.dtype, torch.float32)
    if valid is None:
        return history[:, history.shape[1] - reach :].to(dtype)
    index = valid.sum(1)[:, None] + torch.arange(reach, device=history.device)
    return history.gather(1, index[..., None].expand(-1, -1, history.shape[2])).to(dtype)
