"""Stored text: counts and documents are those of the shards, to the last one."""

import itertools
import json
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lit_pretrain.corpus import chunk_reader as stored
from lit_pretrain.corpus.chunk_reader import (
    full_origin,
    open_chunk,
    read_document_records,
    sample_documents,
    token_counts,
)
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.pipeline import prepare
from lit_pretrain.prepare.prepare_config import (
    PrepareConfig,
    SourceConfig,
    SplitsConfig,
    TokenizerConfig,
)
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def rows(dataset: Path, manifest: Manifest, source: str) -> list[list[int]]:
    """The training rows of a source, read without our code."""
    found = []
    for chunk in manifest.sources[source].splits["train"].chunks:
        data = (dataset / "train" / source / chunk.filename).read_bytes()
        count = struct.unpack_from("<I", data)[0]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        kind, width = ("H", 2) if manifest.dtype == "uint16" else ("i", 4)
        for begin, end in itertools.pairwise(offsets):
            found.append(list(struct.unpack_from(f"<{(end - begin) // width}{kind}", data, begin)))
    return found


def test_counts_are_those_of_a_plain_loop(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_BLOCK_TOKENS", 1000)
    manifest = Manifest.load(dataset)
    plain = Counter(
        token
        for source in manifest.sources
        for row in rows(dataset, manifest, source)
        for token in row
    )
    counts = token_counts(dataset, manifest)
    assert counts.shape == (manifest.tokenizer.vocab_size,)
    assert {index: int(n) for index, n in enumerate(counts) if n} == dict(plain)
    assert counts.sum() == manifest.tokens("train")


def test_a_sample_without_limit_is_every_document(dataset: Path) -> None:
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    for source, facts in manifest.sources.items():
        texts = list(sample_documents(dataset, manifest, source, tokenizer, size=10**9))
        expected = [tokenizer.decode(row) for row in rows(dataset, manifest, source)]
        assert sorted(texts) == sorted(expected)
        assert sum(len(text.encode()) for text in texts) == facts.splits["train"].bytes
        raw = {
            json.loads(line)["text"]
            for line in (
                (Path(facts.path or "") / f"{source}.jsonl")
                .read_text(encoding="utf-8")
                .splitlines()
            )
        }
        assert set(texts) <= raw


def test_a_sample_has_the_size_asked_for_and_is_always_the_same(dataset: Path) -> None:
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    texts = list(sample_documents(dataset, manifest, "story", tokenizer, size=20_000))
    assert sum(len(text.encode()) for text in texts) == 20_000
    assert texts == list(sample_documents(dataset, manifest, "story", tokenizer, size=20_000))
    whole = list(sample_documents(dataset, manifest, "story", tokenizer, size=10**9))
    assert all(any(full.startswith(text) for full in whole) for text in texts)


def test_documents_longer_than_a_chunk_and_wide_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("äöü中文 words and words. " * 400, encoding="utf-8")
    prepare(
        PrepareConfig(
            out=str(tmp_path / "out"),
            sources={"a": SourceConfig(kind="text", path=str(tmp_path / "a.txt"))},
            tokenizer=TokenizerConfig(vocab_size=270),
            splits=SplitsConfig(validation=0, test=0),
            chunk_tokens=999,
            workers=1,
        )
    )
    manifest, tokenizer = Manifest.load(tmp_path / "out"), Tokenizer.load(tmp_path / "out")
    assert len(manifest.sources["a"].splits["train"].chunks) > 4
    texts = list(sample_documents(tmp_path / "out", manifest, "a", tokenizer, size=301))
    assert 301 - 6 * len(texts) <= sum(len(text.encode()) for text in texts) <= 301
    assert "\ufffd" not in "".join(texts)
    assert token_counts(tmp_path / "out", manifest).sum() == manifest.tokens("train")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign id"])
def test_damage_is_named(dataset: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    manifest = Manifest.load(copy)
    file = copy / "train" / "story" / manifest.sources["story"].splits["train"].chunks[0].filename
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[:-10])
    else:
        file.write_bytes(data[:-2] + np.uint16(60_000).tobytes())
    says = "holds token ids from" if damage == "foreign id" else "damaged|cannot be read"
    with pytest.raises(UserError, match=rf"{file.name}.*({says})"):
        token_counts(copy, manifest)


def test_every_row_has_its_record_and_the_record_its_line(dataset: Path) -> None:
    manifest, tokenizer = Manifest.load(dataset), Tokenizer.load(dataset)
    seen = 0
    for name, source in manifest.sources.items():
        for split in SPLITS:
            records = iter(read_document_records(dataset, split, name))
            for chunk in source.splits[split].chunks:
                tokens, begins = open_chunk(
                    dataset / split / name / chunk.filename, manifest.dtype, chunk.bytes
                )
                for row in range(chunk.documents):
                    record = next(records)
                    assert (record.chunk, record.row, record.tokens) == (
                        chunk.filename,
                        row,
                        begins[row + 1] - begins[row],
                    )
                    file, _, line = full_origin(source, record.origin).rpartition(":")
                    text = json.loads(
                        Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
                    )["text"]
                    assert tokenizer.decode(tokens[begins[row] : begins[row + 1]].tolist()) == text
                    seen += 1
            assert next(records, None) is None
    assert seen > 200


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "is missing"), ("torn", "line 2 is damaged"), ("field", "line 1 is damaged")],
)
def test_damage_of_a_record_is_named(
    dataset: Path, tmp_path: Path, damage: str, message: str
) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    file = copy / "train" / "story" / "documents.jsonl"
    lines = file.read_text().splitlines()
    if damage == "missing":
        file.unlink()
    elif damage == "torn":
        file.write_text(lines[0] + "\n" + lines[1][:20])
    else:
        file.write_text(lines[0].replace('"origin"', '"origen"') + "\n")
    with pytest.raises(UserError, match=message):
        list(read_document_records(copy, "train", "story"))
