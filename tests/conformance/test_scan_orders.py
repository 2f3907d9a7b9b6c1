"""A scan order walks through an image in the same way as a loop over its lines."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from mixerzoo.blocks.scan_order import BY_LINES, SCAN_ORDERS, scan_passes
from mixerzoo.mixers.parts.contract import Mixer
from mixerzoo.mixers.parts.frame import LinearMixer

from ..tolerances import assert_close, assert_identical
from .zoo import build, each_mixer, tokens

HEIGHT, WIDTH = 3, 5
each_order = pytest.mark.parametrize("order", SCAN_ORDERS)
WHOLE_IMAGE = [order for order in SCAN_ORDERS if order not in BY_LINES]


def sequences(order: str) -> list[list[list[int]]]:
    """Returns every pass's scanned sequences of tokens, written down from the names' meaning."""
    rows = [[i * WIDTH + j for j in range(WIDTH)] for i in range(HEIGHT)]
    columns = [[i * WIDTH + j for i in range(HEIGHT)] for j in range(WIDTH)]
    return {
        "row": [[[*chain(*rows)]]],
        "column": [[[*chain(*columns)]]],
        "cross": [[[*chain(*rows)], [*chain(*columns)]]],
        "both": [[*rows, *columns]],
        "series": [columns, rows],
        "snake": [[[*chain(*(row[::-1] if i % 2 else row for i, row in enumerate(rows)))]]],
        "hilbert": [[[0, 5, 6, 1, 2, 3, 8, 7, 12, 13, 11, 10, 14, 9, 4]]],
    }[order]


def scanned(mixer: Mixer, x: Tensor, order: str, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    for orders in scan_passes(order, height, width):
        x = mixer(x, orders=orders)
    return x


def by_hand(mixer: Mixer, x: Tensor, lines: list[list[int]]) -> Tensor:
    """Runs one pass, a sequence at a time; a linear mixer's sequences are summed before its readout."""
    if not isinstance(mixer, LinearMixer):
        y = torch.zeros_like(x)
        for line in lines:
            y = y.index_add(1, torch.tensor(line), mixer(x[:, line]))
        return y
    inner: list[Tensor] = []
    readout = mixer.readout
    mixer.readout = lambda y, x: inner.append(y) or x  # type: ignore[method-assign]
    total = None
    for line in lines:
        mixer(x[:, line])
        part = inner.pop()
        total = part.new_zeros(*x.shape[:2], *part.shape[2:]) if total is None else total
        total = total.index_add(1, torch.tensor(line), part)
    del mixer.readout
    assert mixer.readout == readout
    return readout(total, x)


@each_mixer()
@each_order
def test_an_order_is_a_loop_over_its_sequences(config: dict, order: str) -> None:
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    expected = x
    for lines in sequences(order):
        expected = by_hand(mixer, expected, lines)
    assert_close(scanned(mixer, x, order), expected)


@each_mixer()
@pytest.mark.parametrize("order, other", [("row", "column"), ("cross", "cross"), ("both", "both")])
def test_transposing_the_image_swaps_rows_and_columns(config: dict, order: str, other: str) -> None:
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    turned = x.unflatten(1, (HEIGHT, WIDTH)).transpose(1, 2).flatten(1, 2)
    y = scanned(mixer, turned, other, WIDTH, HEIGHT)
    assert_close(y.unflatten(1, (WIDTH, HEIGHT)).transpose(1, 2).flatten(1, 2), scanned(mixer, x, order))


@each_mixer(only="plain")
@each_order
def test_gradients_flow_through_an_order(config: dict, order: str) -> None:
    mixer, x = build(config), tokens(1, HEIGHT * WIDTH).requires_grad_()
    weights = torch.randn_like(x)
    for gradient in torch.autograd.grad((scanned(mixer, x, order) * weights).sum(), [x, *mixer.parameters()]):
        assert gradient.any()


