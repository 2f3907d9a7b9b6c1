"""The frame of the linear-time mixers: project -> short convolution -> one recurrence -> readout."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Mixer, RecurrentState, check_choice
from .layout import Layout
from .short_conv import ShortConv


class LinearMixer(Mixer):
    """A mixer with a state of constant size. Subclasses implement `project`, `mix`, `readout` and `memory_shape`.

    The short convolution runs over all the channels that `project` returns. Bidirectional mixers share it between the
    directions, as they share every projection.
    """

    def __init__(
        self, dim: int, conv_channels: int, *, bidirectional: bool, short_conv: int, conv_activation: str = "none"
    ) -> None:
        super().__init__(dim, bidirectional=bidirectional)
        check_choice("short_conv", short_conv, (0, 4))
        self.conv_channels = conv_channels
        self.conv = ShortConv(conv_channels, short_conv, conv_activation) if short_conv else None

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """The linear maps whose outputs the short convolution sees, each [B,T,.]."""
        raise NotImplementedError

    def mix(
        self, projected: tuple[Tensor, ...], x: Tensor, layout: Layout, memory: Tensor | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gates, positions and the one op call that sees time: (what `readout` takes, memory after the last token).

        Where `layout.valid` is False the memory must stay as it is.
        """
        raise NotImplementedError

    def readout(self, y: Tensor, x: Tensor) -> Tensor:
        """Norm, output gate and output map: -> [B,T,D]."""
        raise NotImplementedError

    def memory_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def direction(self) -> str:
        return "both" if self.bidirectional else "causal"

    def run(
        self, x: Tensor, layout: Layout, state: RecurrentState | None, shared: Tensor | None
    ) -> tuple[Tensor, RecurrentState | None]:
        projected = self.project(x)
        past = None
        if self.conv is not None:
            convolved, past = self.conv(torch.cat(projected, -1), state and state.conv, layout)
            projected = convolved.split([part.shape[-1] for part in projected], -1)
        y, memory = self.mix(projected, x, layout, state and state.memory, shared)
        y = self.readout(y, x)
        if state is None:
            return y, None
        tokens = x.shape[1] if layout.valid is None else layout.valid.sum(1)
        return y, RecurrentState(memory, state.conv if past is None else past, state.position + tokens)

    def empty_state(self, batch_size: int, max_length: int | None, like: Tensor) -> RecurrentState:
        reach = self.conv.width - 1 if self.conv is not None else 0
        return RecurrentState(
            memory=like.new_zeros(batch_size, *self.memory_shape()),
            conv=like.new_zeros(batch_size, reach, self.conv_channels),
            position=like.new_zeros(batch_size, dtype=torch.int64),
        )
