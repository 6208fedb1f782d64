"""Rows: they are the stored tokens, and their document numbers are those that prepare wrote
down.
"""

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.corpus.manifest import Chunk, Manifest, rows_in
from lit_pretrain.corpus.rows import open_rows
from lit_pretrain.data.batches import Collate
from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256


def stored_chunks(
    dataset: Path, source: str, split: str = "train"
) -> list[tuple[np.ndarray, list[int]]]:
    """Tokens of every chunk and the lengths of its documents, read without LitData or our own
    reader.
    """
    folder = dataset / split / source
    lengths: dict[str, list[int]] = {}
    for line in (folder / "documents.jsonl").read_text().splitlines():
        document = json.loads(line)
        lengths.setdefault(document["chunk"], []).append(document["tokens"])
    found = []
    for name in sorted(lengths, key=lambda name: int(name.split("-")[2].split(".")[0])):
        raw = (folder / name).read_bytes()
        (count,) = struct.unpack_from("<I", raw)
        found.append((np.frombuffer(raw, dtype="<u2", offset=4 * (count + 2)), lengths[name]))
    return found


def open_source(
    dataset: Path,
    source: str,
    seq_len: int,
    *,
    vocab_size: int = 512,
    split: str = "train",
    **options: Any,
):
    chunks = Manifest.load(dataset).sources[source].splits[split].chunks
    folder = f"{split}/{source}"
    return open_rows(
        dataset / folder,
        seq_len=seq_len,
        vocab_size=vocab_size,
        chunks=chunks,
        folder=folder,
        **options,
    )


@pytest.mark.parametrize("seq_len", [3, 64, 1000])
@pytest.mark.parametrize("source", ["story", "sums", "code"])
def test_rows_are_the_stored_tokens_with_the_documents_that_prepare_wrote(
    dataset: Path, source: str, seq_len: int
) -> None:
    rows = open_source(dataset, source, seq_len)
    n = 0
    for tokens, lengths in stored_chunks(dataset, source):
        document_of = np.repeat(np.arange(len(lengths)), lengths)
        assert len(document_of) == len(tokens)
        for begin in range(0, (len(tokens) - 1) // seq_len * seq_len, seq_len):
            row = rows[n]
            assert row.tokens.dtype == np.int64
            assert row.doc.dtype == np.int32
            np.testing.assert_array_equal(row.tokens, tokens[begin : begin + seq_len + 1])
            inside = document_of[begin : begin + seq_len + 1]
            np.testing.assert_array_equal(row.doc, inside - inside[0])
            n += 1
    assert n == len(rows)


@given(seq_len=st.integers(1, 5000), source=st.sampled_from(["story", "sums", "code"]))
@settings(max_examples=25, deadline=None)
def test_every_token_but_a_chunks_first_and_its_tail_is_a_target_once(
    dataset: Path, seq_len: int, source: str
) -> None:
    rows = open_source(dataset, source, seq_len)
    targets = (
        np.concatenate([rows[n].tokens[1:] for n in range(len(rows))])
        if len(rows)
        else np.empty(0, dtype=np.int64)
    )
    wanted = [
        tokens[1 : 1 + rows_in(len(tokens), seq_len) * seq_len]
        for tokens, _ in stored_chunks(dataset, source)
    ]
    np.testing.assert_array_equal(targets, np.concatenate(wanted))
    for tokens, _ in stored_chunks(
        dataset, source
    ):  # what is lost is less than one row of each chunk
        assert 0 <= len(tokens) - 1 - rows_in(len(tokens), seq_len) * seq_len < seq_len


@pytest.mark.parametrize("source", ["story", "sums", "code"])
def test_held_out_text_that_fills_no_row_is_read_as_a_short_one(dataset: Path, source: str) -> None:
    chunks = stored_chunks(dataset, source, "validation")
    seq_len = max(len(tokens) for tokens, _ in chunks) + 10
    assert len(open_source(dataset, source, seq_len, split="validation")) == 0
    rows = open_source(dataset, source, seq_len, split="validation", held_out=True)
    assert len(rows) == len(chunks)
    for n, (tokens, _) in enumerate(chunks):
        row, missing = rows[n], seq_len + 1 - len(tokens)
        np.testing.assert_array_equal(row.tokens, [*tokens, *[IGNORE_INDEX] * missing])
        assert row.doc[-1] == row.doc[-missing] == row.doc[-missing - 1] + 1
        (batch,) = Collate(micro_batch_size=1, eos_id=0, cross_documents=False)([(0, 0, row)])
        assert batch.tokens_BT.min() >= 0
        supervised = batch.labels_BT[0] != IGNORE_INDEX
        np.testing.assert_array_equal(supervised, np.arange(seq_len) < len(tokens) - 1)
        np.testing.assert_array_equal(batch.labels_BT[0][supervised], tokens[1:])


@given(order=st.lists(st.integers(0, 10**6), min_size=1, max_size=60), keep_open=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_rows_are_read_in_any_order(dataset: Path, order: list[int], keep_open: int) -> None:
    rows = open_source(dataset, "sums", 50, keep_open=keep_open)
    whole = [
        row.tokens for row in map(open_source(dataset, "sums", 50).__getitem__, range(len(rows)))
    ]
    for n in order:
        np.testing.assert_array_equal(rows[n % len(rows)].tokens, whole[n % len(rows)])
    assert len(rows.item_loader._open) <= keep_open


def test_an_open_reader_travels_to_a_worker_without_its_maps(dataset: Path) -> None:
    rows = open_source(dataset, "story", 64)
    first = rows[0].tokens
    assert (
        len(pickle.dumps(rows.item_loader)) < 10_000
    )  # a pickled map would be a copy of the chunk
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows))[0].tokens, first)


