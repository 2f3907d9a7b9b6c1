"""Bytes that kernels and torch operations move, counted load by load in Triton's interpreter.

    distinct:  every byte that one launch loads or stores, once however often it does; what a launch loads after storing
               it counts as stored only. The least that memory has to move when caches are perfect within a launch, and
               keep nothing from one launch to the next.
    requested: every access counts.

Values don't matter here (the interpreter's bfloat16 arithmetic is wrong), only addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..launch import interpreted

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
OVERWRITES = ("copy_", "fill_", "zero_")  # what they write, they don't read
FILLS = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")  # read a shape, no values


@dataclass
class Traffic:
    """Records what one launch, or one torch operation, loads and stores."""

    name: str
    kind: str  # "triton" | "torch"
    loaded: int
    stored: int
    requested: int

    @property
    def distinct(self) -> int:
        return self.loaded + self.stored


@dataclass(frozen=True)
class Moved:
    """Records what a forward and a backward pass move. Bytes are of one token and head."""

    forward: list[Traffic]
    backward: list[Traffic]
    token_heads: int
    compulsory: float

    @property
    def forward_bytes(self) -> float:
        return sum(t.distinct for t in self.forward) / self.token_heads

    @property
    def backward_bytes(self) -> float:
        return sum(t.distinct for t in self.backward) / self.token_heads

    @property
    def bytes(self) -> float:
        return self.forward_bytes + self.backward_bytes

    @property
    def requested(self) -> float:
        return sum(t.requested for t in (*self.forward, *self.backward)) / self.token_heads

    @property
    def launches(self) -> str:
        """`2 + 0, 2 + 1`: Triton's + operations of torch, forward and backward."""
        passes = ([t.kind for t in traffic] for traffic in (self.forward, self.backward))
        return ", ".join(f"{kinds.count('triton')} + {kinds.count('torch')}" for kinds in passes)


@dataclass(frozen=True)
class Passes:
    """A forward and a backward pass whose bytes are counted.

    forward() returns y and what backward(dy, *rest) needs besides; that computes the gradients of all inputs.
    """

    inputs: Sequence[Tensor]
    forward: Callable[[], tuple[Tensor, ...]]
    backward: Callable[..., Any]
    token_heads: int


def differentiated(function: Callable[..., Tensor], inputs: list[Tensor], token_heads: int) -> Passes:
    """Returns the passes of `y = function(*inputs)`, the backward one by torch's autograd."""

    def forward() -> tuple[Tensor, ...]:
        y = function(*inputs)
        return y, y

    return Passes(inputs, forward, lambda dy, y: torch.autograd.grad(y, inputs, dy), token_heads)


def measure(passes: Passes) -> Moved:
    """Counts both passes.

    Compulsory: the forward pass reads the inputs and writes y; the backward pass reads the inputs and dy and writes the
    inputs' gradients. Inputs without a time axis are too small to matter.
    """
    with count_traffic() as forward:
        y, *rest = passes.forward()
    dy = torch.ones_like(y)
    with count_traffic() as backward:
        passes.backward(dy, *rest)
    in_time = sum(x.numel() * x.element_size() for x in passes.inputs if x.ndim > 2)
    compulsory = 3 * in_time + 2 * y.numel() * y.element_size()
    return Moved(forward, backward, passes.token_heads, compulsory / passes.token_heads)


@contextmanager
def count_traffic() -> Iterator[list[Traffic]]:
    """The launches and torch operations inside the block, in their order; both passes if autograd runs inside.

    Raises ValueError where Triton isn't interpreted.
    """
    if not interpreted():
        raise ValueError("bytes are counted in Triton's interpreter; remedy: start the process with TRITON_INTERPRET=1")
    counter = _TorchCounter()
    with _hooked_interpreter(counter), counter:
        yield counter.traffic


