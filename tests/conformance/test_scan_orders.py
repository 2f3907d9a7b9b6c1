"""A scan order walks through an image in the same way as a loop over its lines."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from mixerzoo.blocks.scan_order import BY_LINES, SCAN_ORDERS, WHOLE_IMAGE, scan_passes
from mixerzoo.mixers.parts import LinearMixer, Mixer

from ..tolerances import assert_close, assert_identical
from .zoo import CONFIGURATIONS, build, each_mixer, tokens

HEIGHT, WIDTH = 3, 5
each_order = pytest.mark.parametrize("order", SCAN_ORDERS)
each_way = pytest.mark.parametrize("order", [order for order in SCAN_ORDERS if order != "plane"])
OF_ANY_TOKENS = [order for order in SCAN_ORDERS if order not in WHOLE_IMAGE]


def in_the_frame(config: dict) -> bool:
    """Maps stand in `project` alone, and no window before them sees another neighbour in every order."""
    mixer = build(config)
    return isinstance(mixer, LinearMixer) and mixer.before is None and mixer.bidirectional


each_frame = pytest.mark.parametrize(
    "config", [pytest.param(c, id=label) for label, c in CONFIGURATIONS.items() if in_the_frame(c)]
)


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


@each_mixer(needs=("orders", "length"))
@each_way
def test_an_order_is_a_loop_over_its_sequences(config: dict, order: str) -> None:
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    expected = x
    for lines in sequences(order):
        expected = by_hand(mixer, expected, lines)
    assert_close(scanned(mixer, x, order), expected)


@each_mixer(needs=("orders", "length"))
@pytest.mark.parametrize("order, other", [("row", "column"), ("cross", "cross"), ("both", "both")])
def test_transposing_the_image_swaps_rows_and_columns(config: dict, order: str, other: str) -> None:
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    turned = x.unflatten(1, (HEIGHT, WIDTH)).transpose(1, 2).flatten(1, 2)
    y = scanned(mixer, turned, other, WIDTH, HEIGHT)
    assert_close(y.unflatten(1, (WIDTH, HEIGHT)).transpose(1, 2).flatten(1, 2), scanned(mixer, x, order))


@each_mixer(needs=("orders", "length"), only="plain")
@each_way
def test_gradients_flow_through_an_order(config: dict, order: str) -> None:
    mixer, x = build(config), tokens(1, HEIGHT * WIDTH).requires_grad_()
    weights = torch.randn_like(x)
    for gradient in torch.autograd.grad((scanned(mixer, x, order) * weights).sum(), [x, *mixer.parameters()]):
        assert gradient.any()


@each_mixer("bidirectional", needs=("orders", "length", "compile"), only="plain")
@pytest.mark.parametrize("order", ["both", pytest.param("hilbert", marks=pytest.mark.slow)])
@torch.no_grad()
def test_an_order_compiles_without_a_graph_break(config: dict, order: str) -> None:
    torch._dynamo.reset()
    mixer, x = build(config), tokens(1, 6)
    compiled = torch.compile(lambda x: scanned(mixer, x, order, 2, 3), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), scanned(mixer, x, order, 2, 3))


@each_frame
@pytest.mark.parametrize("order", ["cross", "both"])
def test_a_further_order_costs_no_linear_map(config: dict, order: str) -> None:
    """But those of what was convolved, which differs by order: they stand in `mix`."""
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    calls: list[nn.Module] = []
    linear_maps = [module for module in mixer.modules() if isinstance(module, nn.Linear)]
    for module in linear_maps:
        module.register_forward_hook(lambda module, *_: calls.append(module))
    mix, of_convolved = mixer.mix, set[int]()

    def watched(*arguments):
        before = len(calls)
        result = mix(*arguments)
        of_convolved.update(map(id, calls[before:]))
        del calls[before:]
        return result

    mixer.mix = watched  # type: ignore[method-assign]
    scanned(mixer, x, order)
    assert sorted(map(id, calls)) == sorted({id(module) for module in linear_maps} - of_convolved)


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


@pytest.mark.parametrize("order", OF_ANY_TOKENS)
def test_tokens_left_out_leave_the_others_in_order(order: str) -> None:
    (whole,) = sequences(order)
    kept = torch.tensor([[0, 3, 4, 7, 11, 14], [1, 2, 5, 8, 9, 13]])
    (orders,) = scan_passes(order, HEIGHT, WIDTH, kept=kept)
    ways = [each.apply(kept) for each in orders] or [kept]
    for way, line in zip(ways, whole, strict=True):
        for row, present in zip(way.tolist(), kept.tolist(), strict=True):
            assert row == [token for token in line if token in present]


@pytest.mark.parametrize("order", OF_ANY_TOKENS)
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
    for order in WHOLE_IMAGE:
        reason = "cuts the image into lines" if order in BY_LINES else "needs the image's two axes"
        with pytest.raises(ValueError, match=f"'{order}' {reason}.*remedy: one of row"):
            scan_passes(order, 2, 2, class_token=True)
        with pytest.raises(ValueError, match=reason):
            scan_passes(order, 2, 2, kept=torch.tensor([[0, 1]]))


@each_mixer(needs=("orders", "length"), only="plain")
def test_orders_exclude_padding_and_packing(config: dict) -> None:
    mixer, x = build(config), tokens(1, 6)
    ((column,),) = scan_passes("column", 2, 3)
    with pytest.raises(ValueError, match="orders exclude mask and cu_seqlens; remedy"):
        mixer(x, orders=(column,), mask=torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="orders exclude mask and cu_seqlens; remedy"):
        mixer(x, orders=(column,), cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises((ValueError, RuntimeError)):
        mixer(x[:, :5], orders=(column,))


@each_mixer(needs=("length",), only="plain")
def test_a_plane_is_for_mixers_with_two_axes(config: dict) -> None:
    mixer, x = build(config), tokens(2, HEIGHT * WIDTH)
    ((plane,),) = scan_passes("plane", HEIGHT, WIDTH)
    if "plane" not in mixer.spec.capabilities:
        with pytest.raises(ValueError, match="has no form on two axes; remedy: another scan order"):
            mixer(x, orders=(plane,))
        return
    y = mixer(x, orders=(plane,))
    assert_close(mixer(x[1:], orders=(plane,)), y[1:])
    changed = x.clone()
    changed[:, 0] = tokens(2, 1)[:, 0]
    below = (mixer(changed, orders=(plane,)) - y).view(2, HEIGHT, WIDTH, -1)[:, 1, 0]
    assert below.abs().amax() > 1e-9  # the neighbour in the next row, WIDTH tokens away, is a neighbour
    with pytest.raises(ValueError, match="a plane stands alone and covers the T=14 tokens"):
        mixer(x[:, 1:], orders=(plane,))
