"""Parquet tables and saved Hugging Face datasets: a row is a document."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.reader import ReadPolicy

ROWS = ["one", "zwei Grüße", "中\n文", "x" * 10_000]
BROKEN = pyarrow.array([b"fine", b"\xff\xfe"], type=pyarrow.binary()).view(pyarrow.string())


def write_arrow(table: pyarrow.Table, path: Path) -> None:
    """A dataset on disk, as `save_to_disk` leaves it."""
    path.mkdir(exist_ok=True)
    with (
        pyarrow.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=1000)
    (path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )


def write(kind: str, table: pyarrow.Table, path: Path) -> str:
    """The file's name."""
    if kind == "dataset":
        write_arrow(table, path)
        return "data-00000-of-00001.arrow"
    pyarrow.parquet.write_table(table, path / "t.parquet", row_group_size=300)
    return "t.parquet"


KINDS = pytest.mark.parametrize("kind", ["parquet", "dataset"])


@KINDS
@pytest.mark.parametrize(
    "column",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        pyarrow.binary(),
    ],
    ids=str,
)
def test_columns_of_text(tmp_path: Path, read: Any, kind: str, column: pyarrow.DataType) -> None:
    values = [*ROWS * 400, None]
    array = pyarrow.array(
        [v.encode() if v and column == pyarrow.binary() else v for v in values], type=column
    )
    name = write(kind, pyarrow.table({"n": range(len(values)), "body": array}), tmp_path)
    found = read(kind, tmp_path, fields={"text": "body", "id": "n"})
    assert found.texts == ROWS * 400
    assert (found.documents[5].origin, found.documents[5].fields) == (f"{name}:5", {"id": "5"})
    assert found.origins == [f"{name}:{n}" for n in range(1600)]
    assert found.counts.removed == {"empty": 1}


@KINDS
def test_nested_and_joined_columns(tmp_path: Path, read: Any, kind: str) -> None:
    table = pyarrow.table(
        {
            "qa": [{"q": "Why?", "a": {"best": "So."}}, {"q": "Alone", "a": None}, None],
            "when": [datetime.date(2024, 1, 2), None, None],
            "nothing": pyarrow.nulls(3),
            "meta.url": ["http://x", None, "http://z"],
        }
    )
    write(kind, table, tmp_path)
    mapping = {
        "text": ["qa.q", "qa.a.best"],
        "date": "when",
        "url": "meta.url",
        "language": "qa.a.best",
    }
    found = read(kind, tmp_path, fields=mapping)
    assert found.texts == ["Why?\n\nSo.", "Alone"]
    assert [dict(d.fields) for d in found.documents] == [
        {"date": "2024-01-02", "url": "http://x", "language": "So."},
        {},
    ]
    assert found.counts.empty == {"empty": 1}
    assert read(kind, tmp_path, fields={"text": "qa.a.best"}).texts == ["So."]
    assert read(kind, tmp_path, fields={"text": "nothing"}).counts.empty == {"empty": 3}


@KINDS
def test_bytes_that_are_no_text(tmp_path: Path, read: Any, kind: str) -> None:
    name = write(kind, pyarrow.table({"n": [1, 2], "text": BROKEN}), tmp_path)
    for fields in ({}, {"text": ["text", "text"]}, {"url": "text"}):
        found = read(kind, tmp_path, fields=fields)
        assert found.faults == [(f"{name}:1", "undecodable")]
        assert len(found.texts) == 1
        kept = read(kind, tmp_path, fields=fields, policy=ReadPolicy(errors="replace"))
        assert ["\ufffd" in text for text in kept.texts] == [False, True]
        assert kept.counts.changed == {"replaced": 1}


@KINDS
def test_a_column_that_is_not_there_or_no_text_rejects_the_file(
    tmp_path: Path, read: Any, kind: str
) -> None:
    name = write(kind, pyarrow.table({"n": [1, 2], "text": ["a", "b"]}), tmp_path)
    for field, reason, detail in (
        ("body", "missing_field", "no column 'body'; it has 'n', 'text'"),
        ("text.body", "missing_field", "no column 'text.body'"),
        ("n", "wrong_type", "the column 'n' holds int64, not text"),
    ):
        found = read(kind, tmp_path, fields={"text": field})
        assert found.faults == [(name, reason)]
        assert detail in found.bad[0].detail
        assert found.counts.unread_bytes == (tmp_path / name).stat().st_size


@KINDS
@pytest.mark.parametrize("damage", ["cut", "middle", "empty", "other"])
def test_a_damaged_file_gives_what_came_before(
    tmp_path: Path, read: Any, kind: str, damage: str
) -> None:
    rows = [f"row {n} {os.urandom(20).hex()}" for n in range(3000)]
    name = write(kind, pyarrow.table({"text": rows}), tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:-20],
            "middle": (
                whole[:half] + os.urandom(200) + whole[half + 200 :]
                if kind == "parquet"
                else whole[: half + 8]
            ),
            "empty": b"",
            "other": b"no table at all",
        }[damage]
    )
    found = read(kind, tmp_path)
    assert found.faults == [(name, "damaged_file")]
    assert found.texts == rows[: len(found.texts)]
    if damage == "middle":
        assert 900 <= len(found.texts) < 2000
        assert 0 < found.counts.unread_bytes < len(whole)
    if damage in ("cut", "other"):
        assert found.counts.unread_bytes > 0


