"""Atomic writes: all of a file or folder at once if the block ends well, else nothing of it."""

import errno
from pathlib import Path

import numpy as np
import pytest

from lit_pretrain.files import atomic_path, write_file
from lit_pretrain.prepare.dedup import dedup_files
from lit_pretrain.prepare.dedup.dedup_config import ContainmentConfig, DedupConfig
from lit_pretrain.prepare.dedup.sketch import Shingles, sketch, store_shingles
from lit_pretrain.prepare.document_store import Document

DOCUMENTS = [Document(" ".join(f"word{n}x{m}" for m in range(60)), f"file:{n}") for n in range(20)]


def test_a_file_and_a_directory_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_path(tmp_path / "new" / "file") as scratch:
            scratch.write_text(content)
        with atomic_path(tmp_path / "new" / "folder") as scratch:
            scratch.mkdir()
            (scratch / content).write_text(content)
        assert (tmp_path / "new" / "file").read_text() == content
        assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [content]
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path: Path, folder: bool) -> None:
    with atomic_path(tmp_path / "it") as scratch:
        scratch.write_text("before")

    def fail() -> None:
        with atomic_path(tmp_path / "it") as scratch:
            if folder:
                scratch.mkdir()
            (scratch / "part" if folder else scratch).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it").read_text() == "before"


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.md"
    write_file(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.md"]


def test_deduplication_leaves_no_scratch_files_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes some arrays and then no more, at every place in turn."""
    config = DedupConfig(containment=ContainmentConfig(min_words=20))
    dedup_files.save_columns(
        tmp_path / "candidates", {"compared": np.arange(0, 20, 2, dtype=np.int64)}
    )
    write = np.save
    left = 0

    def full(file: object, array: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, array)

    monkeypatch.setattr(np, "save", full)
    for room in range(9):
        left = room
        with pytest.raises(OSError, match="No space left"):
            sketch(DOCUMENTS, tmp_path / "sketch", config)
        assert [path.name for path in tmp_path.iterdir()] == ["candidates"]
    for room in range(2):
        left = room
        with pytest.raises(OSError, match="No space left"):
            store_shingles(
                DOCUMENTS, 0, 20, tmp_path / "candidates", tmp_path / "shingles", words=5
            )
        assert [path.name for path in tmp_path.iterdir()] == ["candidates"]
    left = 100
    assert sketch(DOCUMENTS, tmp_path / "sketch", config)[0] == 20
    assert left == 100 - 9  # the loop above met every one of them
    assert (
        store_shingles(DOCUMENTS, 0, 20, tmp_path / "candidates", tmp_path / "shingles", words=5)
        == 10
    )
    stored = Shingles([tmp_path / "shingles"], [0], np.arange(20))
    assert [stored.size(document) for document in range(0, 20, 2)] == [56] * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["candidates", "shingles", "sketch"]
