"""Laws of a model's text say: every token comes once, the order is the same everywhere, and any step resumes."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mixerzoo.tasks.lm.data.sources import documents
from mixerzoo.tasks.lm.data.text_data import IGNORED, StreamedRows, ahead, load_data, load_tokens, make_batch
from mixerzoo.tasks.lm.data.token_files import (
    END,
    byte_tokenizer,
    count_bytes,
    encode,
    id_type,
    is_bytes,
    load_tokenizer,
    read_tokens,
    write_tokens,
)
from mixerzoo.tasks.lm.recipe import DataConfig
from tests.tolerances import assert_close

from .models import model_of, plain_layers

TEXTS = [f"document {i}: " + "añb𝄞 " * (i % 5) for i in range(40)]
STREAM = DataConfig(name="hfds:data", valid="text:data/x", streaming=True, length=16, shuffle_rows=4)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Writes the same documents in every kind of file."""
    from pyarrow import Table
    from pyarrow.parquet import write_table

    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "lines.jsonl").write_text(lines)
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    (tmp_path / "fake.gz").write_text(lines)
    (tmp_path / "numbers.jsonl").write_text(lines + '{"text": null}')
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02}.txt").write_text(text)
    write_table(Table.from_pydict({"text": TEXTS, "number": range(len(TEXTS))}), tmp_path / "table.parquet")
    data = tmp_path / "data"
    data.mkdir()
    for split, part in (("train", TEXTS), ("validation", TEXTS[:10])):
        for shard in range(2):
            rows = "".join(json.dumps({"text": text}) + "\n" for text in part[shard::2])
            (data / f"{split}-{shard}.jsonl").write_text(rows)
    return tmp_path


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = ["document", "b", "?", *special.values()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", **special)


def test_bytes_are_a_tokenizer_of_transformers(tmp_path):
    text = f"Ā hé\n{END}\x00\t𝄞  x"
    byte_tokenizer().save_pretrained(tmp_path)
    for tokenizer in (byte_tokenizer(), AutoTokenizer.from_pretrained(tmp_path)):
        assert is_bytes(tokenizer) and not is_bytes(word_tokenizer())
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert ids == encode(tokenizer, [text])[0].tolist() == list(text.encode())
        assert tokenizer.decode(ids) == text
        assert encode(tokenizer, ["a"], tokenizer.eos_token_id)[0].tolist() == [97, 256]
        assert count_bytes(tokenizer, np.array([*ids, 256])) == len(text.encode())


@pytest.mark.parametrize(("vocab_size", "expected"), [(257, "<u2"), (2**16, "<u2"), (2**16 + 1, "<u4")])
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocab_size, expected):
    assert id_type(vocab_size) == np.dtype(expected)


@pytest.mark.parametrize(
    "source",
    ["text:*.txt", "jsonl:lines.jsonl", "jsonl:lines.jsonl.gz", "parquet:table.parquet", "text:0*.txt,[1-9]*.txt"],
)
def test_all_files_give_the_same_tokens(folder, source):
    tokens, tokenizer = load_tokens(DataConfig(), source)
    expected = np.concatenate([np.append(np.frombuffer(text.encode(), np.uint8), 256) for text in TEXTS])
    assert np.array_equal(tokens.ids, expected) and tokens.end == 256 and tokens.tokenizer == "bytes"
    assert isinstance(tokens.ids, np.memmap) and is_bytes(tokenizer)
    joined, _ = load_tokens(DataConfig(end_documents=False), source)
    assert bytes(joined.ids.astype(np.uint8)).decode() == "".join(TEXTS) and joined.end is None


def test_data_sets_of_hugging_face_are_read(folder):
    texts = list(documents(DataConfig(), "hfds:data"))
    assert texts == [*TEXTS[::2], *TEXTS[1::2]]
    assert list(documents(DataConfig(), "hfds:data@validation")) == [*TEXTS[:10:2], *TEXTS[1:10:2]]


def test_a_tokenizer_of_ones_own(folder):
    word_tokenizer(eos_token="#").save_pretrained(folder / "words")
    config = DataConfig(tokenizer=str(folder / "words"))
    tokens, _ = load_tokens(config, "jsonl:lines.jsonl")
    assert tokens.vocab_size == 4 and (tokens.ids == 3).sum() == len(TEXTS) and tokens.ids[0] == 0
    data = load_data(replace(config, name="jsonl:lines.jsonl", valid="jsonl:lines.jsonl", length=8), seed=0)
    assert (data.vocab_size, data.end) == (4, 3)
    again, _ = load_tokens(DataConfig(), f"tokens:{tokens.ids.filename}")
    assert np.array_equal(again.ids, tokens.ids) and again.tokenizer == str(folder / "words")


