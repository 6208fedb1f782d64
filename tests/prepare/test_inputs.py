"""Inputs: every file once, in one order, by names that do not depend on where the source lies."""

from pathlib import Path

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.reader import READERS, reader_class
from lit_pretrain.prepare.remote_input import RemoteFile


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


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.htm", "html"),
        ("a.arrow", "dataset"),
        ("a.WET", "warc"),
    ],
)
def test_files_of_another_kind_are_named(
    tmp_path: Path, file: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, file)
    with pytest.raises(UserError, match=f"set `kind: {kind}`, which reads them, or correct `path`"):
        names(tmp_path)
    assert names(tmp_path / file) == [file]
    assert f"{file} is read as plain text; `kind: {kind}` reads what it holds" in (
        capsys.readouterr().err
    )


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
    assert names(tmp_path) == ["\\xff.txt"]


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


NAMES = """a.txt b/a.txt b/c/a.txt b/c/d/xx.txt c/a.md b/xx.txt README.TXT b/N.Txt [x].txt
.hidden.txt .git/x.txt b/.ipynb_checkpoints/a.txt .github/note.md b/._a.txt c/Makefile d.txt.GZ
""".split()
"""Names of files, of which six are hidden."""


@pytest.mark.parametrize(
    "pattern",
    ["*.txt", "**/*.txt", "b/**/*.txt", "**/a.*", "b/?.txt", "*/*.txt", "*", "**/*", ".git/*.txt",
     "**/.git/*", ".*/*", "b/.*/*.txt", ".github/**/*.md", "[ab].txt", "[!ab]*.txt", "b/[!x]*",
     "*.TXT", "README.TXT", "readme.txt", ".hidden.txt", "*.gz", "b/*/*", "**/[.]*"],
)  # fmt: skip
def test_patterns_mean_the_same_in_a_store_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    write(tmp_path, *NAMES)
    objects = [RemoteFile(f"s3://bucket/all/{name}", 1, "v") for name in NAMES]
    monkeypatch.setattr("lit_pretrain.prepare.inputs.s3_objects", lambda address, options: objects)
    found = []
    for path in (str(tmp_path), "s3://bucket/all"):
        try:
            inputs = find_inputs("mine", SourceConfig(kind="text", path=path, glob=pattern))
        except UserError as error:
            found.append(str(error).replace(path, ""))
        else:
            found.append(([file.name for file in inputs.files], inputs.passed_over))
            assert len(inputs.files) + sum(inputs.passed_over.values()) == len(NAMES)
    assert found[0] == found[1]


def test_a_wildcard_reads_no_hidden_file_and_a_spelt_dot_does(tmp_path: Path) -> None:
    write(tmp_path, *NAMES)
    seen = {"b/xx.txt", "b/c/d/xx.txt", "README.TXT", "[x].txt"}
    assert seen <= set(names(tmp_path, glob="**/*.txt"))
    assert not [name for name in names(tmp_path, glob="**/*") if "/." in f"/{name}"]
    assert names(tmp_path, glob=".git/*") == [".git/x.txt"]
    assert names(tmp_path, glob="**/.*/*.txt") == [".git/x.txt", "b/.ipynb_checkpoints/a.txt"]
    # What the user names is read: a file, a folder, and what lies below a hidden folder.
    assert names(tmp_path / ".hidden.txt") == [".hidden.txt"]
    assert names(tmp_path / ".git") == ["x.txt"]


SUFFIXES = {name: reader_class(name).suffixes for name in READERS if reader_class(name).suffixes}


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("kind", sorted(set(SUFFIXES) - {"dataset"}))
def test_every_kind_folds_endings_and_leaves_hidden_files_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, store: bool
) -> None:
    wanted = [f"a{n}{suffix.upper()}" for n, suffix in enumerate(SUFFIXES[kind])]
    hidden = [f".cache/b{SUFFIXES[kind][0]}", f".c{SUFFIXES[kind][0]}"]
    write(tmp_path, *wanted, *hidden, "x.pdf", "y.PDF", "LICENSE", "old.tar.gz")
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    objects = [RemoteFile(f"s3://bucket/all/{file.as_posix()}", 1, "v") for file in files]
    monkeypatch.setattr("lit_pretrain.prepare.inputs.s3_objects", lambda address, options: objects)
    path = "s3://bucket/all" if store else str(tmp_path)
    inputs = find_inputs("mine", SourceConfig(kind=kind, path=path))
    assert [file.name for file in inputs.files] == sorted(wanted)
    assert inputs.passed_over == {".pdf": 2, "without ending": 1, ".tar.gz": 1, "hidden": 2}
    if not store:
        for name in wanted:
            (tmp_path / name).unlink()
        with pytest.raises(UserError, match=r"it holds 2 \.pdf, 2 hidden, 1 \.tar\.gz"):
            find_inputs("mine", SourceConfig(kind=kind, path=path))
