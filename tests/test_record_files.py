"""Record files: every format gives the same records, and what cannot be read is named."""

import bz2
import gzip
import json
from pathlib import Path

import pytest
import zstandard

from lit_pretrain.decontaminate.evaluation_set import content_sha256
from lit_pretrain.errors import UserError
from lit_pretrain.record_files import read_records

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
        ("a.txt", b"\xff\xfe", "cannot be read"),
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