class _TorchCounter(TorchDispatchMode):
    """Counts torch operations; those of the interpreter itself, while it runs a kernel, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic: list[Traffic] = []
        self.launch: _LaunchCounter | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "prims"):
            with self:  # a custom op is what it does
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        result = func(*args, **kwargs)
        if self.launch is None and not _moves_nothing(func, args, result):
            self._record(func, args, kwargs, result)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        written = {id(x): x for x in tree_leaves(result) if isinstance(x, Tensor)}
        inputs = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        name = func.overloadpacket.__name__
        read = [x for i, x in inputs.items() if not (name in FILLS or (i in written and name in OVERWRITES))]
        loaded, stored = sum(map(_extent, read)), sum(map(_extent, written.values()))
        if loaded + stored:
            self.traffic.append(Traffic(name, "torch", loaded, stored, loaded + stored))


def _moves_nothing(func: Any, args: Any, result: Any) -> bool:
    """Says whether it makes a view, as `contiguous` does at times, or memory that nobody has written yet."""
    if func.overloadpacket.__name__ in (*ALLOCATIONS, "_unsafe_view", "lift_fresh"):
        return True
    given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)}
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return views and all(x.untyped_storage().data_ptr() in given for x in tree_leaves(result))


def _extent(x: Tensor) -> int:
    """Bytes of memory behind a tensor, an expanded dimension once."""
    return x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


class _LaunchCounter:
    """Marks every byte that a launch loads and stores, in one map for each storage among its arguments."""

    def __init__(self, name: str, tensors: list[Tensor]) -> None:
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors if x.numel()}
        starts = sorted(storages)
        self.name = name
        self.starts = np.array(starts, np.uint64)
        self.sizes = [storages[start].nbytes() for start in starts]
        self.loaded, self.stored = ([np.zeros(size + -size % 8, np.uint8) for size in self.sizes] for _ in range(2))
        self.requested = 0

    def load(self, pointers: Any, mask: Any) -> None:
        for storage, elements, width in self._locate(pointers, mask):
            own = self.stored[storage].view(width)[elements] != 0
            self.loaded[storage].view(width)[elements[~own]] = np.iinfo(width).max

    def store(self, pointers: Any, mask: Any) -> None:
        for storage, elements, width in self._locate(pointers, mask):
            self.stored[storage].view(width)[elements] = np.iinfo(width).max

    def _locate(self, pointers: Any, mask: Any) -> Iterator[tuple[int, np.ndarray, Any]]:
        """(storage, indices of elements in it, their width as a dtype) for every storage that is pointed into."""
        itemsize = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        width = np.dtype(f"u{itemsize}").type
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        self.requested += addresses.size * itemsize
        storages = np.searchsorted(self.starts, addresses, side="right") - 1
        for storage in np.unique(storages):
            offsets = addresses[storages == storage] - self.starts[storage]
            if storage < 0 or int(offsets.max()) + itemsize > self.sizes[storage]:
                raise IndexError(f"{self.name} reaches outside its tensors")
            yield int(storage), offsets // itemsize, width

    def traffic(self) -> Traffic:
        loaded, stored = (int(sum(map(np.count_nonzero, maps))) for maps in (self.loaded, self.stored))
        return Traffic(self.name, "triton", loaded, stored, self.requested)


@contextmanager
def _hooked_interpreter(counter: _TorchCounter) -> Iterator[None]:
    """Tells the counter of every launch, load and store. Triton has no such hooks, and no promise on their arguments
    beyond the first ones, so that these replace methods and hand on whatever else there is."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    def launch(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(executor: Any, *args: Any, **kwargs: Any) -> None:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            counter.launch = _LaunchCounter(executor.fn.__name__, tensors)
            try:
                original(executor, *args, **kwargs)
                counter.traffic.append(counter.launch.traffic())
            finally:
                counter.launch = None

        return run

    def load(original: Callable[..., Any]) -> Callable[..., Any]:
        def hook(builder: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            assert counter.launch is not None
            counter.launch.load(pointers, mask)
            return original(builder, pointers, mask, *rest, **named)

        return hook

    def store(original: Callable[..., Any]) -> Callable[..., Any]:
        def hook(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            assert counter.launch is not None
            counter.launch.store(pointers, mask)
            return original(builder, pointers, value, mask, *rest, **named)

        return hook

    def refuse(original: Callable[..., Any]) -> Callable[..., Any]:
        def hook(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError("atomics aren't counted")

        return hook

    hooks = [
        (GridExecutor, "__call__", launch),
        (InterpreterBuilder, "create_masked_load", load),
        (InterpreterBuilder, "create_masked_store", store),
        (InterpreterBuilder, "create_atomic_rmw", refuse),
        (InterpreterBuilder, "create_atomic_cas", refuse),
    ]
    originals = [getattr(owner, name) for owner, name, _ in hooks]
    try:
        for (owner, name, hook), original in zip(hooks, originals, strict=True):
            setattr(owner, name, hook(original))
        yield
    finally:
        for (owner, name, _), original in zip(hooks, originals, strict=True):
            setattr(owner, name, original)
