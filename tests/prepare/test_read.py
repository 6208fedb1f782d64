"""Readers: every document once, in one order, and damaged input named or counted."""

import bz2
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.prepare import read
from lit_pretrain.prepare.config import PrepareConfig, SourceConfig
from lit_pretrain.prepare.inputs import find

ROWS = ["one", "zwei Grüße", "中\n文", "x" * 10_000]
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}


def reader(source: SourceConfig, **limits: Any) -> read.Reader:
    return read.Reader(source, find("mine", source), PrepareConfig(out="unused", sources={"mine": source}, **limits))


def texts(source: SourceConfig, **limits: Any) -> list[str]:
    documents = list(reader(source, **limits))
    assert all(document.text.encode() == document.utf8 for document in documents)
    return [document.text for document in documents]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("suffix", PACK)
def test_text_and_jsonl_packed_or_not(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix]("Grüße\r\n".encode()))
    assert texts(SourceConfig(kind="text", path=str(tmp_path))) == ["Grüße\r\n"]
    (tmp_path / f"b.jsonl{suffix}").write_bytes(PACK[suffix](jsonl([{"text": row} for row in ROWS])))
    source = SourceConfig(kind="jsonl", path=str(tmp_path))
    assert texts(source) == ROWS
    assert [document.origin for document in reader(source)] == [f"b.jsonl{suffix}:{n}" for n in (1, 2, 3, 4)]


def test_concatenated_members_are_all_read(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst", ".bz2"):
        (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](b"one ") + PACK[suffix](b"two"))
    assert texts(SourceConfig(kind="text", path=str(tmp_path))) == ["one two"] * 3


