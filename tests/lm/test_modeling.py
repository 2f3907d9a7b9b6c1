"""The transformers models have laws: caches, padding, packing, checkpoints and loss agree with the plain forward."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DataCollatorWithFlattening, DynamicCache

from mixerzoo import mixer_info
from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM, MixerModel
from mixerzoo.tasks.lm.transformers_model import loss
from mixerzoo.tasks.lm.transformers_model.cache import MixerCache
from tests.lm.models import END, VOCABULARY, cache_of, config_of, every_layer, model_of, plain_layers, some_ids
from tests.test_architecture import fresh_process
from tests.tolerances import assert_close, assert_identical

HGRN2 = {"name": "hgrn2", "expand": 8}
ATTENTION = {"name": "attention", "num_heads": 2}


def test_the_grid_needs_no_transformers():
    fresh_process("import sys, mixerzoo.tasks.lm.text; assert 'transformers' not in sys.modules")


def test_the_auto_classes_know_the_models():
    config = config_of(HGRN2)
    assert type(AutoConfig.for_model("mixerzoo")) is MixerConfig
    assert type(AutoModel.from_config(config)) is MixerModel
    assert type(AutoModelForCausalLM.from_config(config)) is MixerForCausalLM


@every_layer
@torch.no_grad()
def test_a_cache_changes_nothing(mixer):
    """Whole rows, rows with a prompt and then token by token, and rows in two chunks have the same logits."""
    model, ids = model_of(mixer), some_ids(2, 9)
    whole = model(ids, use_cache=False).logits
    cached = model(ids[:, :4], use_cache=True)
    parts = [cached.logits]
    for t in range(4, 9):
        cached = model(ids[:, t : t + 1], cache=cache_of(cached))
        parts.append(cached.logits)
    assert_close(torch.cat(parts, 1), whole)
    first = model(ids[:, :3], use_cache=True)
    second = model(ids[:, 3:], cache=cache_of(first))
    assert_close(torch.cat([first.logits, second.logits], 1), whole)
    assert cache_of(second).get_seq_length() == 9


@torch.no_grad()
def test_a_cache_has_the_name_of_before_transformers_5_24_too(monkeypatch):
    """The models, and `generate` with them, use no name that transformers warns of."""
    monkeypatch.setattr(logging.Logger, "warning_once", lambda logger, message: pytest.fail(message))
    model, ids = model_of(HGRN2), some_ids(1, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for decoder in (model, model.model):
            new, old = MixerCache(model.config), MixerCache(model.config)
            for part in ids.split(3, dim=1):
                expected, got = decoder(part, cache=new), decoder(part, past_key_values=old)
                assert cache_of(expected) is new and cache_of(got) is old
                assert_identical(got[0], expected[0])
        model.generate(ids, max_new_tokens=2, eos_token_id=END)


@plain_layers
@torch.no_grad()
def test_padding_changes_nothing(mixer):
    model, ids = model_of(mixer), some_ids(2, 8)
    whole = model(ids[:1]).logits
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, [0, 1, 4]] = 0
    padded = ids.clone()
    padded[1, mask[1] == 1] = ids[0, :5]
    logits = model(padded, attention_mask=mask).logits
    assert_close(logits[1, mask[1] == 1], whole[0, :5])
    prompt = model(padded[:, :5], attention_mask=mask[:, :5], use_cache=True)
    rest = model(padded[:, 5:], attention_mask=mask, cache=cache_of(prompt))
    assert_close(rest.logits, logits[:, 5:])


@plain_layers
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(mixer):
    model = model_of(mixer)
    documents = [some_ids(1, length) for length in (5, 1, 6)]
    alone = torch.cat([model(document).logits for document in documents], 1)
    collator = DataCollatorWithFlattening(return_tensors="pt")
    batch = collator([{"input_ids": document[0].tolist()} for document in documents])
    assert_close(model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits, alone)
    packed = model(torch.cat(documents, 1), cu_seqlens=torch.tensor([0, 5, 6, 12]), use_cache=True)
    assert_close(packed.logits, alone)
    assert cache_of(packed) is None
    rows = batch["input_ids"].expand(2, -1), batch["position_ids"].expand(2, -1)
    assert_close(model(input_ids=rows[0], position_ids=rows[1]).logits, alone.expand(2, -1, -1))


def test_the_collators_keywords_for_flash_attention_are_understood():
    model, collator = model_of(HGRN2), DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)
    documents = [some_ids(1, length) for length in (5, 3)]
    batch = collator([{"input_ids": document[0].tolist()} for document in documents])
    loss = model(**batch).loss
    each = [F.cross_entropy(model(d).logits[0, :-1], d[0, 1:], reduction="sum") for d in documents]
    assert_close(loss, (sum(each) / 6).float())


@plain_layers
def test_only_what_grows_with_the_sequence_grows(mixer):
    model = model_of(mixer)
    short, long = (_numbers(cache_of(model(some_ids(1, length), use_cache=True))) for length in (6, 60))
    layers = mixer if isinstance(mixer, list) else [mixer]
    grows = any(
        "constant_state" not in mixer_info(layer["name"]).capabilities and layer.get("window") is None
        for layer in layers
    )
    assert (long > short) == grows


def _numbers(cache: MixerCache) -> int:
    return sum(tensor.numel() for layer in cache.layers for tensor in tree_leaves(layer.state))


@plain_layers
def test_a_checkpoint_gives_the_model_back(mixer, tmp_path):
    model, ids = model_of(mixer, tie_word_embeddings=True), some_ids(1, 5)
    model.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_identical(dict(again.named_parameters()), dict(model.named_parameters()))
    assert_close(again(ids).logits, model(ids).logits)
    low = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert low(ids).logits.isfinite().all()


@every_layer
def test_what_a_checkpoint_lacks_starts_as_in_a_new_model(mixer, tmp_path):
    """from_pretrained builds on the meta device, where no constructor has set anything."""
    torch.manual_seed(1)
    new = MixerForCausalLM(config_of(mixer))
    new.save_pretrained(tmp_path)
    kept = {"model.embed_tokens.weight": new.model.embed_tokens.weight.detach()}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = MixerForCausalLM.from_pretrained(tmp_path)
    assert not [name for name, tensor in loaded.named_parameters() if tensor.is_meta]
    for (name, value), (_, other) in zip(loaded.named_parameters(), new.named_parameters(), strict=True):
        assert value.isfinite().all(), name
        size, expected = (float(x.detach().square().mean().sqrt()) for x in (value, other))
        assert expected / 2 <= size <= 2 * expected, f"{name} starts {size:.3g} wide, in a new model {expected:.3g}"


@plain_layers
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(mixer, reentrant):
    model, ids = model_of(mixer).train(), some_ids(2, 7)

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    kept = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_close(gradients(), kept)


def test_the_loss_is_that_of_transformers():
    """It is shifted, leaves -100 out, and is divided by num_items_in_batch, with and without logits."""
    model, ids = model_of(HGRN2), some_ids(2, 7)
    labels = ids.clone()
    labels[:, :3] = -100
    logits, targets = model(ids).logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    mean, total = (F.cross_entropy(logits, targets, reduction=reduction) for reduction in ("mean", "sum"))
    for skip in (False, True):
        assert_close(model(ids, labels=labels, skip_logits=skip).loss, mean)
        count = torch.tensor(5)
        assert_close(model(ids, labels=labels, skip_logits=skip, num_items_in_batch=count).loss, total / 5)
        shift = labels.roll(-1, 1)
        shift[:, -1] = -100
        assert_close(model(ids, labels=ids, skip_logits=skip, shift_labels=shift).loss, mean)
    assert model(ids, labels=labels, skip_logits=True).logits is None
    assert model.train()(ids, labels=labels).logits is None
    assert model(ids, labels=labels, skip_logits=False).logits is not None


def test_while_training_the_logits_of_a_row_are_never_there_as_a_whole(monkeypatch):
    ids = some_ids(1, 64)
    whole = 64 * VOCABULARY

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY,):
                    self.largest = max(self.largest, tensor.numel())
            return result

    def step(**settings):
        torch.manual_seed(0)
        model = model_of(HGRN2, **settings).train()
        with Largest() as seen:
            model(ids, labels=ids).loss.backward()
        return seen.largest, {name: parameter.grad for name, parameter in model.named_parameters()}

    logits_size, gradients = step(fused_loss=False)
    assert logits_size == whole
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 10 * VOCABULARY)
    chunk_size, chunked = step()
    assert chunk_size == max(10 * VOCABULARY, 16 * VOCABULARY)  # the head's gradient is [V,D] with D = 16
    for name, gradient in gradients.items():
        assert_close(chunked[name].float(), gradient.float())


def test_hidden_states_are_those_between_the_blocks():
    model, ids = model_of(HGRN2), some_ids(2, 5)
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert_identical(states[0], model.model.embed_tokens(ids))
    assert_close(model.lm_head(states[-1]), model(ids).logits)
    assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def test_the_vocabulary_can_grow():
    model = model_of(HGRN2, tie_word_embeddings=True)
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model(torch.tensor([[VOCABULARY + 2]])).logits.shape == (1, 1, VOCABULARY + 3)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_pattern_is_tiled_and_heads_go_to_who_has_them(tmp_path):
    config = MixerConfig([HGRN2, "gla", {"name": "attention", "num_heads": 4}], hidden_size=16, num_hidden_layers=4,
                         num_attention_heads=2, intermediate_size=24)  # fmt: skip
    assert [mixer["name"] for mixer in config.mixers] == ["hgrn2", "gla", "attention", "hgrn2"]
    assert [mixer.get("num_heads") for mixer in config.mixers] == [None, 2, 4, None]
    assert config.layer_types == ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    assert config.glu == {"hidden": 24}
    config.save_pretrained(tmp_path)
    assert "layer_types" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoConfig.from_pretrained(tmp_path).mixers == config.mixers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixer": {"expand": 3}}, r"mixer must be a name, a configuration with a 'name', or a list of those"),
        ({"mixer": []}, r"mixer must be a name"),
        ({"mixer": "hgrn3"}, r"unknown mixer 'hgrn3'; did you mean"),
        ({"mixer": {"name": "gla", "expand": 3}}, r"unknown keyword of mixer 'gla': 'expand'"),
        ({"mixer": {"name": "gla", "dim": 8}}, r"hidden_size=16, got a mixer with dim=8; remedy: leave it out"),
        ({"mixer": {"name": "gla", "bidirectional": True}}, r"can't have bidirectional=True"),
        ({"mixer": "gla", "channel_mixer": {"width": 3}}, r"unknown keyword of channel_mixer 'width'"),
        (
            {"mixer": "gla", "channel_mixer": "glu"},
            r"channel_mixer must be keywords of GLU, .* got 'glu'",
        ),
        ({"mixer": "gla", "num_hidden_layers": 2.5}, r"num_hidden_layers must be a whole number, at least 1, got 2.5"),
        ({"mixer": "gla", "vocab_size": "9"}, r"vocab_size must be a whole number, at least 1, got '9'"),
    ],
)
def test_mistakes_in_a_configuration_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        MixerModel(MixerConfig(**{"hidden_size": 16, "num_hidden_layers": 1, **settings}))


def test_mistakes_in_a_call_are_explained():
    model, ids = model_of(ATTENTION), some_ids(1, 4)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.model.embed_tokens(ids))
    with pytest.raises(ValueError, match=r"attention_mask must be .* with T=4, nonzero = token, got \(1, 3\)"):
        model(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="packed documents exclude padding and a past"):
        model(ids, cu_seqlens=torch.tensor([0, 4]), attention_mask=torch.tensor([[0, 1, 1, 1]]))
    foreign = DynamicCache()
    foreign.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    with pytest.raises(ValueError, match="holds tokens of another kind of model, got DynamicCache"):
        model(ids, cache=foreign)
    cache = cache_of(model(ids, use_cache=True))
    with pytest.raises(ValueError, match="Both `past_key_values` and `cache` are set"):
        model(ids, cache=cache, past_key_values=cache)
    with pytest.raises(
        ValueError, match=r"can forget the 0 tokens it has recorded, got 2 to remove; remedy: activate_past_recording"
    ):
        cache.crop(-2)
    with pytest.raises(ValueError, match="cache_implementation='quantized' isn't supported"):
        model.generate(ids, max_new_tokens=1, cache_implementation="quantized", eos_token_id=END)
