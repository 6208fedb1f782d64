"""The chunk cache: right content, within its limit, whoever else uses it. The store is a
directory here.
"""

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.corpus import chunk_cache
from lit_pretrain.corpus.chunk_cache import ChunkCache, size_in_bytes
from lit_pretrain.corpus.manifest import Chunk
from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256

SIZE = 1000


def store_in(base: Path, patch: pytest.MonkeyPatch) -> Path:
    """Eight chunks of 1,000 bytes in a directory that stands for a store; `store/log` names the
    fetches.
    """
    store = base / "store"
    (store / "train" / "a").mkdir(parents=True)
    for n in range(8):
        (store / "train" / "a" / f"chunk-0-{n}.bin").write_bytes(bytes([n]) * SIZE)

    def download(
        url: str, target: Path, *, storage_options: Mapping[str, Any] | None, check: Any
    ) -> None:
        source = store / url.removeprefix("s3://bucket/")
        scratch = target.parent / ".fetch-x" / target.name
        scratch.parent.mkdir(exist_ok=True)
        with (store / "log").open("a") as log:
            log.write(source.name + "\n")
        shutil.copy(source, scratch)
        check(scratch)
        scratch.replace(target)

    patch.setattr(chunk_cache, "download", download)
    return store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return store_in(tmp_path, monkeypatch)


def chunk(store: Path, n: int) -> Chunk:
    file = store / "train" / "a" / f"chunk-0-{n}.bin"
    return Chunk(filename=file.name, tokens=1, documents=1, bytes=SIZE, sha256=file_sha256(file))


def fetches(store: Path) -> list[str]:
    return (store / "log").read_text().split() if (store / "log").exists() else []


def stored(root: Path) -> set[str]:
    return {file.name for file in root.rglob("chunk-*.bin")}


@given(wanted=st.lists(st.integers(0, 7), min_size=1, max_size=40), room=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_it_stays_within_its_limit_and_gives_the_right_content(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[int], room: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("base")
        store = store_in(base, patch)
        cache = ChunkCache(
            "s3://bucket", base / "cache", limit=room * SIZE + 10, storage_options=None
        )
        for n in wanted:
            assert cache.fetch("train/a", chunk(store, n)).read_bytes() == bytes([n]) * SIZE
            assert len(stored(base / "cache")) <= room
        assert len(fetches(store)) >= len(set(wanted))
        if room >= len(set(wanted)):
            assert len(fetches(store)) == len(set(wanted))  # nothing was fetched twice


def test_what_was_opened_longest_ago_is_dropped_first_and_what_is_in_use_last(
    store: Path, tmp_path: Path
) -> None:
    cache = ChunkCache("s3://bucket", tmp_path / "cache", limit=3 * SIZE, storage_options=None)
    for n in (0, 1, 2):
        cache.fetch("train/a", chunk(store, n))
    cache.fetch("train/a", chunk(store, 0))  # opened again
    cache.fetch("train/a", chunk(store, 3))
    assert stored(tmp_path / "cache") == {"chunk-0-0.bin", "chunk-0-2.bin", "chunk-0-3.bin"}
    cache.fetch("train/a", chunk(store, 4), in_use=["chunk-0-2.bin"])
    assert stored(tmp_path / "cache") == {"chunk-0-2.bin", "chunk-0-3.bin", "chunk-0-4.bin"}


def test_no_limit_keeps_everything(store: Path, tmp_path: Path) -> None:
    cache = ChunkCache("s3://bucket", tmp_path / "cache", limit=None, storage_options=None)
    for n in (*range(8), *range(8)):
        cache.fetch("train/a", chunk(store, n))
    assert len(fetches(store)) == 8


def test_a_damaged_copy_is_fetched_again(store: Path, tmp_path: Path) -> None:
    cache = ChunkCache("s3://bucket", tmp_path / "cache", limit=None, storage_options=None)
    for damage in (b"x" * SIZE, b"short"):
        cache.fetch("train/a", chunk(store, 0)).write_bytes(damage)
        assert cache.fetch("train/a", chunk(store, 0)).read_bytes() == bytes(SIZE)
    assert len(fetches(store)) == 3


def test_something_else_in_the_store_is_refused_and_leaves_nothing(
    store: Path, tmp_path: Path
) -> None:
    expected = chunk(store, 0)
    (store / "train" / "a" / "chunk-0-0.bin").write_bytes(b"y" * SIZE)
    cache = ChunkCache("s3://bucket", tmp_path / "cache", limit=None, storage_options=None)
    with pytest.raises(
        UserError,
        match=r"s3://bucket/train/a/chunk-0-0\.bin is not the chunk that the manifest names",
    ) as caught:
        cache.fetch("train/a", expected)
    assert expected.sha256 in str(caught.value)
    assert not (tmp_path / "cache" / "train" / "a" / "chunk-0-0.bin").exists()


def test_ranks_that_ask_at_the_same_time_fetch_once(store: Path, tmp_path: Path) -> None:
    caches = [
        ChunkCache("s3://bucket", tmp_path / "cache", limit=None, storage_options=None)
        for _ in range(6)
    ]
    threads = [
        threading.Thread(target=cache.fetch, args=("train/a", chunk(store, 5))) for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetches(store) == ["chunk-0-5.bin"]


def test_what_a_killed_process_left_half_fetched_is_dropped(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ChunkCache("s3://bucket", tmp_path / "cache", limit=2 * SIZE, storage_options=None)
    half = tmp_path / "cache" / "train" / "a" / ".fetch-dead" / "chunk-0-7.bin"
    half.parent.mkdir(parents=True)
    half.write_bytes(bytes(SIZE))
    cache.fetch("train/a", chunk(store, 0))
    cache.fetch("train/a", chunk(store, 1))  # the half counts: there is room for one more only
    assert half.exists()
    assert stored(tmp_path / "cache") == {"chunk-0-7.bin", "chunk-0-1.bin"}
    monkeypatch.setattr(chunk_cache, "ABANDONED_SECONDS", -1.0)
    cache.fetch("train/a", chunk(store, 2))
    assert not half.exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20 * 10**9),
        ("1.5 MiB", 1572864),
        ("700", 700),
        ("2k", 2000),
        ("3 tib", 3 * 2**40),
        (".5GB", 5 * 10**8),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1 XB", "GB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="max_cache_size"):
        size_in_bytes(text)
