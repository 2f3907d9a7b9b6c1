"""The contract of a token mixer: [B,T,D] in, [B,T,D] out, with padding, packing, prefill and step.

Letters throughout the package: B batch, T time, D width, H heads, K key dim, V value dim, C chunk, N chunks or
documents.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo.kernels.validation import number_of_sequences

from .depth_shared import DepthShared
from .formulas import evaluate, products_per_token
from .layout import Layout, Plane, ScanOrder, whole_sequences
from .spec import LIMITS, MixerSpec

Shared = Mapping[str, Tensor]


class Output(NamedTuple):
    """What `prefill` and `step` return."""

    y: Tensor
    state: Any


class Mixer(nn.Module):
    """Base of every mixer. Subclasses set `spec` and implement `run` and `empty_state`.

    A subclass's configuration is its constructor's keyword arguments, JSON values with defaults, kept in `config`.
    `depth_shared` are the kinds of things that it shares with a model's other layers. `layer` and `depth` are its place
    in a model, 0 of 1 when it is built alone.
    """

    spec: ClassVar[MixerSpec]
    depth_shared: tuple[type[DepthShared], ...] = ()
    config: dict[str, Any]
    layer: int = 0
    depth: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init, signature = cls.__init__, inspect.signature(cls.__init__)

        @functools.wraps(init)
        def recording_init(self, *args: Any, **keywords: Any) -> None:
            outermost = type(self) is cls
            if outermost:
                arguments = signature.bind(self, *args, **keywords)
                arguments.apply_defaults()
                _, *items = arguments.arguments.items()
                object.__setattr__(self, "config", dict(items))
            init(self, *args, **keywords)
            if outermost:
                self.reset_own_parameters()

        cls.__init__ = recording_init  # type: ignore[method-assign]

    def __init__(self, dim: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim!r}")
        self.dim = dim
        self.bidirectional = bidirectional

    @classmethod
    def fitted(cls, dim: int, head: int) -> dict[str, Any]:
        """Returns the keywords that fit the mixer to a width, with heads about `head` wide: {} where defaults fit all.

        Grids, image models and laws build it so; each chooses its own head width."""
        return {}

    def reset_own_parameters(self) -> None:
        """Starts everything that doesn't start as torch's modules do: own parameters, gates' biases, special maps.

        Runs at the end of construction and of `reset_parameters`. Values only, no new tensors."""

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None) -> None:
        """Starts everything that the mixer contains, as its constructor did; also after `to_empty`.

        std: the spread of the weights of plain linear maps, normal around 0; None: torch's own. What
        `reset_own_parameters` starts is the mixer's own whatever a model chooses here."""
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            if std is not None and isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
        self.reset_own_parameters()

    def place(self, layer: int, depth: int) -> None:
        """Tells the mixer that it is layer 0 <= layer < depth of a model.

        One that starts differently in every layer calls `reset_own_parameters` here."""
        self.layer, self.depth = layer, depth

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        shared: Shared | None = None,
        orders: tuple[ScanOrder, ...] = (),
    ) -> Tensor:
        """Mixes a batch of whole sequences: [B,T,D] -> [B,T,D].

        Args:
            mask: bool [B,T], True = token. Padding may stand anywhere, changes nothing and comes out as zero.
            cu_seqlens: [N+1] integers, N documents packed into one row (B=1).
            shared: this layer's values of the kinds in `depth_shared`, by their names.
            orders: ways through the tokens (blocks/scan_order.py), whose scans are summed; () takes them as they stand.

        Raises ValueError for wrong shapes, for more than one of mask, cu_seqlens and orders, and for what
        `spec.cannot` names."""
        self._check_input(x, mask)
        shared = shared or {}
        if orders:
            if mask is not None or cu_seqlens is not None:
                raise ValueError("orders exclude mask and cu_seqlens; remedy: images of one size in a batch")
            return self._run_orders(x, orders, shared)
        if cu_seqlens is None:
            return self._run_padded(x, mask, None, shared)[0]
        if mask is not None:
            raise ValueError("mask and cu_seqlens exclude each other; remedy: leave padding out of the packed row")
        self._check_can("packing")
        number_of_sequences(x, cu_seqlens)
        return self.run(x, Layout(x.shape[1], x.device, cu_seqlens=cu_seqlens), None, shared)[0]

    def prefill(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, shared: Shared | None = None
    ) -> Output:
        """Takes a chunk of every sequence in and hands the state after it out; None starts.

        Splitting a sequence anywhere changes nothing."""
        self._check_causal("prefill")
        self._check_input(x, mask)
        state = self.init_state(x.shape[0]) if state is None else state
        if state.position.shape[0] != x.shape[0]:
            raise ValueError(f"the state is for {state.position.shape[0]} sequences, got x with B={x.shape[0]}")
        return Output(*self._run_padded(x, mask, state, shared or {}))

    def step(self, x_t: Tensor, state: Any, *, shared: Shared | None = None) -> Output:
        """Takes one token of every sequence: [B,D] -> [B,D]. Values in time in `shared` are [B,...]."""
        if x_t.ndim != 2:
            raise ValueError(f"x_t must be [B,D], got {tuple(x_t.shape)}; remedy: prefill takes [B,T,D]")
        in_time = self.shared_in_time
        shared = {name: value[:, None] if name in in_time else value for name, value in (shared or {}).items()}
        y, state = self.prefill(x_t[:, None], state, shared=shared)
        return Output(y[:, 0], state)

    def hand_on(
        self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, state: Any = None
    ) -> Tensor:
        """Returns the value [B,T,...] that the first layer of a model hands to all: `first_value` of its input."""
        self._check_input(x, mask)
        if cu_seqlens is not None:
            return self.first_value(x, Layout(x.shape[1], x.device, cu_seqlens=cu_seqlens), None)
        x, layout, order = _tokens_first(x, mask, state)
        value = self.first_value(x, layout, state)
        return value if order is None else _put_back(value, order)

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> Any:
        """Returns the state before the first token. `max_length` preallocates what grows with the sequence."""
        self._check_causal("init_state")
        weight = next(self.parameters())
        like = torch.empty(0, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
        return self.empty_state(batch_size, max_length, like)

    def state_size(self, length: int) -> int:
        """Counts the numbers that a sequence's state holds after `length` tokens, without its position: `spec.state`
        and the pasts of its windows."""
        return evaluate(self.spec.state, self._values(length)) + self.past_size()

    def flops(self, length: int) -> int:
        """Counts the forward FLOPs for one sequence by `spec.flops`, two for every multiply-add."""
        return evaluate(self.spec.flops, self._values(length) | {"params": products_per_token(self)})

    def mixing_flops(self, length: int) -> int:
        """Counts those of `flops` that one more scan order costs: all but the linear maps and windows."""
        return evaluate(self.spec.flops, self._values(length) | {"params": 0})

    def letters(self) -> dict[str, float]:
        """Returns the values of the letters in the spec's formulas beside T, D and params."""
        return {}

    def past_size(self) -> int:
        """Counts the numbers that the pasts of windows hold."""
        return 0

    def run(self, x: Tensor, layout: Layout, state: Any, shared: Shared) -> tuple[Tensor, Any]:
        """Mixes x [B,T,D], padding (if any) on the right. `state` is None in `forward`: nothing precedes."""
        raise NotImplementedError

    def scan(self, x: Tensor, orders: tuple[ScanOrder, ...], shared: Shared) -> Tensor:
        """Sums over orders what the mixer makes of the sequences: [B,T,D] -> [B,T,D]."""
        mixed = []
        for order in orders:
            sequence = order.apply(x)
            y, _ = self.run(sequence, whole_sequences(sequence), None, self._in_order(shared, order))
            mixed.append(order.undo(y))
        return functools.reduce(torch.add, mixed)

    def first_value(self, x: Tensor, layout: Layout, state: Any) -> Tensor:
        """Computes what the first of a model's layers hands to all, for a mixer that declares `FirstValue`."""
        raise NotImplementedError

    def empty_state(self, batch_size: int, max_length: int | None, like: Tensor) -> Any:
        """Returns the state before the first token, a NamedTuple with `position`, in the dtype and device of `like`."""
        raise NotImplementedError

    def _values(self, length: int) -> dict[str, float]:
        return {"T": length, "D": self.dim, **self.letters()}

    @property
    def shared_in_time(self) -> set[str]:
        """Names the values in `shared` that have a row for every token."""
        return {kind.name for kind in self.depth_shared if kind.in_time}

    def _in_order(self, shared: Shared, order: ScanOrder) -> Shared:
        in_time = self.shared_in_time
        return {name: order.apply(value) if name in in_time else value for name, value in shared.items()}

    def _run_orders(self, x: Tensor, orders: tuple[ScanOrder, ...], shared: Shared) -> Tensor:
        planes = [order for order in orders if isinstance(order, Plane)]
        if not planes:
            self._check_can("orders")
            return self.scan(x, orders, shared)
        if "plane" not in self.spec.capabilities:
            raise ValueError(f"{type(self).__name__} has no form on two axes; remedy: another scan order than plane")
        if len(orders) > 1 or planes[0].height * planes[0].width != x.shape[1]:
            raise ValueError(f"a plane stands alone and covers the T={x.shape[1]} tokens, got {orders}")
        layout = whole_sequences(x)._replace(plane=(planes[0].height, planes[0].width))
        return self.run(x, layout, None, shared)[0]

    def _run_padded(self, x: Tensor, mask: Tensor | None, state: Any, shared: Shared) -> tuple[Tensor, Any]:
        x, layout, order = _tokens_first(x, mask, state)
        if order is None:
            return self.run(x, layout, state, shared)
        self._check_can("padding")
        in_time = self.shared_in_time
        shared = {name: _taken(value, order) if name in in_time else value for name, value in shared.items()}
        y, state = self.run(x, layout, state, shared)
        return _put_back(_without_padding(y, layout), order), state

    def _check_input(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim or 0 in x.shape:
            raise ValueError(f"x must be [B,T,D] with B, T >= 1 and D={self.dim}, got {tuple(x.shape)}")
        if "length" in self.spec.cannot and x.shape[1] != self.config["length"]:
            raise ValueError(f"{type(self).__name__} takes T={self.config['length']} tokens, got {x.shape[1]}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(
                f"mask must be bool [B,T]={tuple(x.shape[:2])}, True = token, got {mask.dtype} {tuple(mask.shape)}"
            )

    def _check_can(self, what: str) -> None:
        if what in self.spec.cannot:
            raise ValueError(f"{type(self).__name__} takes no {what}: it lacks {LIMITS[what]}")

    def _check_causal(self, method: str) -> None:
        if self.bidirectional:
            remedy = "bidirectional=False" if "causal" in self.spec.capabilities else "a causal mixer"
            raise ValueError(f"{method} needs a causal mixer, this one has bidirectional=True; remedy: {remedy}")


def _tokens_first(x: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Layout, Tensor | None]:
    """Moves the tokens of every row to the left, so that a mixer only ever sees padding, zeros, on the right.

    Returns x, its layout and, where there is a mask, the order in which x was taken."""
    layout = Layout(x.shape[1], x.device, None if state is None else state.position)
    if mask is None:
        return x, layout, None
    order = mask.logical_not().argsort(dim=1, stable=True)
    layout = layout._replace(valid=mask.gather(1, order))
    return _without_padding(_taken(x, order), layout), layout, order


def _without_padding(x: Tensor, layout: Layout) -> Tensor:
    assert layout.valid is not None
    return x.masked_fill(~layout.valid[..., None], 0)


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """Returns x[b, order[b, t]]: [B,T,...] -> [B,T,...]."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.ndim - 2)).expand_as(x))


def _put_back(y: Tensor, order: Tensor) -> Tensor:
    """Inverts `_taken`."""
    return torch.empty_like(y).scatter(1, order.view(*order.shape, *[1] * (y.ndim - 2)).expand_as(y), y)
