"""Batch normalisation over tokens is torch's, and ignores padding."""

from __future__ import annotations

import pytest
import torch

from mixerzoo.blocks.stack import Stack
from mixerzoo.mixers.parts.norms import BLOCK_NORMS, BatchNorm, make_block_norm, make_norm
from tests.tolerances import assert_close

WIDTH = 6


def tokens(*shape: int) -> torch.Tensor:
    return 3 + 2 * torch.randn(*shape, WIDTH, dtype=torch.float64)


def test_it_is_torchs_batch_norm_over_all_tokens() -> None:
    ours, theirs = BatchNorm(WIDTH).double(), torch.nn.BatchNorm1d(WIDTH).double()
    with torch.no_grad():
        for parameter in (ours.weight, ours.bias):
            parameter.normal_()
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    for _ in range(3):
        x = tokens(4, 5).requires_grad_()
        assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))
        gradients = [torch.autograd.grad(y.pow(3).sum(), x)[0] for y in (ours(x), theirs(x.flatten(0, 1)))]
        assert_close(*gradients)
    assert_close(ours.mean, theirs.running_mean)
    assert_close(ours.variance, theirs.running_var)
    ours.eval(), theirs.eval()
    x = tokens(2, 3)
    assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))


def test_padding_does_not_count() -> None:
    padded, alone = BatchNorm(WIDTH).double(), BatchNorm(WIDTH).double()
    x = tokens(3, 7)
    mask = torch.rand(3, 7) < 0.6
    y = padded(x.masked_fill(~mask[..., None], 1e6), mask)
    assert_close(y[mask], alone(x[mask]))
    assert_close(padded.mean, alone.mean)
    assert_close(padded.variance, alone.variance)


def test_one_token_is_enough() -> None:
    norm = BatchNorm(WIDTH).double()
    assert norm(tokens(1)).isfinite().all()
    assert norm.variance.isfinite().all()


def test_low_precision_comes_back_and_statistics_stay_wide() -> None:
    norm = BatchNorm(WIDTH)
    assert norm(tokens(4, 5).bfloat16()).dtype == torch.bfloat16
    assert norm.mean.dtype == torch.float32


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_stack_takes_it_and_hands_it_the_mask(checkpointing: bool) -> None:
    """In training, too, padding changes nothing for the others of a batch."""
    torch.manual_seed(0)
    stack = Stack(16, 2, {"name": "gla", "num_heads": 2}, norm="batch", gradient_checkpointing=checkpointing).double()
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([5, 9, 2])[:, None]
    first = stack(x, mask=mask)
    second = stack(x.masked_fill(~mask[..., None], 50.0), mask=mask)
    wider = stack(torch.nn.functional.pad(x, (0, 0, 0, 4)), mask=torch.nn.functional.pad(mask, (0, 4)))
    assert_close(second[mask], first[mask])
    assert_close(wider[:, :9][mask], first[mask])


def test_evaluated_it_is_causal() -> None:
    """step, prefill and forward agree, because the averages of training take the place of the batch's."""
    torch.manual_seed(0)
    stack = Stack(16, 2, {"name": "hgrn2", "expand": 4}, norm="batch").double()
    for _ in range(3):
        stack(torch.randn(3, 9, 16, dtype=torch.float64))
    stack.eval()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    state, outputs = stack.init_state(2), []
    for x_t in x.unbind(1):
        y_t, state = stack.step(x_t, state)
        outputs.append(y_t)
    assert_close(torch.stack(outputs, 1), stack(x))


@pytest.mark.parametrize("kind", BLOCK_NORMS)
def test_every_name_is_a_norm(kind: str) -> None:
    assert make_block_norm(kind, WIDTH).double()(tokens(2, 3)).shape == (2, 3, WIDTH)


def test_mixers_take_norms_of_single_tokens_only() -> None:
    with pytest.raises(ValueError, match="unknown norm 'batch'; known: 'layer', 'rms', 'srms', 'group'"):
        make_norm("batch", WIDTH)
    with pytest.raises(ValueError, match=r"unknown norm 'instance'; known: .*'batch'"):
        make_block_norm("instance", WIDTH)