def test_files_are_tokenized_once_and_again_when_they_change(folder, monkeypatch):
    first, _ = load_tokens(DataConfig(), "jsonl:lines.jsonl")
    stamp = Path(first.ids.filename).stat().st_mtime_ns
    assert Path(load_tokens(DataConfig(), "jsonl:lines.jsonl")[0].ids.filename).stat().st_mtime_ns == stamp
    (folder / "lines.jsonl").write_text('{"text": "new", "other": "x"}\n')
    assert load_tokens(DataConfig(), "jsonl:lines.jsonl")[0].ids.tolist() == [*b"new", 256]
    assert load_tokens(DataConfig(text_key="other"), "jsonl:lines.jsonl")[0].ids.tolist() == [*b"x", 256]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("text:missing.txt", {}, "there is no file 'missing.txt'"),
        ("text:", {}, "the data name no files; remedy: for example text:FILE"),
        (
            "jsonl:lines.jsonl",
            {"text_key": "content"},
            "line 1 of lines.jsonl is no JSON object with the field",
        ),
        (
            "parquet:table.parquet",
            {"text_key": "body"},
            r"has no column 'body' \(data.text_key\), it has text",
        ),
        ("parquet:00.txt", {}, "00.txt is not a parquet file"),
        ("parquet:data", {}, "data is not a parquet file: .*directory"),
        ("text:fake.gz", {}, "cannot read 'fake.gz': Not a gzipped file"),
        ("jsonl:cut.gz", {}, "cannot read 'cut.gz': Compressed file ended"),
        ("jsonl:numbers.jsonl", {}, r"'text' \(data.text_key\) of jsonl:numbers.jsonl must be text, got None"),
        ("parquet:table.parquet", {"text_key": "number"}, r"'number' \(data.text_key\) of .* must be text, got 0"),
        ("text:table.parquet", {}, "table.parquet is not UTF-8"),
        ("hfds:data", {"text_key": "body"}, "'data' has no column 'body'"),
        ("hfds:data@tset", {}, "cannot read the data set 'data': .*tset"),
        (
            "tokens:corpus",
            {},
            "there are no tokens corpus.bin with corpus.json; remedy: mixerzoo data",
        ),
        ("jsonl:lines.jsonl", {"tokenizer": "./nowhere"}, "cannot load the tokenizer './nowhere'"),
        ("jsonl:lines.jsonl", {"tokenizer": "endless"}, "has no end-of-text token; remedy: data.end_documents=false"),
    ],
)
def test_text_that_cannot_be_read_is_explained(folder, source, settings, message):
    word_tokenizer().save_pretrained(folder / "endless")
    with pytest.raises(ValueError, match=message):
        load_tokens(DataConfig(**settings), source)
    assert not list((folder / "cache").glob("*.json"))


def test_token_files_survive_what_files_do(tmp_path):
    path, tokenizer = tmp_path / "corpus.bin", byte_tokenizer()
    write_tokens(path, TEXTS, tokenizer, name="bytes")
    assert {file.name for file in tmp_path.iterdir()} == {"corpus.bin", "corpus.json"}
    with pytest.raises(ValueError, match=r"made with the tokenizer 'bytes', got data\.tokenizer='gpt2'; remedy: leave"):
        load_tokens(DataConfig(tokenizer="gpt2"), f"tokens:{path}")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"corpus.bin has \d+ bytes, not the \d+ tokens of"):
        read_tokens(path)
    with pytest.raises(ValueError, match="there is no text in the data"):
        write_tokens(tmp_path / "empty", [], tokenizer, name="bytes")
    (tmp_path / "raw.bin").write_bytes(np.arange(50, dtype="<u4").tobytes())
    (tmp_path / "raw.json").write_text('{"dtype": "uint32", "vocab_size": 100000}')
    raw, unknown = load_tokens(DataConfig(), f"tokens:{tmp_path / 'raw'}")
    assert raw.ids.tolist() == list(range(50)) and (raw.end, unknown) == (None, None)
    with pytest.raises(ValueError, match=r"nothing ends the documents of .*raw; remedy: data\.packing=concat"):
        load_data(DataConfig(name=f"tokens:{tmp_path / 'raw'}", packing="documents", length=2), seed=0)


def test_every_token_is_a_target_once_an_epoch(folder):
    data = load_data(DataConfig(name="jsonl:lines.jsonl", length=16, valid_fraction=0.1), seed=3)
    rows = data.train
    ids = rows.tokens.ids
    for epoch in range(2):
        taken = [rows.row(epoch * rows.count + i) for i in range(rows.count)]
        targets = np.sort(np.concatenate([row[1:] for row in taken]))
        assert np.array_equal(targets, np.sort(ids[1 : rows.count * 16 + 1]))
    other = load_data(DataConfig(name="jsonl:lines.jsonl", length=16, valid_fraction=0.1), seed=4).train
    orders = [
        [tuple(r.row(first + i)) for i in range(r.count)] for r, first in ((rows, 0), (rows, rows.count), (other, 0))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] and orders[0] != orders[2]
    whole, _ = load_tokens(DataConfig(), "jsonl:lines.jsonl")
    assert np.array_equal(np.concatenate([ids, data.valid.ids]), whole.ids)


