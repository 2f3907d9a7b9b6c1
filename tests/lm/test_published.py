"""flash-linear-attention's checkpoints are read exactly, written back bit for bit, and refused whole when damaged."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixerzoo.tasks.lm import MixerForCausalLM, MixerModel
from mixerzoo.tasks.lm.convert import convert
from mixerzoo.tasks.lm.flash_linear_attention.checkpoints import read_tensors
from tests.lm.models import config_of, some_ids
from tests.lm.published import LAYOUTS, MODELS, logits, synthesised, written_by_fla
from tests.tolerances import assert_close, assert_identical

every_layout = pytest.mark.parametrize("label", MODELS)


def settings_of(directory):
    return json.loads((directory / "config.json").read_text())


def loaded(directory):
    return MixerForCausalLM.from_pretrained(directory, dtype=torch.float64)


@every_layout
@torch.no_grad()
def test_a_published_model_computes_what_its_library_documents(label, tmp_path):
    tensors, ids = synthesised(label, tmp_path / "theirs"), some_ids(2, 9) % 23
    expected = logits(settings_of(tmp_path / "theirs"), tensors, ids)
    assert_close(loaded(tmp_path / "theirs")(ids).logits, expected)
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_close(loaded(tmp_path / "ours")(ids).logits, expected)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_the_same_bit_for_bit(label, dtype, tmp_path):
    tensors = synthesised(label, tmp_path / "theirs", dtype)
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", shard_size="2KB")
    convert(tmp_path / "back", tmp_path / "again")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert set(read_tensors(tmp_path / "back")) == set(tensors)
    assert_identical(read_tensors(tmp_path / "back"), _like(tmp_path / "back", tensors))
    assert_identical(read_tensors(tmp_path / "again"), read_tensors(tmp_path / "ours"))
    assert (tmp_path / "back" / "generation_config.json").exists()
    ignored = {"hidden_ratio", "transformers_version", "use_gk", "use_gv", "dtype", "num_heads", "conv_size"}
    theirs, back = (settings_of(tmp_path / folder) for folder in ("theirs", "back"))
    assert {key: back[key] for key in back if key not in ignored} == {
        key: theirs[key] for key in back if key not in ignored
    }


def _like(directory, tensors):
    """Orders tensors as the directory's files do."""
    return {name: tensors[name] for name in read_tensors(directory)}


def test_both_halves_of_the_glu_in_one_matrix_are_read(tmp_path):
    """Dumps of 2024 have one matrix: the first half of gate_proj's output is the gate."""
    tensors, ids = synthesised("gla", tmp_path / "new"), some_ids(1, 5) % 23
    old = {name: tensor for name, tensor in tensors.items() if "up_proj" not in name}
    for name in [name for name in old if "gate_proj" in name]:
        old[name] = torch.cat([tensors[name], tensors[name.replace("gate_proj", "up_proj")]])
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    assert_identical(loaded(tmp_path / "old")(ids).logits, loaded(tmp_path / "new")(ids).logits)


def test_settings_that_old_configurations_leave_out_have_their_defaults(tmp_path):
    tensors, ids = synthesised("hgrn2", tmp_path / "full"), some_ids(1, 5) % 23
    expected = loaded(tmp_path / "full")(ids).logits
    settings = settings_of(tmp_path / "full")
    needed = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "expand_ratio")
    (tmp_path / "full" / "config.json").write_text(json.dumps({key: settings[key] for key in needed}))
    assert_identical(loaded(tmp_path / "full")(ids).logits, expected)
    assert tensors


def test_the_backbone_alone_loads_too(tmp_path):
    synthesised("gla", tmp_path / "theirs")
    ids = some_ids(1, 5) % 23
    model = MixerModel.from_pretrained(tmp_path / "theirs", dtype=torch.float64)
    assert_identical(model(ids).last_hidden_state, loaded(tmp_path / "theirs").model(ids).last_hidden_state)


def test_what_lies_beside_the_weights_counts(tmp_path):
    """A checkpoint's settings of generation and chats count, read in place or converted."""
    synthesised("gla", tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.25}')
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ messages }}")
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == "{{ messages }}"
    for folder in ("theirs", "ours"):
        assert loaded(tmp_path / folder).generation_config.temperature == 0.25


def _damage_weights(change):
    def damage(directory):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return damage


def _truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _set(**settings):
    def damage(directory):
        (directory / "config.json").write_text(json.dumps(settings_of(directory) | settings))

    return damage


