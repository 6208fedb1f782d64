"""Readers of text, JSON Lines, packed files and the embedded corpus: nothing is lost unsaid."""

import bz2
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read import text_readers
from lit_pretrain.prepare.read import text_readers as embedded
from lit_pretrain.prepare.read.read_source import ReadCounts, SourceReader
from lit_pretrain.prepare.read.reader import ReadPolicy

ROWS = ["one", "zwei Grüße", "中\n文", "x" * 10_000]
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("suffix", PACK)
def test_text_and_jsonl_packed_or_not(tmp_path: Path, read: Any, suffix: str) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix]("Grüße\r\n".encode()))
    assert read("text", tmp_path).texts == ["Grüße\r\n"]
    (tmp_path / f"b.jsonl{suffix}").write_bytes(
        PACK[suffix](lines([{"text": row} for row in ROWS]))
    )
    found = read("jsonl", tmp_path)
    assert (found.texts, found.bad) == (ROWS, [])
    assert found.origins == [f"b.jsonl{suffix}:{n}" for n in (1, 2, 3, 4)]


def test_concatenated_members_are_one_file(tmp_path: Path, read: Any) -> None:
    for suffix in (".gz", ".zst", ".bz2"):
        (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](b"one ") + PACK[suffix](b"two"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"padded") + bytes(40_000))
    found = read("text", tmp_path)
    assert (found.texts, found.bad) == (["one two"] * 3 + ["padded"], [])


@pytest.mark.parametrize("damage", ["cut", "checksum", "zeroed", "appended"])
@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_a_damaged_file_gives_what_came_before_and_the_next_is_read(
    tmp_path: Path, read: Any, suffix: str, damage: str
) -> None:
    rows = [{"text": f"row {n} {n * 7919 % 10007:x} {n * n * 31 % 65521:o}"} for n in range(60_000)]
    members = [PACK[suffix](lines(rows[n : n + 10_000])) for n in range(0, len(rows), 10_000)]
    packed = b"".join(members)
    size = len(packed)
    half = len(b"".join(members[:3]))
    packed = {
        "cut": packed[: half + len(members[3]) // 2],
        "checksum": packed[:-6] + b"\x01\x02\x03\x04\x05\x06",
        "zeroed": packed[:half] + bytes(len(members[3])) + packed[half + len(members[3]) :],
        "appended": packed + b"no archive at all",
    }[damage]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed)
    (tmp_path / "b.jsonl").write_bytes(lines([{"text": "the next file"}]))
    found = read("jsonl", tmp_path)
    assert found.faults == [(f"a.jsonl{suffix}", "damaged_file")]
    assert found.texts[-1] == "the next file"
    good = found.texts[:-1]
    assert good == [row["text"] for row in rows[: len(good)]]  # in order, none half, none twice
    least = {"cut": 30_000, "checksum": 50_000, "zeroed": 30_000, "appended": 60_000}[damage]
    assert len(good) >= least - (10_000 if suffix == ".gz" else 0)
    least = {"cut": 1, "checksum": 1, "zeroed": size - half, "appended": 1}[damage]
    assert least <= found.counts.unread_bytes <= size - half + 40_000


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_a_half_text_is_no_document(tmp_path: Path, read: Any, suffix: str) -> None:
    content = " ".join(str(n * 7919 % 10007) for n in range(100_000)).encode()
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](content)[:-2000])
    (tmp_path / f"b.txt{suffix}").write_bytes(b"")
    found = read("text", tmp_path)
    assert found.documents == []
    assert found.faults == [(f"a.txt{suffix}", "damaged_file"), (f"b.txt{suffix}", "damaged_file")]
    assert [record.detail for record in found.bad] == [
        "the file ends too early",
        "the file is empty",
    ]
    pieces = read("text", tmp_path / f"a.txt{suffix}", separator="\n")
    assert (pieces.documents, len(pieces.bad)) == ([], 1)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "a"', "not_json", "not JSON: Expecting ',' delimiter"),
        (b"[" * 100_000, "not_json", "not JSON"),
        (b"9" * 5000, "not_json", "not JSON"),
        (b'["text"]', "not_json", "a JSON list, not an object"),
        (b'{"content": "a", "id": 1}', "missing_field", "no field 'text'; it has 'content', 'id'"),
        (b"{}", "missing_field", "it has none"),
        (b'{"text": 5}', "wrong_type", "the field 'text' holds int, not text"),
        (b'{"text": "\xff"}', "undecodable", "byte 0xff at offset 10 of the line is not UTF-8"),
        (
            b'{"text": "\\ud83d!"}',
            "undecodable",
            "half of a surrogate pair, U+D83D, at character 0",
        ),
        (b'{"text": "' + b"x" * 2000 + b'"}', "too_large", "larger than max_document_bytes=1,000"),
        (b'{"text": "' + b"x" * 3_000_000 + b'"}', "too_large", "the line has 3,000,013 bytes"),
    ],
)
def test_a_bad_line_is_named_and_passed_over(
    tmp_path: Path, read: Any, line: bytes, reason: str, detail: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b'\n{"text": "end"}\n')
    found = read("jsonl", tmp_path, policy=ReadPolicy(max_document_bytes=1000))
    assert found.texts == ["fine", "end"]
    assert found.faults == [("a.jsonl:2", reason)]
    assert detail in found.bad[0].detail
    assert found.bad[0].excerpt
    json.dumps(found.bad[0].excerpt).encode()
    assert found.origins == ["a.jsonl:1", "a.jsonl:3"]