def test_any_step_and_any_number_of_processes_see_the_same_batches(folder):
    rows = load_data(DataConfig(name="jsonl:lines.jsonl", length=16), seed=0).train
    alone = [batch for batch, _ in islice(rows.batches(0, 4, 0, 1), 30)]  # more than an epoch
    shares = [[batch for batch, _ in islice(rows.batches(5, 4, rank, 2), 25)] for rank in range(2)]
    for whole, even, odd in zip(alone[5:], *shares, strict=True):
        assert np.array_equal(whole[0::2], even) and np.array_equal(whole[1::2], odd)


def test_a_stream_gives_every_token_in_an_order_of_its_own(folder):
    stream = StreamedRows(STREAM, byte_tokenizer(), 256, seed=0, rank=0, processes=1)
    ids = np.concatenate([encode(byte_tokenizer(), [text], 256)[0] for text in [*TEXTS[::2], *TEXTS[1::2]]])
    count = len(ids) // 64 * 4
    rows = [row for row, _ in islice(stream._rows(None), count)]
    in_order = [ids[16 * i : 16 * i + 17].tolist() for i in range(count)]
    assert [row.tolist() for row in rows] != in_order
    blocks = [sorted(row.tolist() for row in rows[i : i + 4]) for i in range(0, count - 4, 4)]
    assert blocks == [sorted(in_order[i : i + 4]) for i in range(0, count - 4, 4)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_goes_on_from_where_it_was(folder, processes):
    """It resumes from every update of more than an epoch, in a process that has seen nothing."""

    def stream(rank):
        return StreamedRows(STREAM, byte_tokenizer(), 256, seed=0, rank=rank, processes=processes)

    straight = [list(islice(stream(rank).batches(0, 6, rank, processes), 14)) for rank in range(processes)]
    for rank in range(processes):
        for step in (1, 2, 5, 9, 12):
            state = json.loads(json.dumps(straight[rank][step - 1][1]))
            rest = islice(stream(rank).batches(step, 6, rank, processes, state), 14 - step)
            for (batch, _), (expected, _) in zip(rest, straight[rank][step:], strict=True):
                assert np.array_equal(batch, expected)
    if processes == 2:
        assert not np.array_equal(straight[0][0][0], straight[1][0][0])
        with pytest.raises(ValueError, match="goes on with as many processes as before, 2"):
            next(StreamedRows(STREAM, byte_tokenizer(), 256, seed=0, rank=0, processes=1).batches(0, 6, 0, 1, state))


def test_a_stream_without_text_is_explained(folder):
    (folder / "nothing").mkdir()
    (folder / "nothing" / "train.jsonl").write_text('{"text": ""}\n')
    config = replace(STREAM, name="hfds:nothing")
    with pytest.raises(ValueError, match="there is no text in process 0's share of hfds:nothing"):
        next(StreamedRows(config, byte_tokenizer(), None, seed=0, rank=0, processes=1).batches(0, 2, 0, 1))


def test_what_is_made_ahead_comes_in_order_and_with_its_errors():
    def numbers():
        yield from range(5)
        raise ValueError("no more")

    seen = []
    with pytest.raises(ValueError, match="no more"):
        seen += ahead(numbers())
    taken = ahead(numbers())
    assert [next(taken) for _ in range(5)] == list(range(5))


@plain_layers
def test_packed_documents_are_models_apart(mixer):
    """Packed rows have the loss of every piece of a document by itself, without padding."""
    model, end = model_of(mixer), 60
    rows = torch.randint(1, end, (2, 13)).numpy()
    rows[0, 4] = rows[0, 5] = rows[1, 11] = end
    batch = make_batch(rows, "documents", end)
    assert batch["cu_seqlens"].tolist() == [0, 5, 6, 12, 24]
    assert (batch["shift_labels"] == IGNORED).nonzero().tolist() == [[0, 4], [0, 5], [1, 11]]
    pieces = [rows[0, :5], rows[0, 6:13], rows[1, :12]]
    ids = [torch.from_numpy(piece)[None] for piece in pieces]
    nats = [model(piece, labels=piece).loss * (piece.shape[1] - 1) for piece in ids]
    assert_close(model(**batch, num_items_in_batch=1, use_cache=False).loss, torch.stack(nats).sum())


def test_a_name_for_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))