@each_mixer("bidirectional", only="plain")
@pytest.mark.parametrize("order", ["both", pytest.param("hilbert", marks=pytest.mark.slow)])
@torch.no_grad()
def test_an_order_compiles_without_a_graph_break(config: dict, order: str) -> None:
    torch._dynamo.reset()
    mixer, x = build(config), tokens(1, 6)
    compiled = torch.compile(lambda x: scanned(mixer, x, order, 2, 3), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), scanned(mixer, x, order, 2, 3))


@each_mixer("bidirectional", "constant_state")
@pytest.mark.parametrize("order", ["cross", "both"])
def test_a_further_order_costs_no_linear_map(config: dict, order: str) -> None:
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    calls: list[nn.Module] = []
    for module in mixer.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    scanned(mixer, x, order)
    linear_maps = [module for module in mixer.modules() if isinstance(module, nn.Linear)]
    assert sorted(map(id, calls)) == sorted(map(id, linear_maps))


@each_order
@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (4, 4), (3, 5), (9, 2)])
def test_undoing_an_order_gives_the_image_back(order: str, height: int, width: int) -> None:
    x = torch.randn(2, height * width, 3, 2)
    for orders in scan_passes(order, height, width):
        for each in orders:
            assert_identical(each.undo(each.apply(x)), x)


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_hilberts_curve_goes_from_neighbour_to_neighbour(side: int) -> None:
    (((order,),),) = (scan_passes("hilbert", side, side),)
    path = order.apply(torch.arange(side * side)[None])[0]
    assert_identical(path.sort().values, torch.arange(side * side))
    step = torch.stack([path // side, path % side]).diff().abs().sum(0)
    assert step.eq(1).all()


@pytest.mark.parametrize("order", WHOLE_IMAGE)
def test_tokens_left_out_leave_the_others_in_order(order: str) -> None:
    (whole,) = sequences(order)
    kept = torch.tensor([[0, 3, 4, 7, 11, 14], [1, 2, 5, 8, 9, 13]])
    (orders,) = scan_passes(order, HEIGHT, WIDTH, kept=kept)
    ways = [each.apply(kept) for each in orders] or [kept]
    for way, line in zip(ways, whole, strict=True):
        for row, present in zip(way.tolist(), kept.tolist(), strict=True):
            assert row == [token for token in line if token in present]


@pytest.mark.parametrize("order", WHOLE_IMAGE)
def test_the_class_token_stands_in_the_middle_of_every_order(order: str) -> None:
    (whole,) = sequences(order)
    count = HEIGHT * WIDTH
    stored = torch.arange(count).tolist()
    stored.insert(count // 2, -1)
    (orders,) = scan_passes(order, HEIGHT, WIDTH, class_token=True)
    x = torch.tensor([stored])
    for way, line in zip([each.apply(x) for each in orders] or [x], whole, strict=True):
        assert way[0].tolist() == [*line[: count // 2], -1, *line[count // 2 :]]
    for each in orders:
        assert_identical(each.undo(each.apply(x)), x)


def test_unknown_orders_and_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown scan order 'rows'; did you mean row"):
        scan_passes("rows", 2, 2)
    with pytest.raises(ValueError, match="height and width must be at least 1, got 0 x 3"):
        scan_passes("row", 0, 3)
    for order in BY_LINES:
        with pytest.raises(ValueError, match=f"'{order}' cuts the image into lines.*remedy: one of row"):
            scan_passes(order, 2, 2, class_token=True)
        with pytest.raises(ValueError, match="cuts the image into lines"):
            scan_passes(order, 2, 2, kept=torch.tensor([[0, 1]]))


@each_mixer(only="plain")
def test_orders_exclude_padding_and_packing(config: dict) -> None:
    mixer, x = build(config), tokens(1, 6)
    ((column,),) = scan_passes("column", 2, 3)
    with pytest.raises(ValueError, match="orders exclude mask and cu_seqlens; remedy"):
        mixer(x, orders=(column,), mask=torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="orders exclude mask and cu_seqlens; remedy"):
        mixer(x, orders=(column,), cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises((ValueError, RuntimeError)):
        mixer(x[:, :5], orders=(column,))
