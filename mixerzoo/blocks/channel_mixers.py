"""Channel mixers: what a block does with each token alone."""

from __future__ import annotations

from torch import Tensor, nn

from mixerzoo.kernels.pointwise import ACTIVATIONS
from mixerzoo.mixers.parts.checks import check_choice


class GLU(nn.Module):
    """`y = W_down (act(W_gate x) * W_up x)`; with act = silu this is SwiGLU (arXiv:2002.05202).

    Args:
        dim: width.
        multiplier: hidden width over dim, rounded down.
        hidden: the hidden width itself, in place of multiplier.
        activation: silu | sigmoid | none (the HGRN authors' language models).
        bias: on the three maps."""

    def __init__(
        self,
        dim: int,
        *,
        multiplier: float = 8 / 3,
        hidden: int | None = None,
        activation: str = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(ACTIVATIONS))
        hidden = int(multiplier * dim) if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"the hidden width must be at least 1, got {hidden}; remedy: a larger multiplier")
        self.activation = activation
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))