DAMAGES = {
    "truncated": (_truncate, r"model.safetensors is damaged: .*; remedy: fetch it again"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"model.safetensors is missing"),
    "no config": (lambda d: (d / "config.json").unlink(), r"cannot read .*config.json"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), r"cannot read .*config.json"),
    "no object": (lambda d: (d / "config.json").write_text("[]"), r"config.json: it must be an object, got a list"),
    "wrong kind": (_set(num_heads="4"), r"has a setting of the wrong kind"),
    "index no object": (lambda d: (d / "model.safetensors.index.json").write_text("[]"), r"cannot read .*index.json"),
    "missing": (_damage_weights(lambda t: t.pop("model.norm.weight")), r"it lacks model.norm.weight"),
    "unknown": (_damage_weights(lambda t: t.update(x=torch.zeros(1))), r"it has unknown x"),
    "wrong shape": (
        _damage_weights(lambda t: t.update({"model.norm.weight": torch.zeros(3)})),
        r"model.norm.weight is \(3,\), expected \(16,\)",
    ),
    "another family": (_set(model_type="mamba"), r"has model_type='mamba'; known: hgrn, hgrn2, gla"),
    "deeper": (_set(num_hidden_layers=4), r"it lacks model.layers.3.attn.* and \d+ more"),
    "narrower": (_set(intermediate_size=8), r"mlp.gate_proj.weight is \(24, 16\), expected \(8, 16\)"),
    "other activation": (_set(hidden_act="powlu"), r"gla with hidden_act='powlu' isn't in the zoo; supported: 'swish'"),
    "feature map": (_set(feature_map="relu"), r"gla with feature_map='relu' isn't in the zoo; supported: None"),
    "residuals": (_set(attnres_block_size=2), r"attnres_block_size=2 isn't in the zoo"),
    "attention nowhere": (_set(attn={"layers": [3], "num_heads": 2}), r"attn names layer 3, the model has 3"),
    "attention without heads": (_set(attn={"layers": [1]}), r"attn needs layers and num_heads, got \['layers'\]"),
    "shard missing": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part.safetensors"}}'),
        r"part.safetensors is missing",
    ),
    "index wrong": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model.safetensors"}}'),
        r"doesn't name the tensors that are there: lm_head.weight and \d+ more",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused_whole(damage, message, tmp_path):
    synthesised("gla", tmp_path / "theirs")
    damage(tmp_path / "theirs")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    if "config.json" not in message and "model_type" not in message:
        with pytest.raises(ValueError, match=message):
            MixerForCausalLM.from_pretrained(tmp_path / "theirs")


def test_hgrn2_needs_a_number_of_heads_or_their_size(tmp_path):
    synthesised("hgrn2", tmp_path / "theirs")
    _set(expand_ratio=None, num_heads=None)(tmp_path / "theirs")
    with pytest.raises(ValueError, match="hgrn2 needs expand_ratio or num_heads, got neither"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_a_tied_head_must_be_the_embedding(tmp_path):
    tensors = synthesised("hgrn-short-conv", tmp_path / "theirs")
    tensors["lm_head.weight"] = tensors["model.embeddings.weight"].clone()
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    convert(tmp_path / "theirs", tmp_path / "ours")
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(ValueError, match=r"ties lm_head.weight to model.embeddings.weight, but they differ"):
        convert(tmp_path / "theirs", tmp_path / "other")


def test_a_target_is_never_overwritten(tmp_path):
    synthesised("gla", tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/ours: File exists"):
        convert(tmp_path / "theirs", tmp_path / "file" / "ours")
    with pytest.raises(ValueError, match=r"theirs already exists; remedy: another target"):
        convert(tmp_path / "theirs", tmp_path / "theirs")


@pytest.mark.parametrize(
    ("mixer", "settings", "message"),
    [
        ("hgrn2", {}, r"no hgrn2 with .*scale=1.0 \(only 0.088"),
        (
            {"name": "gla", "num_heads": 2, "norm": "layer"},
            {},
            r"no gla with .*mixers\[0\].norm='layer' \(only 'rms'\)",
        ),
        ({"name": "retnet", "num_heads": 2, "norm": "rms"}, {}, r"rotary='xpos' \(only 'rope'\)"),
        (["gla", "retnet"], {}, r"mixes attention with one of hgrn1, hgrn2, gla, retnet, got \['gla', 'retnet'\]"),
        ("attention", {"norm": "layer"}, r"no transformer with norm='layer' \(only 'rms'\)"),
        ("attention", {"channel_mixer": {"bias": True}}, r"channel_mixer.bias=True \(only False\)"),
        ("attention", {"channel_mixer": None}, r"channel_mixer.activation='none at all' \(only 'silu'\)"),
    ],
)
def test_what_flash_linear_attention_lacks_is_not_written(mixer, settings, message, tmp_path):
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 5}
    MixerForCausalLM(config_of(mixer, **sizes, **settings)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.slow
@every_layout
@torch.no_grad()
def test_what_flash_linear_attention_writes_itself_is_read_and_given_back(label, tmp_path):
    pytest.importorskip("fla")
    model = written_by_fla(MODELS[label], tmp_path / "theirs")
    tensors, ids = read_tensors(tmp_path / "theirs"), some_ids(2, 9) % 23
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == json.loads(LAYOUTS.read_text())[label][
        "tensors"
    ]
    assert_close(loaded(tmp_path / "theirs")(ids).logits, logits(settings_of(tmp_path / "theirs"), tensors, ids))
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    again, report = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_identical(dict(again.named_parameters()), dict(model.named_parameters()))