def test_files_are_read_by_name_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("b/z.txt", "a.txt", "B.txt", "b.txt", "b/a.txt", "c.md", ".d.txt", "e.txt~"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(SourceConfig(kind="text", path=str(tmp_path))) == [".d.txt", "B.txt", "a.txt", "b.txt", "b/a.txt", "b/z.txt"]
    assert texts(SourceConfig(kind="text", path=str(tmp_path), glob="*.md")) == ["c.md"]
    assert texts(SourceConfig(kind="text", path=str(tmp_path / "c.md"))) == ["c.md"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\.mine\.path: .*nowhere does not exist"):
        find("mine", SourceConfig(kind="text", path=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"no file below .* ends in \.txt or"):
        find("mine", SourceConfig(kind="text", path=str(tmp_path)))
    with pytest.raises(UserError, match=r"no file below .* matches '\*\*/\*\.md'"):
        find("mine", SourceConfig(kind="text", path=str(tmp_path), glob="**/*.md"))
    with pytest.raises(UserError, match="not a pattern"):
        find("mine", SourceConfig(kind="text", path=str(tmp_path), glob="/abs/*"))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) * 2 // 3], lambda data: data[:-4] + b"\x00\x01\x02\x03"])
@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_truncated_or_damaged_archive_is_named(tmp_path: Path, suffix: str, damage) -> None:
    whole = jsonl([{"text": f"row {n * 7919 % 1000}"} for n in range(20_000)])
    stream = io.BytesIO()
    if suffix == ".zst":  # with a checksum, as the command-line tool writes it
        stream.write(zstandard.ZstdCompressor(write_checksum=True).compress(whole))
    else:
        stream.write(PACK[suffix](whole))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(damage(stream.getvalue()))
    with pytest.raises(UserError, match=r"a\.jsonl.* is truncated or damaged"):
        texts(SourceConfig(kind="jsonl", path=str(path)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"a\.jsonl:2 is not JSON"),
        (b"[" * 100_000, r"a\.jsonl:2 is not JSON"),
        (b'["text"]', r"a\.jsonl:2 holds a JSON list"),
        (b'{"content": "a", "id": 1}', r"a\.jsonl:2 has no field 'text'; it has 'content', 'id'"),
        (b"{}", r"a\.jsonl:2 has no field 'text'; it has none"),
        (b'{"text": 5}', r"a\.jsonl:2: the field 'text' holds int"),
        (b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8: byte 0xff at offset 10"),
        (b'{"text": "\\ud83d!"}', r"a\.jsonl:2 is not UTF-8: half of a surrogate pair, U\+D83D"),
        (b'{"text": "' + b"x" * 2000 + b'"}', r"a\.jsonl:2 is larger than max_document_bytes=1,000"),
        (b'{"text": "' + b"x" * 3_000_000 + b'"}', r"a\.jsonl:2 is larger than max_document_bytes=1,000"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        texts(SourceConfig(kind="jsonl", path=str(path)), max_document_bytes=1000)


def test_bad_lines_are_counted_where_the_policy_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "a\xffb"}', b'{"text": "\\ud83d!"}', b'{"text": "\\ud83d\\ude00"}', b'{"text": null}', b"", b'{"text": " \\n"}']
    lines += [b'{"text": "' + "é".encode() * 600 + b'"}', b'{"text": "' + b"x" * 3_000_000 + b'"}', b'{"text": "end"}']
    path.write_bytes(b"\n".join(lines))
    source = SourceConfig(kind="jsonl", path=str(path))

    skipping = reader(source, errors="skip", too_large="skip", max_document_bytes=1001)
    assert [document.text for document in skipping] == ["\U0001f600", "end"]
    assert dict(skipping.skipped) == {"undecodable": 2, "empty": 2, "too_large": 2}
    assert dict(skipping.changed) == {}

    keeping = reader(source, errors="replace", too_large="truncate", max_document_bytes=1001)
    assert [document.text for document in keeping] == ["a\ufffdb", "\ufffd!", "\U0001f600", "é" * 500, "end"]
    assert dict(keeping.skipped) == {"empty": 2, "too_large": 1}  # a line too long to be parsed cannot be cut
    assert dict(keeping.changed) == {"replaced": 2, "truncated": 1}


def test_text_files_under_the_policies(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    (tmp_path / "b.txt").write_bytes(b"latin-1: \xe9")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes("é".encode() * 10)
    source = SourceConfig(kind="text", path=str(tmp_path))
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8: byte 0xe9 at offset 9 .*errors: replace"):
        texts(source)
    with pytest.raises(UserError, match=r"d\.txt is larger than max_document_bytes=19.*separator"):
        texts(source, errors="skip", max_document_bytes=19)
    assert texts(source, errors="replace") == ["with a mark", "latin-1: \ufffd", "é" * 10]
    assert texts(source, errors="skip", max_document_bytes=19, too_large="truncate") == ["with a mark", "é" * 9]
    assert texts(source, errors="skip", max_document_bytes=20) == ["with a mark", "é" * 10]
    exact = tmp_path / "a.txt"
    assert texts(SourceConfig(kind="text", path=str(exact)), max_document_bytes=11) == ["with a mark"]
    with pytest.raises(UserError, match="larger"):
        texts(SourceConfig(kind="text", path=str(exact)), max_document_bytes=10)


@settings(max_examples=300, deadline=None)
@given(
    data=st.text(alphabet="ab-", max_size=40),
    separator=st.sampled_from(["-", "--", "-a-", "ab", "a-a-b-a-a"]),
    block=st.integers(1, 7),
    limit=st.integers(0, 50),
)
def test_pieces_between_separators(data: str, separator: str, block: int, limit: int) -> None:
    original, read._BLOCK = read._BLOCK, block
    try:
        pieces = list(read._split(io.BytesIO(data.encode()), separator.encode(), limit))
    finally:
        read._BLOCK = original
    expected = data.encode().split(separator.encode())
    assert len(pieces) == len(expected)
    for piece, whole in zip(pieces, expected, strict=True):
        assert piece == whole or (len(whole) > limit and piece == whole[: limit + 4])


def test_separator_makes_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\n\n\nsecond\n\nthird")
    source = SourceConfig(kind="text", path=str(tmp_path), separator="\n\n")
    found = reader(source)
    assert [(document.origin, document.text) for document in found] == [("a.txt:1", "first"), ("a.txt:3", "second"), ("a.txt:4", "third")]
    assert dict(found.skipped) == {"empty": 1}


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.binary()]
)
def test_parquet(tmp_path: Path, kind: pyarrow.DataType) -> None:
    values = [*ROWS * 200, None]
    column = pyarrow.array([v.encode() if v and kind == pyarrow.binary() else v for v in values], type=kind)
    pyarrow.parquet.write_table(pyarrow.table({"n": range(len(values)), "body": column}), tmp_path / "t.parquet", row_group_size=300)
    source = SourceConfig(kind="parquet", path=str(tmp_path), text_field="body")
    found = reader(source)
    documents = list(found)
    assert [document.text for document in documents] == ROWS * 200
    assert documents[5].origin == "t.parquet:5"
    assert dict(found.skipped) == {"empty": 1}


def test_parquet_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    broken = pyarrow.array([b"fine", b"\xff\xfe"], type=pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "text": broken}), path)
    with pytest.raises(UserError, match="has no column 'body'; it has 'n', 'text'"):
        texts(SourceConfig(kind="parquet", path=str(path), text_field="body"))
    with pytest.raises(UserError, match="column 'n' holds int64, not text"):
        texts(SourceConfig(kind="parquet", path=str(path), text_field="n"))
    with pytest.raises(UserError, match=r"t\.parquet:1 is not UTF-8: byte 0xff"):
        texts(SourceConfig(kind="parquet", path=str(path)))
    assert texts(SourceConfig(kind="parquet", path=str(path)), errors="skip") == ["fine"]
    whole = path.read_bytes()
    for content in (whole[:-20], b"", b"no parquet at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"t\.parquet is (truncated or )?damaged"):
            texts(SourceConfig(kind="parquet", path=str(path)))
