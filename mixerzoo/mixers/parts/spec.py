"""What is known about a mixer without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FAMILIES = ("attention", "matrix state", "vector state", "convolution", "memory", "nonlinear")
CAPABILITIES = {
    "causal": "forward without a look ahead, prefill and step",
    "bidirectional": "bidirectional=True, or always when it isn't causal",
    "constant_state": "a state that does not grow with the sequence",
    "short_conv": "short_conv=W, a causal convolution of width W",
    "flip_equivariant": "bidirectional, it commutes with reversing the sequence",
    "depth_shared": "takes something that a model's layers share, HGRN's lower bounds for instance",
    "plane": "a form of its own on the two axes of an image, under the scan order `plane`",
}
LIMITS = {
    "compile": "torch.compile in one graph, and torch.export",
    "backends": "a choice of backend: it has no op",
    "orders": "scan orders: of an image it takes the rows as one sequence",
    "length": "any length but its keyword `length`",
    "padding": "a mask",
    "packing": "cu_seqlens",
}


@dataclass(frozen=True)
class MixerSpec:
    """Says what a mixer is; docs, tests, tables and grids read it.

    Args:
        paper: "arXiv:..." of the source.
        equation: in the code's own names.
        family: attention | matrix state | vector state | convolution | memory | nonlinear.
        ops: folders of `mixerzoo/kernels` it runs on.
        state: formula of the numbers that a sequence's memory or cache holds after T tokens, without windows.
        flops: formula of the forward FLOPs of one sequence of T tokens.
        capabilities: promises, of CAPABILITIES; every law that follows from one is tried.
        cannot: what others can and this one can't, of LIMITS; the laws of these are left out.
        without_positions: keywords that switch off its own position encoding, for a model that adds one.
        paper_images: keywords of its authors' image models.

    Formulas have the letters T (tokens), D (width), params (weights of linear maps and windows, one multiply-add a
    token each) and those that `Mixer.letters` adds.
    """

    paper: str
    equation: str
    family: str
    ops: tuple[str, ...]
    state: str
    flops: str
    capabilities: frozenset[str]
    cannot: frozenset[str] = frozenset()
    without_positions: Mapping[str, Any] = field(default_factory=dict)
    paper_images: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown family {self.family!r}; known: {', '.join(FAMILIES)}")
        for what, named, known in (
            ("capabilities", self.capabilities, CAPABILITIES),
            ("limits", self.cannot, LIMITS),
        ):
            if unknown := named - known.keys():
                raise ValueError(f"unknown {what} {sorted(unknown)}; known: {', '.join(sorted(known))}")
        if not {"causal", "bidirectional"} & self.capabilities:
            raise ValueError(f"a mixer is causal, bidirectional or both, got capabilities {sorted(self.capabilities)}")
