"""Inputs: every file once, in one order, by names that do not depend on where the source lies."""

from pathlib import Path

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.inputs import _regex, find_inputs
from lit_pretrain.prepare.prepare_config import SourceConfig


def names(path: Path | str | list[str], **fields: str) -> list[str]:
    source = SourceConfig(kind="text", path=path if isinstance(path, list) else str(path), **fields)
    return [file.name for file in find_inputs("mine", source).files]


def write(base: Path, *files: str) -> None:
    for name in files:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)


def test_files_are_sorted_by_name_wherever_they_lie(tmp_path: Path) -> None:
    write(
        tmp_path,
        "b/z.txt",
        "a.txt",
        "B.txt",
        "b.txt",
        "b/a.txt",
        "c.md",
        ".d.txt",
        "e.txt~",
        "f.rst",
        "g.md.zst",
    )
    assert names(tmp_path) == [
        ".d.txt",
        "B.txt",
        "a.txt",
        "b.txt",
        "b/a.txt",
        "b/z.txt",
        "c.md",
        "g.md.zst",
    ]
    assert names(tmp_path, glob="*.rst") == ["f.rst"]
    assert names(tmp_path / "f.rst") == ["f.rst"]
    inputs = find_inputs("mine", SourceConfig(kind="text", path=str(tmp_path)))
    assert inputs.base == str(tmp_path)
    assert inputs.bytes == sum((tmp_path / name).stat().st_size for name in names(tmp_path))


def test_a_list_is_named_by_what_its_entries_have_in_common(tmp_path: Path) -> None:
    write(tmp_path, "one/x/a.txt", "two/a.txt", "two/b.txt", "three.txt")
    assert names([str(tmp_path / "two"), str(tmp_path / "one" / "x")]) == [
        "one/x/a.txt",
        "two/a.txt",
        "two/b.txt",
    ]
    assert names([str(tmp_path / "two" / "b.txt"), str(tmp_path / "two" / "a.txt")]) == [
        "a.txt",
        "b.txt",
    ]
    assert names([str(tmp_path / "three.txt"), str(tmp_path / "two")]) == [
        "three.txt",
        "two/a.txt",
        "two/b.txt",
    ]
    with pytest.raises(UserError, match=r"a\.txt is listed twice"):
        names([str(tmp_path / "two"), str(tmp_path / "two" / "a.txt")])


def test_a_file_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    try:
        Path(str(tmp_path) + "/\udcff.txt").write_text("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert names(tmp_path) == ["\ufffd.txt"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"path": "nowhere"},
            r"sources\.mine\.path: .*nowhere does not exist \(relative paths start at",
        ),
        ({"path": "."}, r"no file below .* ends in \.txt or"),
        ({"path": ".", "glob": "**/*.md"}, r"no file below .* matches '\*\*/\*\.md'"),
        ({"path": ".", "glob": "/abs/*"}, "not a pattern"),
        ({"path": "http://host.invalid/folder/"}, "folder of a web server, which cannot be listed"),
        (
            {"path": "gs://bucket/x"},
            r"gs://bucket/x is of a kind that is not read; use s3://, http\(s\):// or a local path",
        ),
    ],
)
def test_nothing_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_inputs("mine", SourceConfig(kind="text", **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "text", "path": ""}, "names nothing"),
        ({"kind": "text", "path": []}, "is an empty list"),
        (
            {"kind": "jsonl", "path": "x", "fields": {"texts": "body"}},
            r"fields\.texts is not one of ours: text, url, id, language, date",
        ),
        ({"kind": "jsonl", "path": "x", "fields": {"url": ["a", "b"]}}, "is a list; only text"),
        ({"kind": "jsonl", "path": "x", "fields": {"text": []}}, "is empty"),
        ({"kind": "html", "path": "x", "fields": {"text": "body"}}, "has no meaning for kind html"),
        ({"kind": "text", "path": "x", "split": "train"}, "has no meaning for kind text"),
        ({"kind": "dataset"}, "needs either `path`"),
        ({"kind": "dataset", "path": "x", "hub": "y", "split": "train"}, "needs either `path`"),
        ({"kind": "dataset", "hub": "y"}, "needs `split`"),
        ({"kind": "dataset", "hub": "y", "split": "train[:10]"}, "is a slice"),
        (
            {"kind": "dataset", "path": "y", "subset": "de"},
            "subset has no meaning for a dataset on disk",
        ),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SourceConfig(**fields).validate("mine")


@pytest.mark.parametrize(
    "pattern", ["*.txt", "**/*.txt", "b/**/*.txt", "**/a.*", "b/?.txt", "*/*.txt"]
)
def test_patterns_mean_the_same_in_a_store_and_on_disk(tmp_path: Path, pattern: str) -> None:
    import re

    files = ["a.txt", "b/a.txt", "b/c/a.txt", "b/c/d/xx.txt", "c/a.md", "b/xx.txt"]
    write(tmp_path, *files)
    on_disk = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern) if path.is_file()
    }
    assert {name for name in files if re.fullmatch(_regex(pattern), name)} == on_disk
    assert on_disk
