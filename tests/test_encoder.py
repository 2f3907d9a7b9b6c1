"""The encoder's poolings, positions and towers do what they say, for every mixer, and padding changes nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mixerzoo import list_mixers
from mixerzoo.blocks.depth import DepthWalk
from mixerzoo.blocks.scan_order import scan_passes
from mixerzoo.registry.catalog import MIXERS
from mixerzoo.tasks import BackboneConfig
from mixerzoo.tasks.models.encoder import POOLINGS, POSITIONS, PairClassifier, SequenceClassifier, SequenceEncoder
from tests.tolerances import assert_close

MAX_LENGTH = 12


def backbone(mixer: str) -> BackboneConfig:
    return BackboneConfig({"name": mixer, **MIXERS.get(mixer).fitted(64, 16)}, dim=32, depth=2)


def encoder(mixer: str = "hgrn2", **keywords) -> SequenceEncoder:
    return SequenceEncoder(backbone(mixer), **{"vocab_size": 7, "max_length": MAX_LENGTH, **keywords}).double()


@pytest.mark.parametrize("mixer", list_mixers())
@pytest.mark.parametrize(("pooling", "positions"), list(product(POOLINGS, POSITIONS)))
def test_padding_changes_nothing_wherever_it_stands(mixer, pooling, positions) -> None:
    model = encoder(mixer, pooling=pooling, positions=positions)
    tokens = torch.randint(7, (2, 6))
    for left, right in ((0, 4), (4, 0), (1, 2)):
        padded = torch.nn.functional.pad(tokens, (left, right), value=3)
        mask = torch.nn.functional.pad(torch.ones(2, 6, dtype=torch.bool), (left, right))
        assert_close(model(padded, mask=mask), model(tokens))


@pytest.mark.parametrize("mixer", list_mixers())
def test_both_directions_by_default_and_one_if_asked(mixer) -> None:
    """Pooled at the last token, a causal encoder of the reversed sequence differs from one that reads both ways."""
    for bidirectional in (True, False):
        model = encoder(mixer, bidirectional=bidirectional)
        assert all(block.mixer.bidirectional == bidirectional for block in model.stack.blocks)


def test_poolings_are_the_mean_the_last_and_the_class_token() -> None:
    tokens = torch.randint(7, (3, 5))
    mean, last = encoder(), encoder(pooling="last")
    last.load_state_dict(mean.state_dict())
    y = mean.stack(mean.embedding(tokens))
    assert_close(mean(tokens), y.mean(1))
    assert_close(last(tokens), y[:, -1])
    model = encoder(pooling="class")
    x = torch.cat([model.embedding(tokens), model.class_token.expand(3, 1, -1)], 1)
    assert_close(model(tokens), model.stack(x)[:, -1])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_tell_places_apart(positions) -> None:
    """All tokens are one and the same, so that only a position can tell the places."""
    model = encoder(positions=positions)
    x = model._with_positions(model.embedding(torch.zeros(1, 5, dtype=torch.long)), torch.arange(5)[None])
    assert len(x[0].unique(dim=0)) == 5


def test_features_go_through_a_linear_map() -> None:
    model = encoder(vocab_size=None, channels=3)
    assert model(torch.randn(2, 5, 3, dtype=torch.float64)).shape == (2, 32)


def test_every_parameter_gets_a_gradient() -> None:
    model = SequenceClassifier(
        backbone("attention"),
        4,
        {"vocab_size": 7, "pooling": "class", "positions": "learned", "max_length": MAX_LENGTH},
    )
    model(torch.randint(7, (2, MAX_LENGTH))).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("head", ["nli", "concat"])
def test_the_towers_share_weights_and_the_order_of_the_pair_matters(head) -> None:
    model = PairClassifier(backbone("gla"), 2, {"vocab_size": 7}, head=head).double()
    pairs = torch.randint(7, (3, 2, 9))
    mask = torch.arange(9) < torch.tensor([[5, 9], [9, 2], [7, 7]])[..., None]
    logits = model(pairs, mask=mask)
    assert logits.shape == (3, 2)
    assert (logits != model(pairs.flip(1), mask=mask.flip(1))).any()
    a, b = (torch.stack([model.encoder(p[i][m[i]][None])[0] for p, m in zip(pairs, mask, strict=True)]) for i in (0, 1))
    features = [a, b, a - b, a * b] if head == "nli" else [a, b]
    assert_close(logits, model.head(torch.cat(features, -1)))


@pytest.mark.parametrize("mixer", list_mixers())
@pytest.mark.parametrize("order", ["both", "series", "hilbert"])
def test_scan_orders_reach_every_mixer(mixer, order) -> None:
    """Each block goes through the passes of the image, by the same mixer, one after the other."""
    model = encoder(mixer, vocab_size=None, channels=1, scan_order=order, grid=(3, 4))
    image = torch.randn(2, 12, 1, dtype=torch.float64)
    x = model.embedding(image)
    walk = DepthWalk(model.stack)
    for block in model.stack.blocks:
        shared = walk(block, x)
        y = block.mixer_norm(x)
        for orders in scan_passes(order, 3, 4):
            y = block.mixer(y, shared=shared, orders=orders)
        x = block.finish(x, y)
    assert_close(model(image), model.stack.norm(x).mean(1))
    model.stack.gradient_checkpointing = True
    assert_close(model(image), model.stack.norm(x).mean(1))


def test_embedding_dropout_comes_after_the_positions() -> None:
    model = encoder(positions="sinusoidal", embedding_dropout=0.5)
    seen: list[torch.Tensor] = []
    model.stack.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.zeros(64, 12, dtype=torch.long))
    assert 0.4 < float((seen[0] == 0).double().mean()) < 0.6
    model.eval()(torch.zeros(64, 12, dtype=torch.long))
    assert not (seen[1] == 0).all(-1).any()


def test_embeddings_start_as_wide_as_asked() -> None:
    weight = encoder(vocab_size=500, embedding_std=1.0).embedding.weight
    assert 0.95 < weight.detach().std() < 1.05


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; known: 'mean', 'last', 'class'"),
        ({"positions": "rotary"}, "unknown positions 'rotary'; known: 'none', 'learned', 'sinusoidal'"),
        ({"channels": 3}, "either vocab_size or channels, got vocab_size=7 and channels=3"),
        ({"vocab_size": None}, "either vocab_size or channels, got vocab_size=None and channels=None"),
        ({"positions": "learned", "max_length": None}, "learned positions need max_length"),
        ({"scan_order": "rows"}, "unknown scan order 'rows'; did you mean row"),
        (
            {"scan_order": "both"},
            "scan order 'both' goes through an image, got grid=None and pooling='mean'; remedy: grid",
        ),
        ({"scan_order": "snake", "grid": (3, 4), "pooling": "class"}, "got grid=\\(3, 4\\) and pooling='class'"),
    ],
)
def test_mistakes_are_explained(keywords, message) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**keywords)


def test_learned_positions_end_somewhere() -> None:
    with pytest.raises(ValueError, match="learned positions reach to 12 tokens, got 14; remedy: a larger max_length"):
        encoder(positions="learned")(torch.zeros(1, 14, dtype=torch.long))


def test_an_image_has_its_size_and_no_padding() -> None:
    model = encoder(scan_order="both", grid=(3, 4))
    with pytest.raises(ValueError, match="scan order 'both' needs 3 x 4 tokens, got 9"):
        model(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="orders exclude mask"):
        model(torch.zeros(1, 12, dtype=torch.long), mask=torch.ones(1, 12, dtype=torch.bool))
