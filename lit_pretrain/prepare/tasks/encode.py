"""Encode: the documents of a part that are left, as chunks of their splits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.data.manifest import SPLITS, Chunk, SourceSplit
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.data.whole import scratch_name
from lit_pretrain.prepare import tokenize
from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.engine.stage import Advance
from lit_pretrain.prepare.parts import Part
from lit_pretrain.prepare.shard import ShardWriter
from lit_pretrain.prepare.split import Splitter
from lit_pretrain.prepare.survivors import Survivors


@dataclass(frozen=True)
class EncodeTask:
    """Encodes one part."""

    config: PrepareConfig
    parts: tuple[Part, ...]
    work: Path
    tokenizer: Tokenizer
    dtype: str
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes shards/<number>/<split>/; returns the record of each split."""
        config, part = self.config, self.parts[number]
        final = part_directory(self.work, number)
        scratch = scratch_name(final)
        splitter = Splitter.load(config, self.work)
        documents = cut = 0
        writers: dict[str, ShardWriter] = {}
        splits_of: deque[str] = deque()  # of the pieces that are being encoded, a batch at a time

        survivors = Survivors(config.dedup, self.work, number, self.begins[number])

        def pieces() -> Iterator[Document]:
            nonlocal documents, cut
            for document in survivors:
                advance(len(document.utf8))
                documents += 1
                for _, split, piece in splitter.pieces(document):
                    cut += split == "train" and piece is not document
                    splits_of.append(split)
                    yield piece

        try:
            with contextlib.closing(tokenize.encode(pieces(), self.tokenizer, self.dtype)) as encoding:
                for encoded in encoding:
                    document, split = encoded.document, splits_of.popleft()
                    if split not in writers:
                        writers[split] = ShardWriter(
                            scratch / split,
                            part=part.number,
                            dtype=self.dtype,
                            chunk_tokens=config.chunk_tokens,
                            vocab_size=self.tokenizer.vocab_size,
                        )
                    writers[split].add(encoded.ids, origin=document.origin, utf8_bytes=len(document.utf8), fields=document.fields)
            splits = {split: writers[split].close() if split in writers else SourceSplit(0, 0, 0, ()) for split in SPLITS}
            if writers:
                shutil.rmtree(final, ignore_errors=True)  # of a run that was killed before its result was written
                os.rename(scratch, final)
        finally:
            for writer in writers.values():
                writer.abort()
            shutil.rmtree(scratch, ignore_errors=True)
        return {
            "splits": {name: dataclasses.asdict(split) for name, split in splits.items()},
            "cut": sum(writer.cut for writer in writers.values()),
            "documents": documents,
            "end_held_out": cut,
            "lines": {"lines": survivors.lines, "changed": survivors.changed, "emptied": survivors.emptied},
        }


def part_directory(work: Path, number: int) -> Path:
    """Where the chunks of a part lie until they are assembled."""
    return work / "shards" / f"{number:05d}"


def split_of(result: dict[str, Any], name: str) -> SourceSplit:
    """One split of a task's result."""
    raw = result["splits"][name]
    return SourceSplit(**{**raw, "chunks": tuple(Chunk(**chunk) for chunk in raw["chunks"])})