def test_policies_on_lines(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        b'{"text": "a\xffb"}',
        b'{"text": "\\ud83d!"}',
        b'{"text": "\\ud83d\\ude00"}',
        b'{"text": null}',
        b"",
        b'{"text": " \\n"}',
    ]
    rows += [
        b'{"text": "' + "é".encode() * 600 + b'"}',
        b'{"text": "' + b"x" * 3_000_000 + b'"}',
        b'{"text": "end"}',
    ]
    path.write_bytes(b"\n".join(rows))

    skipping = read("jsonl", path, policy=ReadPolicy(max_document_bytes=1001))
    assert skipping.texts == ["\U0001f600", "end"]
    assert skipping.counts.removed == {"empty": 2, "too_large": 2, "undecodable": 2}
    assert not skipping.counts.changed

    keeping = read("jsonl", path, policy=ReadPolicy("replace", "truncate", 1001))
    assert keeping.texts == ["a\ufffdb", "\ufffd!", "\U0001f600", "é" * 500, "end"]
    assert keeping.counts.removed == {
        "empty": 2,
        "too_large": 1,
    }  # a line too long to be parsed cannot be cut
    assert keeping.counts.changed == {"replaced": 2, "truncated": 1}


def test_policies_on_text_files(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    (tmp_path / "b.md").write_bytes(b"latin-1: \xe9")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes("é".encode() * 10)
    skipping = read("text", tmp_path, policy=ReadPolicy(max_document_bytes=19))
    assert skipping.texts == ["with a mark"]
    assert skipping.faults == [("b.md", "undecodable"), ("d.txt", "too_large")]
    assert "byte 0xe9 at offset 9" in skipping.bad[0].detail
    assert skipping.counts.empty == {"empty": 1}
    assert read("text", tmp_path, policy=ReadPolicy("replace", "truncate", 19)).texts == [
        "with a mark",
        "latin-1: \ufffd",
        "é" * 9,
    ]
    assert read("text", tmp_path, policy=ReadPolicy(max_document_bytes=20)).texts == [
        "with a mark",
        "é" * 10,
    ]
    for limit, reasons in ((11, []), (10, ["too_large"])):
        exact = read("text", tmp_path / "a.txt", policy=ReadPolicy(max_document_bytes=limit))
        assert [record.reason for record in exact.bad] == reasons


def test_fields_are_mapped(tmp_path: Path, read: Any) -> None:
    rows = [
        {
            "q": "Why?",
            "a": {"best": "So."},
            "meta": {"url": "http://x", "when": 2024},
            "id": 7,
            "lang": None,
        },
        {"q": "", "a": {"best": "Alone."}, "a.best": "The name with a dot goes first."},
        {"q": "Lost"},
        {"q": "Flat", "a": "so"},
        {"q": None, "a": {"best": None}},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    mapping = {
        "text": ["q", "a.best"],
        "url": "meta.url",
        "date": "meta.when",
        "language": "lang",
        "id": "id",
    }
    found = read("jsonl", tmp_path, fields=mapping)
    assert found.texts == ["Why?\n\nSo.", "The name with a dot goes first."]
    assert [dict(document.fields) for document in found.documents] == [
        {"url": "http://x", "date": "2024", "id": "7"},
        {},
    ]
    assert found.faults == [("a.jsonl:3", "missing_field"), ("a.jsonl:4", "missing_field")]
    assert found.counts.empty == {"empty": 1}


def test_an_id_that_occurred_before_is_bad_where_ids_are_mapped(tmp_path: Path, read: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(
            lines([{"text": "x", "id": 1}, {"text": "y", "id": "1"}, {"text": "z"}, {"text": "z"}])
        )
    assert read("jsonl", tmp_path).texts == ["x", "y", "z", "z"] * 2
    found = read("jsonl", tmp_path, fields={"id": "id"})
    assert (
        found.texts == ["x", "z", "z"] * 2
    )  # of each file; copies across files are for the deduplication
    assert found.faults == [("a.jsonl:2", "duplicate_id"), ("b.jsonl:2", "duplicate_id")]


@settings(max_examples=300, deadline=None)
@given(
    data=st.text(alphabet="ab-", max_size=40),
    separator=st.sampled_from(["-", "--", "-a-", "ab", "a-a-b-a-a"]),
    block=st.integers(1, 7),
    limit=st.integers(0, 50),
)
def test_pieces_between_separators(data: str, separator: str, block: int, limit: int) -> None:
    original, text_readers.BLOCK_BYTES = text_readers.BLOCK_BYTES, block
    try:
        stream = io.BytesIO(data.encode())
        pieces = list(text_readers.split_stream(stream, separator.encode(), limit))
    finally:
        text_readers.BLOCK_BYTES = original
    expected = data.encode().split(separator.encode())
    assert len(pieces) == len(expected)
    for piece, whole in zip(pieces, expected, strict=True):
        assert piece == whole or (len(whole) > limit and piece == whole[: limit + 4])


def test_separator_makes_documents(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.txt").write_text("first\n\n\n\nsecond\n\nthird")
    found = read("text", tmp_path, separator="\n\n")
    assert list(zip(found.origins, found.texts, strict=True)) == [
        ("a.txt:1", "first"),
        ("a.txt:3", "second"),
        ("a.txt:4", "third"),
    ]
    assert found.counts.empty == {"empty": 1}


def test_a_slice_of_the_files_gives_its_part_of_the_documents(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.jsonl").write_bytes(
            lines([{"text": f"{n} {k}"} for k in range(3)]) + b"bad\n" * n
        )
    source = SourceConfig(kind="jsonl", path=str(tmp_path))
    files = find_inputs("mine", source).files
    whole = SourceReader(source, files, ReadPolicy())
    parts = [
        SourceReader(source, part, ReadPolicy()) for part in (files[:2], files[2:3], files[3:])
    ]
    assert list(whole) == [item for part in parts for item in part]
    assert sum((part.counts for part in parts), ReadCounts()) == whole.counts


def test_a_file_that_cannot_be_opened_is_an_error(
    tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("secret")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.txt cannot be read: Permission denied"):
        read("text", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
def test_a_line_of_any_length_takes_no_more_memory_than_the_limit(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    long = b'{"text": "' + b"x" * 60_000_000 + b'"}\n{"text": "end"}\n'
    path.write_bytes(PACK[suffix](long))
    code = (
        "import resource, sys\n"
        "from lit_pretrain.prepare.inputs import find_inputs\n"
        "from lit_pretrain.prepare.prepare_config import SourceConfig\n"
        "from lit_pretrain.prepare.read.reader import ReadPolicy\n"
        "from lit_pretrain.prepare.read.read_source import SourceReader\n"
        "import zstandard, xxhash\n"
        "source = SourceConfig(kind='jsonl', path=sys.argv[1])\n"
        "files, policy = find_inputs('a', source).files, ReadPolicy(max_document_bytes=100_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print([type(item).__name__ for item in SourceReader(source, files, policy)])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert shown[0] == "['BadRecord', 'Document']"
    assert int(shown[1]) < 45_000  # KiB, of 58,600 that the line has


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library."""
    for name, content in {
        "json/__init__.py": b'"""Reads JSON."""\n'
        b'def f():\n    """Does f."""\n    class C:\n        """Is C."""\n'
        b'async def g():\n    "Does g."\n',
        "b.py": b"if True:\n    try:\n        pass\n    except E:\n"
        b"        def h():\n            '''Does h.\n\n            Well.'''\n"
        b"x = lambda: 'no docstring'\n",
        "empty.py": b"",
        "latin.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
        "test/test_b.py": b'"""Tests b."""\n',
        "test/bad_coding.py": b"# -*- coding: uft-8 -*-\n",
        "test/bad_bytes.py": b"x = '\xff'\n",
        "unittest/test/x.py": b"x = 1\n",
        "site-packages/pip/__init__.py": b"x = 1\n",
        "config-3.11-x86/python-config.py": b"x = 1\n",
        "_sysconfigdata__linux.py": b"x = 1\n",
        "pydoc_data/topics.py": b"topics = {'with': 'The \"with\" statement is used.'}\n",
        "data.txt": b"no module\n",
        "syntax.py": b"def f(:\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(embedded, "library_root", lambda: tmp_path)
    return tmp_path


def documents(part: str) -> dict[str, str]:
    return dict(embedded.module_documents(part, embedded.module_files(part)))


def test_code_is_the_modules(library: Path) -> None:
    assert list(documents("code")) == [
        "b.py",
        "empty.py",
        "json/__init__.py",
        "latin.py",
        "syntax.py",
    ]
    assert "é" in documents("code")["latin.py"]


def test_tests_are_the_test_packages_that_are_text(library: Path) -> None:
    assert list(documents("tests")) == ["test/test_b.py", "unittest/test/x.py"]


def test_prose_is_docstrings_and_topics(library: Path) -> None:
    prose = documents("prose")
    assert prose["json/__init__.py"] == "Reads JSON.\n\nDoes f.\n\nIs C.\n\nDoes g."
    assert prose["b.py"] == "Does h.\n\nWell."
    assert [origin for origin in prose if not origin.startswith("topic ")] == [
        "b.py",
        "json/__init__.py",
    ]
    assert prose["topic with"].startswith('The "with" statement')


def test_a_distribution_without_tests_has_none(library: Path) -> None:
    for path in embedded.module_files("tests"):
        path.unlink()
    assert embedded.module_files("tests") == []


def test_this_python() -> None:
    code, tests = embedded.module_files("code"), embedded.module_files("tests")
    assert not set(code) & set(tests)
    assert [path for path in embedded.module_files("prose") if path.name != "topics.py"] == code
    assert {"json/decoder.py", "ast.py"} <= {
        path.relative_to(embedded.library_root()).as_posix() for path in code
    }
    assert not any("site-packages" in path.parts for path in [*code, *tests])
    some = [path for path in code if path.parent.name == "json"]
    assert "JSON" in dict(embedded.module_documents("prose", some))["json/__init__.py"]
