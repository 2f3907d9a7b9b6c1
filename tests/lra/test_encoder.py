"""The encoder: poolings, positions and towers do what they say, for every mixer, and padding changes nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mixerzoo import list_mixers
from mixerzoo.ablation.grid import MIXER_SETTINGS
from mixerzoo.tasks import BackboneConfig
from mixerzoo.tasks.lra.encoder import POOLINGS, POSITIONS, PairClassifier, SequenceClassifier, SequenceEncoder
from tests.tolerances import assert_close

MAX_LENGTH = 12


def backbone(mixer: str) -> BackboneConfig:
    return BackboneConfig({"name": mixer, **MIXER_SETTINGS.get(mixer, {})}, dim=32, depth=2)


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
    first, second = torch.randint(7, (2, 5)), torch.randint(7, (2, 9))
    logits = model(first, second)
    assert logits.shape == (2, 2)
    assert (logits != model(second, first)).any()
    padded = torch.nn.functional.pad(first, (0, 3))
    assert_close(model(padded, second, first_mask=torch.arange(8).expand(2, 8) < 5), logits)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; known: 'mean', 'last', 'class'"),
        ({"positions": "rotary"}, "unknown positions 'rotary'; known: 'none', 'learned', 'sinusoidal'"),
        ({"channels": 3}, "either vocab_size or channels, got vocab_size=7 and channels=3"),
        ({"vocab_size": None}, "either vocab_size or channels, got vocab_size=None and channels=None"),
        ({"positions": "learned", "max_length": None}, "learned positions need max_length"),
    ],
)
def test_mistakes_are_explained(keywords, message) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**keywords)


def test_learned_positions_end_somewhere() -> None:
    with pytest.raises(ValueError, match="learned positions reach to 12 tokens, got 14; remedy: a larger max_length"):
        encoder(positions="learned")(torch.zeros(1, 14, dtype=torch.long))
