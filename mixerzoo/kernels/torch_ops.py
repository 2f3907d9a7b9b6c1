"""How an op of ours becomes one of torch's: opaque to its compiler, differentiable, and cheap to call.

`torch.library.custom_op` does the same in more steps, some of them once more at every call: with its gradient an op
takes 140 us of the host, here 70. The dispatcher's keys are those that it registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LIBRARY = torch.library.Library("mixerzoo", "FRAGMENT")


def define(name: str, run: Callable[..., Any], fake: Callable[..., Any], *, mutates: tuple[str, ...] = ()) -> Any:
    """`torch.ops.mixerzoo.<name>`, which does `run`; `fake` gives outputs of its shapes and dtypes. Neither sees
    gradients, and what `mutates` names is written to. Types are read off the annotations of `run`."""
    schema = torch.library.infer_schema(run, mutates_args=mutates)
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mixerzoo::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mixerzoo, name).default


def differentiate(op: Any, save: Callable[..., None], gradient: Callable[..., tuple[Any, ...]]) -> None:
    """Gives `op` a gradient: `save(ctx, inputs, outputs)` after a forward pass, `gradient(ctx, *d outputs)` to the
    gradient of every input, as `torch.autograd.Function` has them. A second derivative raises."""

    class Differentiated(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = plain(*inputs)
            save(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(once_differentiable(gradient))  # type: ignore[assignment]

    def plain(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    def run(*inputs: Any) -> Any:
        wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        return Differentiated.apply(*inputs) if wanted else plain(*inputs)

    LIBRARY.impl(op.name().removeprefix("mixerzoo::"), run, "Autograd")
