"""The frame of the linear-time mixers: project -> short convolution -> one recurrence -> readout."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .contract import Mixer, RecurrentState, check_choice
from .layout import Layout, ScanOrder, whole_sequences
from .windows import ShortConv


class LinearMixer(Mixer):
    """A mixer with a state of constant size. Subclasses implement `project`, `mix`, `readout` and `memory_shape`.

    The short convolution runs over the first `conv_channels` channels that `project` returns; what follows them goes
    to `mix` as it is. The directions of a bidirectional mixer, and all scan orders, share projections and convolution.
    """

    def __init__(
        self, dim: int, conv_channels: int, *, bidirectional: bool, short_conv: int, conv_activation: str = "none"
    ) -> None:
        super().__init__(dim, bidirectional=bidirectional)
        check_choice("short_conv", short_conv, (0, 4))
        self.conv_channels = conv_channels
        self.conv = ShortConv(conv_channels, short_conv, conv_activation) if short_conv else None

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """The linear maps before the recurrence, each [B,T,.], those that the short convolution sees first."""
        raise NotImplementedError

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: Tensor | None, shared: Tensor | None
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
        projected, past = self._convolve(self.project(x), state and state.conv, layout)
        y, memory = self.mix(projected, layout, state and state.memory, shared)
        y = self.readout(y, x)
        if state is None:
            return y, None
        tokens = x.shape[1] if layout.valid is None else layout.valid.sum(1)
        return y, RecurrentState(memory, state.conv if past is None else past, state.position + tokens)

    def scan(self, x: Tensor, orders: tuple[ScanOrder, ...], shared: Tensor | None) -> Tensor:
        """Projected once, scanned in every order, summed before the readout: an order costs a scan, no linear map."""
        projected = self.project(x)

        def scanned(order: ScanOrder) -> Tensor:
            parts = tuple(order.apply(part) for part in projected)
            layout = whole_sequences(parts[0])
            parts, _ = self._convolve(parts, None, layout)
            return order.undo(self.mix(parts, layout, None, shared)[0])

        return self.readout(functools.reduce(torch.add, map(scanned, orders)), x)

    def _convolve(
        self, projected: tuple[Tensor, ...], past: Tensor | None, layout: Layout
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The short convolution, if there is one, and its new past."""
        if self.conv is None:
            return projected, None
        joined = torch.cat(projected, -1)
        convolved, past = self.conv(joined[..., : self.conv_channels], past, layout)
        joined = torch.cat([convolved, joined[..., self.conv_channels :]], -1)
        return joined.split([part.shape[-1] for part in projected], -1), past

    def empty_state(self, batch_size: int, max_length: int | None, like: Tensor) -> RecurrentState:
        reach = self.conv.width - 1 if self.conv is not None else 0
        return RecurrentState(
            memory=like.new_zeros(batch_size, *self.memory_shape()),
            conv=like.new_zeros(batch_size, reach, self.conv_channels),
            position=like.new_zeros(batch_size, dtype=torch.int64),
        )
