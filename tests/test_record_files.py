"""Record files: every format gives the same records, and what cannot be read is named."""

import bz2
import gzip
import json
import re
from pathlib import Path

import pytest
import zstandard

from lit_pretrain.decontaminate.evaluation_set import content_sha256
from lit_pretrain.errors import UserError
from lit_pretrain.record_files import RecordMistake, read_records, scan_records

RECORDS = [
    {
        "question": "What is 2 + 2?\u2028",
        "choices": {"text": ["three", "four"], "label": ["A", "B"]},
        "answer": 1,
    },
    {"question": "Caf\u00e9?", "choices": {"text": ["yes"], "label": ["A"]}, "answer": 0},
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def write(path: Path) -> Path:
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        return path
    data = (json.dumps(RECORDS, indent=1) if ".json" in path.suffixes else LINES).encode()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}.get(
        path.suffix, bytes
    )
    path.write_bytes(pack(data))
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.json.bz2"]
)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    records = read_records(write(tmp_path / name))
    assert records == RECORDS
    assert content_sha256(records) == content_sha256(
        [dict(reversed(record.items())) for record in reversed(RECORDS)]
    )


def test_text_in_lines_or_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    assert [record["text"] for record in read_records(path)] == ["one", "two", "three"]
    assert [record["text"] for record in read_records(path, "\n\n")] == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "must end in"),
        ("a.parquet.gz", b"", "must end in"),
        ("a.jsonl", b'{"a": 1}\n{', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b"[1]", "a.jsonl:1 holds a JSON list"),
        ("a.json", b'{"a": 1}', "must be a list of objects"),
        ("a.json", b"[1]", "record 1 holds a JSON int"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 100, mtime=0)[:-12], "cannot be read"),
        ("a.txt", b"a\n\xff\xfe", "a.txt, piece 2 is not UTF-8: it holds the byte 0xff"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', "a.jsonl:2 is not UTF-8: it holds the byte 0xe9"),
        ("a.json", b'[{"a": 1}, {"a": "\xe9"}]', "record 2 is not UTF-8: it holds the byte 0xe9"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_records(tmp_path / name)


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_records("nowhere.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_byte_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES.encode().replace("Café".encode(), b"Caf\xe9")))
    elif name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        bad = pyarrow.array([b"fine", b"Caf\xe9"]).view(pyarrow.string())
        pyarrow.parquet.write_table(pyarrow.table({"question": bad}), path)
    else:
        path.write_bytes(path.read_bytes().replace(b"Caf\\u00e9", b"Caf\xe9"))
        path.write_bytes(path.read_bytes().replace("Café".encode(), b"Caf\xe9"))
    first, second = scan_records(path)
    assert isinstance(first, dict)
    assert isinstance(second, RecordMistake)
    assert second.reason == "undecodable"
    assert "0xe9" in str(second)


def test_a_line_that_is_too_long_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_pretrain.record_files.MAX_ROW_BYTES", 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 3_000_000 + '"}\n{"a": 2}\n')
    first, long, last = scan_records(path)
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert isinstance(long, RecordMistake)
    assert "a.jsonl:2 has 3,000,010 bytes; 20 are allowed" in str(long)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.parquet"])
def test_a_row_of_a_list_or_table_that_is_too_large_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("lit_pretrain.record_files.MAX_ROW_BYTES", 100)
    path = tmp_path / name
    if name == "a.parquet":
        import pyarrow
        import pyarrow.parquet

        rows = [{"a": text} for text in ("1", "x" * 3_000_000, "2")]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        data = json.dumps([{"a": "1"}, {"a": ["x" * 3_000_000]}, {"a": "2"}], indent=1).encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    first, long, last = scan_records(path)
    assert (first, last) == ({"a": "1"}, {"a": "2"})
    assert isinstance(long, RecordMistake)
    assert long.reason == "too_large"
    assert re.search(r"record 2 has 3,000,0\d\d bytes; 100 are allowed", str(long))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_a_long_list_is_read_as_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("lit_pretrain.record_files.MAX_ROW_BYTES", 60)
    monkeypatch.setattr("lit_pretrain.record_files._BLOCK_BYTES", block)
    rows: list[dict[str, object]] = [
        {"a": 'say "},{[" and \\'}, {"b": [[], {"c": "]"}]}, {}, {"é": "\\\\\""}, {"n": None},
    ]  # fmt: skip
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text("\ufeff" + json.dumps(rows, indent=indent) + "\n", encoding="utf-8")
        assert read_records(path) == rows
    path.write_text(f"[{' ' * 100}]")
    assert read_records(path) == []
    for text, message in (
        ('[{"a": 1}, {"b": 2}' + " " * 60, "it ends before its list does"),
        ('[{"a": 1}] {' + " " * 60, "it goes on behind the end of its list"),
        ('{"a": [1]}' + " " * 60, "holds a JSON object; it must be a list"),
        ('[{"a": 1},, {"b": 2}]' + " " * 60, "record 2 is not JSON"),
        ('[{"a": 1}, 7]' + " " * 60, "record 2 holds a JSON int"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_records(path)
