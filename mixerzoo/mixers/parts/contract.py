"""The contract of a token mixer: [B,T,D] in, [B,T,D] out, with padding, packing, prefill and step.

Letters throughout the package: B batch, T time, D width, H heads, K key dim, V value dim, C chunk, N chunks or
documents.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .layout import Layout, ScanOrder, whole_sequences
from .windows import ShortConv


class Output(NamedTuple):
    """What `prefill` and `step` return."""

    y: Tensor
    state: Any


class RecurrentState(NamedTuple):
    """The state of a linear mixer: constant size, batch first, fp32; never changed in place.

    memory: [B,...], the recurrence. conv: [B,W-1,channels], the short convolution's last inputs (W-1 = 0 without one).
    position: [B] int64, how many tokens the sequence has seen.
    """

    memory: Tensor
    conv: Tensor
    position: Tensor


@dataclass(frozen=True)
class MixerSpec:
    """What is known about a mixer without building it. `state` and `flops` are formulas per layer and sequence."""

    paper: str
    equation: str
    ops: tuple[str, ...]
    state: str
    flops: str
    capabilities: frozenset[str]

    def __post_init__(self) -> None:
        unknown = self.capabilities - CAPABILITIES
        if unknown:
            raise ValueError(f"unknown capabilities {sorted(unknown)}; known: {', '.join(sorted(CAPABILITIES))}")


CAPABILITIES = frozenset(
    {
        "causal",  # forward, prefill and step without a look ahead
        "bidirectional",  # bidirectional=True
        "constant_state",  # the state does not grow with the sequence
        "short_conv",  # short_conv=4
        "flip_equivariant",  # bidirectional, it commutes with reversing the sequence
        "depth_shared",  # takes a slice of something shared over depth (HGRN's lower bounds)
    }
)


class Mixer(nn.Module):
    """Base of every mixer. Subclasses set `spec` and implement `run` and `empty_state`.

    A subclass's configuration is its constructor's keyword arguments, JSON values with defaults, kept in `config`.
    """

    spec: ClassVar[MixerSpec]
    depth_shared: type[nn.Module] | None = None
    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init, signature = cls.__init__, inspect.signature(cls.__init__)

        @functools.wraps(init)
        def recording_init(self, *args: Any, **keywords: Any) -> None:
            if type(self) is cls:
                arguments = signature.bind(self, *args, **keywords)
                arguments.apply_defaults()
                _, *items = arguments.arguments.items()
                object.__setattr__(self, "config", dict(items))
            init(self, *args, **keywords)

        cls.__init__ = recording_init  # type: ignore[method-assign]

    def __init__(self, dim: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim!r}")
        self.dim = dim
        self.bidirectional = bidirectional

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        shared: Tensor | None = None,
        orders: tuple[ScanOrder, ...] = (),
    ) -> Tensor:
        """Mix a batch of whole sequences: [B,T,D] -> [B,T,D].

        Args:
            mask: bool [B,T], True = token. Padding may stand anywhere, changes nothing and comes out as zero.
            cu_seqlens: [N+1] integers, N documents packed into one row (B=1).
            shared: this layer's slice of what the mixer declares as `depth_shared`.
            orders: ways through the tokens (blocks/scan_order.py), whose scans are summed; () takes them as they stand.

        Raises ValueError for wrong shapes, and for more than one of mask, cu_seqlens and orders.
        """
        self._check_input(x, mask)
        if orders:
            if mask is not None or cu_seqlens is not None:
                raise ValueError("orders exclude mask and cu_seqlens; remedy: images of one size in a batch")
            return self.scan(x, orders, shared)
        if cu_seqlens is None:
            return self._run_padded(x, mask, None, shared)[0]
        if mask is not None:
            raise ValueError("mask and cu_seqlens exclude each other; remedy: leave padding out of the packed row")
        if x.shape[0] != 1:
            raise ValueError(f"cu_seqlens needs one packed row, B=1, got B={x.shape[0]}; remedy: flatten the batch")
        return self.run(x, Layout(x.shape[1], x.device, cu_seqlens=cu_seqlens), None, shared)[0]

    def prefill(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, shared: Tensor | None = None
    ) -> Output:
        """A chunk of every sequence in, the state after it out; None starts. Splitting anywhere changes nothing."""
        self._check_causal("prefill")
        self._check_input(x, mask)
        state = self.init_state(x.shape[0]) if state is None else state
        if state.position.shape[0] != x.shape[0]:
            raise ValueError(f"the state is for {state.position.shape[0]} sequences, got x with B={x.shape[0]}")
        return Output(*self._run_padded(x, mask, state, shared))

    def step(self, x_t: Tensor, state: Any, *, shared: Tensor | None = None) -> Output:
        """One token of every sequence: [B,D] -> [B,D]."""
        if x_t.ndim != 2:
            raise ValueError(f"x_t must be [B,D], got {tuple(x_t.shape)}; remedy: prefill takes [B,T,D]")
        y, state = self.prefill(x_t[:, None], state, shared=shared)
        return Output(y[:, 0], state)

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> Any:
        """The state before the first token. `max_length` preallocates what grows with the sequence."""
        self._check_causal("init_state")
        weight = next(self.parameters())
        like = torch.empty(0, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
        return self.empty_state(batch_size, max_length, like)

    def state_size(self, length: int) -> int:
        """Numbers a sequence's state holds after `length` tokens (4 bytes each), its position not counted."""
        state = self.empty_state(1, length, torch.empty(0, device="meta"))
        return sum(tensor.numel() for tensor in state if tensor.is_floating_point() or tensor.is_complex())

    def flops(self, length: int) -> int:
        """Forward FLOPs for one sequence: two per multiply-add of linear maps and convolution, plus `mixing_flops`."""
        maps = sum(module.weight.numel() for module in self.modules() if isinstance(module, (nn.Linear, ShortConv)))
        return 2 * maps * length + self.mixing_flops(length)

    def run(self, x: Tensor, layout: Layout, state: Any, shared: Tensor | None) -> tuple[Tensor, Any]:
        """The mixer itself, padding (if any) on the right. `state` is None in `forward`: nothing precedes."""
        raise NotImplementedError

    def scan(self, x: Tensor, orders: tuple[ScanOrder, ...], shared: Tensor | None) -> Tensor:
        """The sum over orders of what the mixer makes of the sequences: [B,T,D] -> [B,T,D]."""
        sequences = [order.apply(x) for order in orders]
        mixed = [self.run(sequence, whole_sequences(sequence), None, shared)[0] for sequence in sequences]
        return functools.reduce(torch.add, (order.undo(y) for order, y in zip(orders, mixed, strict=True)))

    def empty_state(self, batch_size: int, max_length: int | None, like: Tensor) -> Any:
        """Zeros of the dtype and device of `like`, and position zero."""
        raise NotImplementedError

    def mixing_flops(self, length: int) -> int:
        """FLOPs of the mixing over time itself, for the formula in `spec.flops`."""
        raise NotImplementedError

    def _run_padded(self, x: Tensor, mask: Tensor | None, state: Any, shared: Tensor | None) -> tuple[Tensor, Any]:
        """Moves the tokens of every row to the left, so that a mixer only ever sees padding on the right."""
        layout = Layout(x.shape[1], x.device, None if state is None else state.position)
        if mask is None:
            return self.run(x, layout, state, shared)
        order = mask.logical_not().argsort(dim=1, stable=True)
        valid = mask.gather(1, order)
        x = x.gather(1, order[..., None].expand_as(x)).masked_fill(~valid[..., None], 0)
        y, state = self.run(x, layout._replace(valid=valid), state, shared)
        y = y.masked_fill(~valid[..., None], 0)
        return torch.empty_like(y).scatter(1, order[..., None].expand_as(y), y), state

    def _check_input(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim or 0 in x.shape:
            raise ValueError(f"x must be [B,T,D] with B, T >= 1 and D={self.dim}, got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(
                f"mask must be bool [B,T]={tuple(x.shape[:2])}, True = token, got {mask.dtype} {tuple(mask.shape)}"
            )

    def _check_causal(self, method: str) -> None:
        if self.bidirectional:
            raise ValueError(
                f"{method} needs a causal mixer, this one has bidirectional=True; remedy: bidirectional=False"
            )


def check_divides(what: str, number: int, total_name: str, total: int) -> None:
    """ValueError unless `number` is a positive divisor of `total`."""
    if not isinstance(number, int) or number < 1 or total % number:
        raise ValueError(f"{what} must divide {total_name}={total}, got {number!r}")


def head_width(what: str, expand: float, dim: int, num_heads: int) -> int:
    """Channels a head: dim * expand / num_heads, or a ValueError that says why that is no whole number."""
    width = round(dim * expand)
    if num_heads < 1 or width < 1 or abs(width - dim * expand) > 1e-6 or width % num_heads:
        raise ValueError(f"{what} * dim must be a positive multiple of num_heads={num_heads}, got {dim * expand:g}")
    return width // num_heads


def check_choice(what: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(map(repr, allowed))}")
