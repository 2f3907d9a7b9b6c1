"""The pre-norm residual block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixerzoo.mixers.base import Mixer, Output
from mixerzoo.mixers.norms import make_norm


class ResidualBlock(nn.Module):
    """`x = x + Mixer(Norm(x))`, `x = x + ChannelMixer(Norm(x))`; without a channel mixer the first line alone.

    `forward`, `prefill`, `step` and `init_state` are the mixer's, with the same arguments.
    """

    def __init__(
        self, mixer: Mixer, channel_mixer: nn.Module | None, *, norm: str = "rms", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mixer_norm = make_norm(norm, mixer.dim)
        self.mixer = mixer
        self.channel_norm = make_norm(norm, mixer.dim) if channel_mixer is not None else None
        self.channel_mixer = channel_mixer
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, shared: Tensor | None = None
    ) -> Tensor:
        return self._finish(x, self.mixer(self.mixer_norm(x), mask=mask, cu_seqlens=cu_seqlens, shared=shared))

    def prefill(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, shared: Tensor | None = None
    ) -> Output:
        y, state = self.mixer.prefill(self.mixer_norm(x), state, mask=mask, shared=shared)
        return Output(self._finish(x, y), state)

    def step(self, x_t: Tensor, state: Any, *, shared: Tensor | None = None) -> Output:
        y, state = self.mixer.step(self.mixer_norm(x_t), state, shared=shared)
        return Output(self._finish(x_t, y), state)

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> Any:
        return self.mixer.init_state(batch_size, max_length=max_length)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        if self.channel_mixer is None or self.channel_norm is None:
            return x
        return x + self.dropout(self.channel_mixer(self.channel_norm(x)))
