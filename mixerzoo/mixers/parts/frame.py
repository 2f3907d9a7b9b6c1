"""The frame of the linear-time mixers: window -> project -> window -> one recurrence -> readout."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mixerzoo.kernels.recurrence import State, each

from .contract import Mixer, Shared
from .layout import Layout, ScanOrder, whole_sequences
from .windows import ShortConv, Window


class RecurrentState(NamedTuple):
    """The state of a linear mixer: constant size, batch first, fp32 at least; never changed in place.

    memory: [B,...] or a NamedTuple of such, the recurrence. conv: the pasts of the windows, [B,W-1,channels] each.
    position: [B] int64, how many tokens the sequence has seen.
    """

    memory: State
    conv: tuple[Tensor, ...]
    position: Tensor


class LinearMixer(Mixer):
    """A mixer with a state of constant size. Subclasses implement `project`, `mix`, `readout` and `memory_shape`.

    `before` is a window over x: `project` then gets what it makes of x. The short convolution runs over
    the first `conv_channels` channels that `project` returns; what follows them goes to `mix` as it is. The directions
    of a bidirectional mixer share projections and windows, and so do all scan orders without a window before.

    Args:
        dim: width D.
        conv_channels: channels of the short convolution.
        bidirectional: both directions.
        short_conv: width of the short convolution; 0: none.
        conv_activation: none | silu, after it.
        conv_bias: with a bias.
        before: a window over x, `TokenShift(dim)` for instance; None: none.
    """

    def __init__(
        self,
        dim: int,
        conv_channels: int = 0,
        *,
        bidirectional: bool,
        short_conv: int = 0,
        conv_activation: str = "none",
        conv_bias: bool = False,
        before: Window | None = None,
    ) -> None:
        super().__init__(dim, bidirectional=bidirectional)
        if not isinstance(short_conv, int) or short_conv < 0:
            raise ValueError(f"short_conv must be a width of at least 1, or 0 for none, got {short_conv!r}")
        self.conv_channels = conv_channels
        self.conv = ShortConv(conv_channels, short_conv, conv_activation, bias=conv_bias) if short_conv else None
        self.before = before

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Makes the linear maps before the recurrence, [B,T,.] each, those first that the short convolution sees.

        x: [B,T,D], or what `before` makes of it."""
        raise NotImplementedError

    def mix(
        self, projected: tuple[Tensor, ...], layout: Layout, memory: State | None, shared: Shared
    ) -> tuple[Any, State]:
        """Makes gates and positions, and the one op call that sees time: (what `readout` takes, the memory after).

        Linear maps of what was convolved stand here. projected: as `project` returns it, convolved. memory: where it
        starts, None at zeros. Pass `layout.valid` and `layout.cu_seqlens` on to the op."""
        raise NotImplementedError

    def readout(self, y: Any, x: Tensor) -> Tensor:
        """Applies norm, output gate and output map to what `mix` returns: -> [B,T,D]."""
        raise NotImplementedError

    def memory_shape(self) -> Any:
        """Returns the shape of a sequence's memory, or a NamedTuple of shapes: (H, K, V) for instance."""
        raise NotImplementedError

    def start(self, like: Tensor) -> State:
        """Returns a sequence's memory before its first token, of `memory_shape`, in the dtype and device of `like`.

        Zeros, unless a subclass knows better: -inf, or a learned value, `self.s0.to(like)`."""
        shape = self.memory_shape()
        if hasattr(shape, "_fields"):
            return type(shape)(*map(like.new_zeros, shape))
        return like.new_zeros(shape)

    @property
    def direction(self) -> str:
        return "both" if self.bidirectional else "causal"

    @property
    def windows(self) -> list[Window]:
        """Lists those there are, in the order in which their pasts stand in the state."""
        return [window for window in (self.before, self.conv) if window is not None]

    def run(
        self, x: Tensor, layout: Layout, state: RecurrentState | None, shared: Shared
    ) -> tuple[Tensor, RecurrentState | None]:
        memory = self._first_memory(x, layout) if state is None else state.memory
        projected, pasts = self._project(x, layout, state)
        y, memory = self.mix(projected, layout, memory, shared)
        y = self.readout(y, x)
        if state is None:
            return y, None
        tokens = x.shape[1] if layout.valid is None else layout.valid.sum(1)
        return y, RecurrentState(memory, pasts, state.position + tokens)

    def scan(self, x: Tensor, orders: tuple[ScanOrder, ...], shared: Shared) -> Tensor:
        """Projects once, scans in every order, sums before the readout: an order costs a scan and no linear map.

        With a window before, which sees another neighbour in every order, each order projects too."""
        projected = self.project(x) if self.before is None else None

        def scanned(order: ScanOrder) -> Any:
            if projected is None:
                sequence = order.apply(x)
                layout = whole_sequences(sequence)
                parts, _ = self._project(sequence, layout, None)
            else:
                parts = tuple(order.apply(part) for part in projected)
                layout = whole_sequences(parts[0])
                parts, _ = self._convolve(parts, None, layout)
            y, _ = self.mix(parts, layout, self._first_memory(parts[0], layout), self._in_order(shared, order))
            return tree_map(order.undo, y)

        mixed = [scanned(order) for order in orders]
        return self.readout(functools.reduce(lambda a, b: tree_map(torch.add, a, b), mixed), x)

    def empty_state(self, batch_size: int, max_length: int | None, like: Tensor) -> RecurrentState:
        return RecurrentState(
            memory=self._batched(batch_size, like),
            conv=tuple(like.new_zeros(batch_size, window.width - 1, window.channels) for window in self.windows),
            position=like.new_zeros(batch_size, dtype=torch.int64),
        )

    def past_size(self) -> int:
        return sum((window.width - 1) * window.channels for window in self.windows)

    def _project(
        self, x: Tensor, layout: Layout, state: RecurrentState | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns `project`'s parts between both windows, and the windows' new pasts."""
        pasts: list[Tensor | None] = [None] * len(self.windows) if state is None else list(state.conv)
        new = []
        if self.before is not None:
            x, past = self.before(x, pasts.pop(0), layout)
            new.append(past)
        projected, past = self._convolve(self.project(x), pasts[0] if pasts else None, layout)
        return projected, (*new, *([] if past is None else [past]))

    def _convolve(
        self, projected: tuple[Tensor, ...], past: Tensor | None, layout: Layout
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Applies the short convolution, if there is one; returns its new past too."""
        if self.conv is None:
            return projected, None
        joined = torch.cat(projected, -1)
        convolved, past = self.conv(joined[..., : self.conv_channels], past, layout)
        joined = torch.cat([convolved, joined[..., self.conv_channels :]], -1)
        return joined.split([part.shape[-1] for part in projected], -1), past

    def _first_memory(self, x: Tensor, layout: Layout) -> State | None:
        """Returns where every sequence starts, for both directions the same; None where that is at zeros."""
        if type(self).start is LinearMixer.start and not hasattr(self.memory_shape(), "_fields"):
            return None
        count = x.shape[0] if layout.cu_seqlens is None else layout.cu_seqlens.numel() - 1
        like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        memory = self._batched(count, like)
        return each(lambda leaf: torch.stack([leaf, leaf]), memory) if self.bidirectional else memory

    def _batched(self, count: int, like: Tensor) -> State:
        return each(lambda leaf: leaf.expand(count, *leaf.shape).clone(), self.start(like))
