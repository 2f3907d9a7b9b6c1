"""An op of ours becomes one of torch's here: opaque to its compiler, differentiable, and cheap to call.

`torch.library.custom_op` does the same in more steps, at every call, which the host has to wait for where tensors are
small. The dispatcher's keys are those that it registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
    gradient of every input, as `torch.autograd.Function` has them. Forward-mode derivatives raise."""

    def plain(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:  # with setup_context, torch inspects its signature at every call
            outputs = plain(*inputs)
            save(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(gradient)  # type: ignore[assignment]

    def run(*inputs: Any) -> Any:
        return Differentiated.apply(*inputs) if torch.is_grad_enabled() else plain(*inputs)

    LIBRARY.impl(op.name().removeprefix("mixerzoo::"), run, "Autograd")


def refuse_second_derivatives(op: Any) -> None:
    """For an op that computes gradients, and has none of its own: they would be zero, and nobody told."""

    def refuse(ctx: Any, *_: Any) -> tuple[Any, ...]:
        raise NotImplementedError(f"{op.name()} has no second derivatives; remedy: backend='torch'")

    differentiate(op, lambda ctx, inputs, outputs: None, refuse)