# ---------------------------------------------------------------------- damage


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def chunk_file(copy: Path) -> tuple[Path, Chunk]:
    chunk = Manifest.load(copy).sources["sums"].splits["train"].chunks[1]
    return copy / "train" / "sums" / chunk.filename, chunk


def read_all(copy: Path, **options: int) -> None:
    rows = open_source(copy, "sums", 64, **options)
    for n in range(len(rows)):
        rows[n]


def test_a_flipped_bit_is_named_with_the_sha_it_should_have(copy: Path) -> None:
    file, chunk = chunk_file(copy)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"corrupted") as caught:
        read_all(copy)
    assert str(file) in str(caught.value)
    assert chunk.sha256 in str(caught.value)


def test_a_missing_chunk_is_named(copy: Path) -> None:
    file, chunk = chunk_file(copy)
    file.unlink()
    with pytest.raises(UserError, match="is missing") as caught:
        read_all(copy)
    assert str(file) in str(caught.value)
    assert chunk.sha256 in str(caught.value)


def test_a_chunk_that_vanishes_while_training_is_named(copy: Path) -> None:
    rows = open_source(copy, "sums", 64)
    for n in range(len(rows)):
        rows[n]
    chunk_file(copy)[0].unlink()
    with pytest.raises(UserError, match="is missing"):
        list(map(rows.__getitem__, range(len(rows))))


def test_a_truncated_chunk_is_named(copy: Path) -> None:
    file, chunk = chunk_file(copy)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="is truncated") as caught:
        read_all(copy)
    assert chunk.sha256 in str(caught.value)


def test_a_token_that_the_tokenizer_does_not_have_is_named(copy: Path) -> None:
    with pytest.raises(UserError, match=r"token id \d+ but the tokenizer has only ids 0 to 99"):
        read_all(copy, vocab_size=100)


@pytest.mark.parametrize("content", [None, "{", "[1, 2"])
def test_an_index_that_cannot_be_read_is_named(copy: Path, content: str | None) -> None:
    index = copy / "train" / "sums" / "index.json"
    index.unlink()
    if content is not None:
        index.write_text(content)
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        read_all(copy)


def test_an_index_of_another_dataset_is_refused(copy: Path) -> None:
    shutil.copy(copy / "train" / "story" / "index.json", copy / "train" / "sums" / "index.json")
    with pytest.raises(UserError, match="other chunks than the manifest"):
        read_all(copy)


def test_int32_tokens_are_read_too(tmp_path: Path) -> None:
    """Vocabularies beyond 65,536 ids are stored as int32."""
    from lit_pretrain.corpus.chunk_writer import ShardWriter, assemble_chunks

    writer = ShardWriter(
        tmp_path / "part", part=0, dtype=np.int32, chunk_tokens=50, vocab_size=200_000
    )
    for length in (5, 17, 9, 40):
        writer.add(
            np.arange(100_000, 100_000 + length, dtype=np.int32), origin="made", utf8_bytes=1
        )
    split = assemble_chunks(
        tmp_path / "train" / "wide",
        [(0, tmp_path / "part", writer.close())],
        dtype="int32",
        chunk_tokens=50,
    )
    rows = open_rows(
        tmp_path / "train" / "wide", seq_len=4, vocab_size=200_000, chunks=split.chunks
    )
    assert rows[0].tokens.tolist() == [100_000, 100_001, 100_002, 100_003, 100_004]
    assert rows[1].doc.tolist() == [0, 1, 1, 1, 1]
    assert all(
        file_sha256(tmp_path / "train" / "wide" / chunk.filename) == chunk.sha256
        for chunk in split.chunks
    )
