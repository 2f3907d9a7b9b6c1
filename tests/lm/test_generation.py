"""Laws of generation say: a cache may be saved, reordered, cropped or split, and the tokens are those of whole rows."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, DynamicCache, StaticCache

from mixerzoo.tasks.lm.transformers_model.cache import CACHE_NAME
from tests.lm.models import END, LAYERS, PAD, PLAIN, cache_of, model_of, plain_layers, some_ids
from tests.tolerances import assert_close, assert_identical

SETTINGS = {"max_new_tokens": 6, "eos_token_id": END, "pad_token_id": PAD, "min_new_tokens": 6}


def generate(model, ids, **settings):
    torch.manual_seed(0)
    return model.generate(ids, **{"do_sample": False, **SETTINGS, **settings})


@plain_layers
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampling", "beams", "beam-sampling", "several"],
)
def test_a_cache_changes_no_token(mixer, settings):
    model, ids = model_of(mixer), some_ids(2, 5)
    assert_identical(generate(model, ids, **settings), generate(model, ids, use_cache=False, **settings))


@plain_layers
def test_a_batch_of_prompts_padded_on_the_left_is_generated_as_each_alone(mixer):
    model = model_of(mixer)
    prompts = [some_ids(1, length) for length in (7, 4, 1)]
    padded = torch.cat([torch.nn.functional.pad(prompt, (7 - prompt.shape[1], 0), value=PAD) for prompt in prompts])
    together = generate(model, padded, attention_mask=(padded != PAD).long())
    for prompt, row in zip(prompts, together, strict=True):
        assert_identical(row[7 - prompt.shape[1] :], generate(model, prompt)[0])
    beams = generate(model, padded, attention_mask=(padded != PAD).long(), num_beams=2)
    assert_identical(beams[1, 3:], generate(model, prompts[1], num_beams=2)[0])


@plain_layers
@pytest.mark.parametrize("tokens", [1, 4])
def test_an_assistant_changes_no_token(mixer, tokens):
    """A rejected proposal leaves no trace in any state, nor in the assistant's own."""
    model, ids = model_of(mixer), some_ids(1, 5)
    greedy = generate(model, ids, max_new_tokens=16, min_new_tokens=16)
    assistant = model_of(LAYERS["hgrn2-plain"])
    assistant.generation_config.num_assistant_tokens = tokens
    assistant.generation_config.assistant_confidence_threshold = 0.0
    for helper in (assistant, model):
        assisted = generate(model, ids, assistant_model=helper, max_new_tokens=16, min_new_tokens=16)
        assert_identical(assisted, greedy)
    twice = ids.repeat(1, 3)
    looked_up = generate(model, twice, prompt_lookup_num_tokens=tokens, max_new_tokens=16, min_new_tokens=16)
    assert_identical(looked_up, generate(model, twice, max_new_tokens=16, min_new_tokens=16))
    early = generate(model, ids, assistant_early_exit=1, max_new_tokens=16, min_new_tokens=16)
    assert_identical(early, greedy)


@plain_layers
@torch.no_grad()
@pytest.mark.parametrize("removed", [1, 3, 4])
def test_a_cropped_cache_goes_on_as_if_nothing_had_been(mixer, removed):
    model, ids, others = model_of(mixer), some_ids(2, 9), some_ids(2, 4)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :2] = 0
    whole = model(ids, attention_mask=mask).logits
    cache = cache_of(model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True))
    cache.activate_past_recording()
    tail = torch.cat([ids[:, 5 : 9 - removed], others[:, :removed]], 1)
    model(tail, attention_mask=mask, cache=cache)
    cache.crop(-removed)
    assert cache.get_seq_length() == 9 - removed
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([2, 1]))
    end = model(ids[:, 9 - removed :], attention_mask=mask, cache=cache)
    assert_close(end.logits, whole[:, 9 - removed :])


@plain_layers
def test_a_cache_can_be_continued_split_allocated_and_moved(mixer):
    model, ids = model_of(mixer), some_ids(2, 6)
    greedy = generate(model, ids)
    half = generate(model, ids, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    rest = generate(model, half.sequences, **{CACHE_NAME: cache_of(half)}, max_new_tokens=3, min_new_tokens=3)
    assert_identical(rest, greedy)
    for settings in (
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {CACHE_NAME: DynamicCache()},
        {CACHE_NAME: DynamicCache(config=model.config)},
        {CACHE_NAME: StaticCache(config=model.config, max_cache_len=20)},
    ):
        assert_identical(generate(model, ids, **settings), greedy)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    assert_identical(generate(model, ids, cache_implementation="static", **beams), generate(model, ids, **beams))


@plain_layers
def test_a_model_in_training_that_checkpoints_generates_the_same(mixer):
    model, ids = model_of(mixer), some_ids(2, 5)
    greedy = generate(model, ids)
    model.train().gradient_checkpointing_enable()
    assert_identical(generate(model, ids), greedy)


def test_decoding_with_a_static_cache_is_compiled_once():
    """Two prompts run, one padded: neither a state nor its length is a reason to compile again."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, ids = model_of(PLAIN["hybrid"]), some_ids(4, 5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    compiling = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    compiling._compile_all_devices = True
    for rows in (slice(0, 2), slice(2, 4)):
        settings = {"attention_mask": mask[rows]}
        static = generate(model, ids[rows], cache_implementation="static", compile_config=compiling, **settings)
        assert_identical(static, generate(model, ids[rows], **settings))
    assert len(graphs) == 1


@torch.no_grad()
def test_a_static_cache_keeps_its_tensors():
    model, ids = model_of(PLAIN["hybrid"]), some_ids(2, 6)
    cache = StaticCache(config=model.config, max_cache_len=8)
    head = model(ids[:, :4], cache=cache).logits
    addresses = [tensor.data_ptr() for layer in cache.layers for tensor in tree_leaves(layer.state)]
    tail = model(ids[:, 4:], cache=cache).logits
    cache.reorder_cache(torch.tensor([1, 0]))
    assert [tensor.data_ptr() for layer in cache.layers for tensor in tree_leaves(layer.state)] == addresses
    assert cache.is_compileable and cache.get_seq_length() == 6
    assert_close(torch.cat([head, tail], 1), model(ids).logits)
    with pytest.raises(ValueError, match="the cache holds max_length=8 tokens, got 9"):
        model(ids[:, :3], cache=cache)


@plain_layers
def test_embeddings_can_be_the_prompt(mixer):
    model, ids = model_of(mixer), some_ids(2, 5)
    embeddings = model.get_input_embeddings()(ids)
    assert_identical(generate(model, None, inputs_embeds=embeddings), generate(model, ids)[:, 5:])


def test_what_generate_hands_back_has_the_shapes_that_transformers_promises():
    model, ids = model_of([LAYERS["hgrn2-short-conv"], LAYERS["attention-grouped"]]), some_ids(2, 5)
    out = generate(model, ids, return_dict_in_generate=True, output_hidden_states=True, output_logits=True)
    assert [tuple(states[-1].shape) for states in out.hidden_states] == [(2, 5, 16)] + 5 * [(2, 1, 16)]
    linear, attention = cache_of(out).layers
    assert attention.keys.shape == attention.values.shape == (2, 2, 10, 4)
    assert linear.recurrent_states[0].shape == (2, 2, 8, 8)
    assert linear.conv_states[0].shape == (2, 48, 3)
    assert linear.keys is None
    assert linear.batch_size == attention.batch_size == 2
