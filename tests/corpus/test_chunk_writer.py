"""Shards: LitData reads back exactly what was written, and the bytes depend on nothing but the
documents.
"""

import io
import itertools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litdata import StreamingDataset
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter

from lit_pretrain.corpus.chunk_reader import read_chunk_header
from lit_pretrain.corpus.chunk_writer import ShardWriter, assemble_chunks
from lit_pretrain.corpus.manifest import SourceSplit, verify_chunk

VOCAB = {"uint16": 2**16, "int32": 2**17}


def write(
    directory: Path, documents: list[npt.NDArray[np.generic]], chunk_tokens: int
) -> SourceSplit:
    dtype = str(documents[0].dtype)
    writer = ShardWriter(
        directory.parent / "part",
        part=0,
        dtype=dtype,
        chunk_tokens=chunk_tokens,
        vocab_size=VOCAB[dtype],
    )
    for n, ids in enumerate(documents):
        writer.add(ids, origin=f"Grüße {n}", utf8_bytes=3 * len(ids))
    split = assemble_chunks(
        directory,
        [(0, directory.parent / "part", writer.close())],
        dtype=dtype,
        chunk_tokens=chunk_tokens,
    )
    shutil.rmtree(directory.parent / "part")
    assert writer.cut == sum(len(ids) > chunk_tokens for ids in documents)
    return split


def numbered(lengths: list[int], dtype: str) -> list[npt.NDArray[np.generic]]:
    """Documents of ids that differ everywhere and use the whole range."""
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, VOCAB[dtype], length).astype(dtype) for length in lengths]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    chunk_tokens=st.integers(2, 50),
    dtype=st.sampled_from(sorted(VOCAB)),
)
def test_written_is_read_back(lengths: list[int], chunk_tokens: int, dtype: str) -> None:
    documents = numbered(lengths, dtype)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "x")
        split = write(directory, documents, chunk_tokens)
        assert (split.documents, split.tokens, split.bytes) == (
            len(lengths),
            sum(lengths),
            3 * sum(lengths),
        )
        rows = [
            json.loads(line)
            for line in (directory / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        stored: dict[int, list[npt.NDArray[np.generic]]] = {n: [] for n in range(len(documents))}
        at = 0
        number_of = [int(row["origin"].removeprefix("Grüße ")) for row in rows]
        for chunk in split.chunks:
            verify_chunk(directory / chunk.filename, chunk)
            data = (directory / chunk.filename).read_bytes()
            offsets = read_chunk_header(io.BytesIO(data))
            assert (chunk.tokens, chunk.documents) == (
                (offsets[-1] - offsets[0]) // np.dtype(dtype).itemsize,
                len(offsets) - 1,
            )
            assert chunk.tokens <= chunk_tokens
            for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
                row = rows[at]
                assert (row["chunk"], row["row_in_chunk"]) == (chunk.filename, number)
                stored[number_of[at]].append(np.frombuffer(data[begin:end], dtype=dtype))
                assert len(stored[number_of[at]][-1]) == row["tokens"]
                at += 1
        assert at == len(rows)
        for number, ids in enumerate(documents):
            np.testing.assert_array_equal(np.concatenate(stored[number]), ids)
            assert sum(
                row["bytes"] for row, n in zip(rows, number_of, strict=True) if n == number
            ) == 3 * len(ids)
            assert [len(piece) for piece in stored[number][:-1]] == [chunk_tokens] * (
                len(stored[number]) - 1
            )
        index = json.loads((directory / "index.json").read_text())
        assert [
            (c["filename"], c["dim"], c["chunk_size"], c["chunk_bytes"]) for c in index["chunks"]
        ] == [(c.filename, c.tokens, c.documents, c.bytes) for c in split.chunks]


@pytest.mark.parametrize("dtype", sorted(VOCAB))
def test_litdata_reads_it(tmp_path: Path, dtype: str) -> None:
    """The contract with litdata: its own loader gives the stream of every chunk, in order,
    block by block.
    """
    documents = numbered([7, 1, 130, 55, 64, 3, 200, 31], dtype)
    split = write(tmp_path / "x", documents, 128)
    block = 8
    dataset = StreamingDataset(
        str(tmp_path / "x"), item_loader=TokensLoader(block_size=block), shuffle=False
    )
    read = [dataset[n] for n in range(len(dataset))]
    stream = np.concatenate(documents)
    expected, begin = [], 0
    for chunk in split.chunks:
        usable = chunk.tokens // block * block  # litdata leaves the tail of a chunk
        expected += list(stream[begin : begin + usable].reshape(-1, block))
        begin += chunk.tokens
    assert begin == len(stream)
    np.testing.assert_array_equal(np.stack(read), np.stack(expected))
    assert read[0].dtype == np.dtype(dtype)


def test_bytes_are_the_same_in_any_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = numbered([20, 30, 40], "uint16")
    write(tmp_path / "a", documents, 60)
    for name, value in {
        "DATA_OPTIMIZER_GLOBAL_RANK": "3",
        "WORLD_SIZE": "4",
        "GLOBAL_RANK": "2",
        "NNODES": "2",
        "NODE_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    write(tmp_path / "b", documents, 60)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["chunk-0-0.bin", "chunk-0-1.bin", "documents.jsonl", "index.json"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_index_tells_other_content(tmp_path: Path) -> None:
    write(tmp_path / "a", [np.array([1, 2], dtype=np.uint16)], 60)
    write(tmp_path / "b", [np.array([1, 3], dtype=np.uint16)], 60)
    stamps = [
        json.loads((tmp_path / name / "index.json").read_text())["updated_at"] for name in "ab"
    ]
    assert stamps[0] != stamps[1]  # else a remote reader would go on with the chunks in its cache


@pytest.mark.parametrize("dtype", sorted(VOCAB))
def test_the_bytes_are_those_of_litdatas_own_writer(tmp_path: Path, dtype: str) -> None:
    documents = numbered([7, 1, 30, 25, 64, 3, 20, 31], dtype)
    split = write(tmp_path / "ours", documents, 64)
    writer = BinaryWriter(str(tmp_path / "theirs"), chunk_size=64, item_loader=TokensLoader())
    for number, ids in enumerate(documents):
        writer.add_item(number, ids)
    writer.done()
    theirs = json.loads((tmp_path / "theirs" / "0.index.json").read_text())
    ours = json.loads((tmp_path / "ours" / "index.json").read_text())
    assert len(split.chunks) > 2
    assert ours["config"] == theirs["config"]
    assert ours["chunks"] == theirs["chunks"]
    for chunk in split.chunks:
        assert (tmp_path / "ours" / chunk.filename).read_bytes() == (
            tmp_path / "theirs" / chunk.filename
        ).read_bytes()


def test_ids_and_dtype_are_checked(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a", part=0, dtype="uint16", chunk_tokens=10, vocab_size=5)
    for ids in (
        np.array([5], dtype=np.uint16),
        np.array([1], dtype=np.int64),
        np.array([], dtype=np.uint16),
    ):
        with pytest.raises(AssertionError):
            writer.add(ids, origin="", utf8_bytes=0)
    writer.abort()


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x01\0\0\0\x0c\0\0\0\x0d\0\0\0", b"\xff" * 100, bytes(4)]
)
def test_offsets_of_what_is_not_a_chunk(data: bytes) -> None:
    with pytest.raises(ValueError, match="its header counts"):
        read_chunk_header(io.BytesIO(data))
