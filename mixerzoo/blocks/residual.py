"""The pre-norm residual block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixerzoo.mixers.parts import Mixer, Output, Shared
from mixerzoo.mixers.parts.layout import ScanOrder
from mixerzoo.mixers.parts.norms import make_block_norm, normalize


class ResidualBlock(nn.Module):
    """`x = x + Mixer(Norm(x))`, `x = x + ChannelMixer(Norm(x))`; without a channel mixer the first line alone.

    `forward`, `prefill`, `step` and `init_state` are the mixer's, with the same arguments. What else a branch goes
    through before it is added (dropout, a layer's scale, stochastic depth) are `mixer_branch` and `channel_branch`.
    """

    def __init__(
        self,
        mixer: Mixer,
        channel_mixer: nn.Module | None,
        *,
        norm: str = "rms",
        mixer_branch: nn.Module | None = None,
        channel_branch: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mixer_norm = make_block_norm(norm, mixer.dim)
        self.mixer = mixer
        self.mixer_branch = mixer_branch or nn.Identity()
        self.channel_norm = make_block_norm(norm, mixer.dim) if channel_mixer is not None else None
        self.channel_mixer = channel_mixer
        self.channel_branch = channel_branch or nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        shared: Shared | None = None,
        passes: tuple[tuple[ScanOrder, ...], ...] = ((),),
    ) -> Tensor:
        """passes: what `scan_passes` says of an image. The mixer goes once through every pass's orders, one after the
        other; the default is one pass through the tokens as they stand."""
        y = normalize(self.mixer_norm, x, mask)
        for orders in passes:
            y = self.mixer(y, mask=mask, cu_seqlens=cu_seqlens, shared=shared, orders=orders)
        return self.finish(x, y, mask)

    def prefill(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, shared: Shared | None = None
    ) -> Output:
        y, state = self.mixer.prefill(normalize(self.mixer_norm, x, mask), state, mask=mask, shared=shared)
        return Output(self.finish(x, y, mask), state)

    def step(self, x_t: Tensor, state: Any, *, shared: Shared | None = None) -> Output:
        y, state = self.mixer.step(self.mixer_norm(x_t), state, shared=shared)
        return Output(self.finish(x_t, y), state)

    def first_value(self, x: Tensor, *, mask: Tensor | None = None, **ways: Any) -> Tensor:
        """Returns what this layer, as the first that shares it, hands to all: x is what comes into the block."""
        x = normalize(self.mixer_norm, x, mask)
        if x.ndim == 2:  # a step
            return self.mixer.hand_on(x[:, None], **ways)[:, 0]
        return self.mixer.hand_on(x, mask=mask, **ways)

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> Any:
        return self.mixer.init_state(batch_size, max_length=max_length)

    def finish(self, x: Tensor, mixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """Both additions, given the mixer's output."""
        x = x + self.mixer_branch(mixed)
        if self.channel_mixer is None or self.channel_norm is None:
            return x
        return x + self.channel_branch(self.channel_mixer(normalize(self.channel_norm, x, mask)))