def test_damage_in_what_describes_a_parquet_file_is_damage_of_the_file(
    tmp_path: Path, read: Any
) -> None:
    """Wherever it lies, it never ends the process: pyarrow aborts when it is asked for the sizes
    of columns whose description is damaged.
    """
    table = pyarrow.table({"text": ["a b", "c"], "meta": [{"x": 1}, None]})
    name = write("parquet", table, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(footer, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xF8]) + whole[at + 1 :])
        found = read("parquet", tmp_path)
        reasons = {reason for _, reason in found.faults}
        assert reasons <= {"damaged_file", "missing_field", "wrong_type"}, at


def test_a_dataset_cut_between_two_batches_is_noticed(tmp_path: Path, read: Any) -> None:
    """pyarrow takes it for a whole one."""
    name = write("dataset", pyarrow.table({"text": [f"row {n}" for n in range(3000)]}), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-8])
    found = read("dataset", tmp_path)
    assert (len(found.texts), found.faults) == (3000, [(name, "damaged_file")])


def test_offsets_that_lead_nowhere_are_a_damage(tmp_path: Path, read: Any) -> None:
    """Without a check, the process ends with a segmentation fault."""
    name = write("dataset", pyarrow.table({"text": ["abcd"] * 3000}), tmp_path)
    content = (tmp_path / name).read_bytes()
    offsets = b"".join((4 * n).to_bytes(4, "little") for n in range(500, 510))
    assert content.count(offsets) == 3
    at = content.index(offsets, content.index(offsets) + 1)
    (tmp_path / name).write_bytes(
        content[:at] + (2**31 - 5).to_bytes(4, "little") * 10 + content[at + 40 :]
    )
    found = read("dataset", tmp_path)
    assert found.faults == [(name, "damaged_file")]
    assert set(found.texts) == {"abcd"}
    assert 1000 <= len(found.texts) < 2000


def test_datasets_as_the_library_saves_them(tmp_path: Path, read: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(250)], "n": range(250)})
    one.select(range(249, -1, -1)).save_to_disk(
        tmp_path / "one", num_shards=3
    )  # an index, which saving resolves
    found = read("dataset", tmp_path / "one")
    assert found.texts == [f"row {n}" for n in range(249, -1, -1)]
    assert found.origins[0] == "data-00000-of-00003.arrow:0"
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"what map() leaves behind")
    assert len(read("dataset", tmp_path / "one").texts) == 250

    datasets.DatasetDict({"train": one, "test": one.select(range(3))}).save_to_disk(
        tmp_path / "two"
    )
    assert read("dataset", tmp_path / "two", split="test").texts == ["row 0", "row 1", "row 2"]


def test_datasets_on_disk_that_cannot_be_found(tmp_path: Path) -> None:
    for path, split, message in (
        ("", None, r"not a dataset as `save_to_disk` writes it"),
        ("two", None, r"has the splits train, test; set `split` to one of them \(it is None\)"),
        ("two", "val", r"has the splits train, test"),
        ("one", "train", r"was saved without splits; leave it out"),
    ):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        write_arrow(pyarrow.table({"text": ["a"]}), tmp_path / "one")
        with pytest.raises(UserError, match=message):
            find_inputs(
                "mine", SourceConfig(kind="dataset", path=str(tmp_path / path), split=split)
            )


def test_a_dataset_on_the_hub_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is left out: a loader of files on disk goes the same way."""
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    from lit_pretrain.prepare.read.read_source import SourceReader

    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(5))
    )
    load = datasets.load_dataset
    asked: list[Any] = []

    def local(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, subset, split, revision))
        return load(
            "json",
            data_files=str(tmp_path / "rows.jsonl"),
            split=split,
            cache_dir=str(tmp_path / "cache"),
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    datasets.disable_progress_bars()
    source = SourceConfig(
        kind="dataset", hub="some/rows", subset="en", split="train", revision="abc"
    )
    source.validate("mine")
    inputs = find_inputs("mine", source)
    assert asked == [("some/rows", "en", "train", "abc")]
    assert [document.text for document in SourceReader(source, inputs.files, ReadPolicy())] == [
        f"row {n}" for n in range(5)
    ]

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError(
            "Couldn't reach 'some/rows' on the Hub (offline mode is enabled)\nmore"
        )

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UserError,
        match=(
            r"'some/rows' \(subset 'en', split 'train'\) cannot be fetched .*offline mode is"
            r" enabled\); check"
        ),
    ):
        find_inputs("mine", source)
