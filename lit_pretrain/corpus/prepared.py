"""PreparedText: a prepared dataset, in a directory or at a URL.

It opens the manifest, the tokenizer and the rows of the splits.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_pretrain.corpus.chunk_cache import (
    ChunkCache,
    fetch,
    load_manifest,
    size_in_bytes,
)
from lit_pretrain.corpus.manifest import INDEX_FILENAME, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.files import cache_folder, file_sha256, is_remote
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class PreparedText:
    """Open the files of one prepared dataset.

    Args:
        path: Its directory, or the s3:// URL of one.
        cache_dir: Where remote chunks are kept.
        max_cache_size: Limit of the chunks in that cache, such as 20GB; None for none.
        storage_options: Passed to the object store's client.
    """

    def __init__(
        self,
        path: str,
        *,
        cache_dir: str | None = None,
        max_cache_size: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.cache_dir = cache_dir
        self.max_cache_size = max_cache_size
        self.storage_options = storage_options

    @cached_property
    def manifest(self) -> Manifest:
        """Read the manifest once."""
        return load_manifest(
            self.path, cache_dir=self.cache_dir, storage_options=self.storage_options
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer, checked against the manifest.

        Raises:
            UserError: It is another one.
        """
        file, record = self._fetch("tokenizer.json"), self.manifest.tokenizer
        tokenizer = Tokenizer.load(str(file), bos=record.bos, eos=record.eos)
        if tokenizer.hash != record.hash:
            raise UserError(
                f"{file} is not the tokenizer that encoded the data: its hash is {tokenizer.hash},"
                f" the manifest says {record.hash}; restore the file or run `lit_pretrain prepare`"
                " again"
            )
        return tokenizer

    def check_whole(self, splits: Iterable[str]) -> None:
        """Refuse local chunks that are missing or have another size.

        Remote ones are checked when they are fetched.

        Raises:
            UserError: Names the first such chunk.
        """
        if is_remote(self.path):
            return
        for split in splits:
            for name, source in self.manifest.sources.items():
                for chunk in source.splits[split].chunks:
                    file = Path(self.path) / split / name / chunk.filename
                    size = file.stat().st_size if file.is_file() else None
                    if size != chunk.bytes:
                        found = "it is missing" if size is None else f"it has {size:,} bytes"
                        raise UserError(
                            f"chunk {file} is not whole: {found}, the manifest says {chunk.bytes:,}"
                            f" bytes with sha256 {chunk.sha256}; restore it from a good copy, or"
                            f" delete {self.path} and run `lit_pretrain prepare` again"
                        )

    def open(self, split: str, *, seq_len: int, shuffle_chunks: int) -> list[Any]:
        """Return one row reader per source; None where the split holds nothing of it.

        Args:
            split: train, validation or test.
            seq_len: Inputs per row.
            shuffle_chunks: Chunks of a source that training reads at the same time.

        Raises:
            UserError: An index is missing or damaged, or the cache is too small for what is read at
                the same time.
        """
        from lit_pretrain.corpus.rows import open_rows  # `fit --help` need not wait for litdata

        cache = self._cache(shuffle_chunks) if is_remote(self.path) else None
        readers: list[Any] = []
        for name, source in self.manifest.sources.items():
            chunks, folder = source.splits[split].chunks, f"{split}/{name}"
            if not chunks:
                readers.append(None)
                continue
            # LitData reads index.json where it expects the chunks; of a remote source both are
            # copies.
            index = self._fetch(f"{folder}/{INDEX_FILENAME}")
            self._check_index(index, f"{folder}/{INDEX_FILENAME}")
            readers.append(
                open_rows(
                    index.parent,
                    seq_len=seq_len,
                    vocab_size=self.manifest.tokenizer.vocab_size,
                    chunks=chunks,
                    folder=folder,
                    cache=cache,
                    held_out=split != "train",
                    keep_open=shuffle_chunks if split == "train" else 1,
                )
            )
        return readers

    def _check_index(self, file: Path, name: str) -> None:
        """Refuse an index other than the manifest's: LitData would go by it."""
        expected = self.manifest.files.get(name)
        if expected is None:  # an index that is not among the manifest's files is checked as read
            return
        try:
            found = file_sha256(file)
        except OSError as error:
            found = error.strerror or str(error)
        if found != expected:
            raise UserError(
                f"{file} is not the index that the manifest names: sha256 {expected}, found"
                f" {found}; copy it again from where the dataset came from, or run `lit_pretrain"
                " prepare` again"
            )

    def _fetch(self, name: str) -> Path:
        return fetch(
            self.path, name, cache_dir=self.cache_dir, storage_options=self.storage_options
        )

    def _cache(self, shuffle_chunks: int) -> ChunkCache:
        limit = None if self.max_cache_size is None else size_in_bytes(self.max_cache_size)
        largest = [
            max((c.bytes for c in s.splits["train"].chunks), default=0)
            for s in self.manifest.sources.values()
        ]
        needed = sum(largest) * shuffle_chunks
        if limit is not None and limit < needed:
            raise UserError(
                f"data.max_cache_size={self.max_cache_size} does not hold the chunks that are read"
                f" at the same time: {len(largest)} sources × {shuffle_chunks}"
                f" (data.shuffle_chunks) = {needed / 1e6:,.1f} MB; raise it"
            )
        root = cache_folder(self.path, self.cache_dir)
        return ChunkCache(self.path, root, limit=limit, storage_options=self.storage_options)
