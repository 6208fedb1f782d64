"""Encode: write the documents that are left of a part as chunks of their splits."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from lit_pretrain.corpus.chunk_writer import ShardWriter
from lit_pretrain.corpus.manifest import SPLITS, Chunk, SourceSplit
from lit_pretrain.errors import UserError
from lit_pretrain.files import rename_durably, scratch_path
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.funnel import RejectRecord
from lit_pretrain.prepare.inputs import Part
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.stages.compare import Survivors
from lit_pretrain.prepare.stages.hold_out import Splitter
from lit_pretrain.tokenizer.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 4096


class ChunkRecord(TypedDict):
    """A `Chunk` as JSON."""

    filename: str
    tokens: int
    documents: int
    bytes: int
    sha256: str


class SplitRecord(TypedDict):
    """A `SourceSplit` as JSON."""

    documents: int
    tokens: int
    bytes: int
    chunks: list[ChunkRecord]


class LostLines(TypedDict):
    """Repeated lines that the documents of a part lost."""

    lines: int
    """Lines that were taken out."""
    changed: int
    """Documents that lost lines."""
    emptied: int
    """Documents that lost all of them."""
    rejects: list[RejectRecord]
    """A sample of these."""


class EncodeResult(TypedDict):
    """The result of an EncodeTask."""

    splits: Mapping[str, SplitRecord]
    """The record of every split."""
    cut: int
    """Documents, or pieces of them, that were longer than a chunk."""
    documents: int
    """Documents that were left."""
    end_held_out: int
    """Documents that training shares with a split that is held out."""
    unspelt: int
    """Documents, or pieces of them, of which the tokenizer cannot spell a part."""
    lines: LostLines


@dataclass(frozen=True)
class EncodeTask:
    """Encode one part."""

    config: PrepareConfig
    parts: tuple[Part, ...]
    work: Path
    tokenizer: Tokenizer
    dtype: str
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> EncodeResult:
        """Write shards/<number>/<split>/."""
        config, part = self.config, self.parts[number]
        final = part_directory(self.work, number)
        scratch = scratch_path(final)
        splitter = Splitter.load(config, self.work)
        documents = end_held_out = unspelt = 0
        writers: dict[str, ShardWriter] = {}
        splits_of: deque[str] = deque()  # of the pieces that are being encoded, a batch at a time

        survivors = Survivors(
            config.dedup,
            self.work,
            number,
            self.begins[number],
            keep_rejects=config.keep_rejects,
        )

        def pieces() -> Iterator[Document]:
            nonlocal documents, end_held_out
            for document in survivors:
                advance(len(document.utf8))
                documents += 1
                for _, split, piece in splitter.pieces(document):
                    end_held_out += split == "train" and piece is not document
                    splits_of.append(split)
                    yield piece

        try:
            with contextlib.closing(
                encode_documents(
                    pieces(),
                    self.tokenizer,
                    self.dtype,
                    allow_unspelt=config.tokenizer.allow_unspelt,
                )
            ) as encoding:
                for encoded in encoding:
                    document, split = encoded.document, splits_of.popleft()
                    unspelt += encoded.unspelt > 0
                    if split not in writers:
                        writers[split] = ShardWriter(
                            scratch / split,
                            part=part.number,
                            dtype=self.dtype,
                            chunk_tokens=config.chunk_tokens,
                            vocab_size=self.tokenizer.vocab_size,
                        )
                    writers[split].add(
                        encoded.ids,
                        origin=document.origin,
                        utf8_bytes=len(document.utf8),
                        fields=document.fields,
                    )
            splits = {
                split: writers[split].close() if split in writers else SourceSplit(0, 0, 0, ())
                for split in SPLITS
            }
            if writers:
                # A run that was killed before it wrote its result may have left its chunks.
                shutil.rmtree(final, ignore_errors=True)
                rename_durably(scratch, final)
        finally:
            for writer in writers.values():
                writer.abort()
            shutil.rmtree(scratch, ignore_errors=True)
        return EncodeResult(
            splits={name: _split_record(split) for name, split in splits.items()},
            cut=sum(writer.cut for writer in writers.values()),
            documents=documents,
            end_held_out=end_held_out,
            unspelt=unspelt,
            lines=LostLines(
                lines=survivors.lines,
                changed=survivors.changed,
                emptied=survivors.emptied,
                rejects=survivors.rejects.dump(),
            ),
        )


def part_directory(work: Path, number: int) -> Path:
    """Name the directory with the chunks of a part until `record` assembles them."""
    return work / "shards" / f"{number:05d}"


def _split_record(split: SourceSplit) -> SplitRecord:
    """Write the record of a split as JSON; `encoded_split` is the inverse."""
    return SplitRecord(
        documents=split.documents,
        tokens=split.tokens,
        bytes=split.bytes,
        chunks=[
            ChunkRecord(
                filename=chunk.filename,
                tokens=chunk.tokens,
                documents=chunk.documents,
                bytes=chunk.bytes,
                sha256=chunk.sha256,
            )
            for chunk in split.chunks
        ],
    )


def encoded_split(result: EncodeResult, name: str) -> SourceSplit:
    """Read the record of one split of a part."""
    raw = result["splits"][name]
    return SourceSplit(
        documents=raw["documents"],
        tokens=raw["tokens"],
        bytes=raw["bytes"],
        chunks=tuple(Chunk(**chunk) for chunk in raw["chunks"]),
    )


@dataclass(frozen=True)
class Encoded:
    """A document as it will be stored."""

    document: Document
    ids: npt.NDArray[np.generic]
    """[tokens], of the stored dtype: bos, the text, and eos where it is another token."""
    unspelt: int = 0
    """Bytes of the text that its tokens do not spell."""


def encode_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    dtype: npt.DTypeLike,
    *,
    allow_unspelt: bool = False,
) -> Generator[Encoded]:
    """Encode documents in their order, on this thread; holds about 1 MiB of text.

    Args:
        documents: The documents.
        tokenizer: Encodes them.
        dtype: Of the ids.
        allow_unspelt: Keep documents of which the vocabulary lacks a part.

    Raises:
        RuntimeError: The tokens of a document do not spell its bytes, though it has all of them.
        UserError: The tokenizer has no tokens for a part of a document.
    """
    head = np.array([tokenizer.bos_id], dtype=dtype)
    tail = np.array([] if tokenizer.one_separator else [tokenizer.eos_id], dtype=dtype)
    lengths = (
        tokenizer.token_bytes()
        if tokenizer.backend == "tiktoken" and not tokenizer.normalizes
        else None
    )
    with _single_threaded_tokenizers():
        for batch in _batches(documents):
            for document, ids in zip(
                batch, tokenizer.encode_batch([document.text for document in batch]), strict=True
            ):
                # Byte-level tokens spell every byte, so that their lengths prove each document for
                # next to nothing.
                if lengths is not None and int(lengths[ids].sum()) != len(document.utf8):
                    raise RuntimeError(
                        f"{document.origin}: its tokens do not spell its {len(document.utf8)}"
                        " bytes; please report this text"
                    )
                unspelt = 0
                if tokenizer.backend != "tiktoken":
                    unspelt = tokenizer.unspelt_bytes(document.text, ids)
                    if unspelt and not allow_unspelt:
                        raise unspelt_document(document.origin, document.text, unspelt)
                yield Encoded(document, np.concatenate([head, ids.astype(dtype), tail]), unspelt)


def unspelt_document(origin: str, text: str, unspelt: int) -> UserError:
    """Say that the vocabulary lacks a part of a document."""
    return UserError(
        f"{origin}: the tokenizer has no tokens for a part of {text[:60]!r} (at least"
        f" {unspelt:,} of {len(text.encode()):,} bytes), so that the text would be lost and bits"
        " per byte would be wrong. Take a tokenizer that spells every byte, or keep such documents"
        " with tokenizer.allow_unspelt=true, which counts them"
    )


def _batches(documents: Iterable[Document]) -> Generator[list[Document]]:
    """Batch documents by size, so that a call of the encoder is neither tiny nor huge."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.utf8)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextlib.contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Keep `tokenizers`, where it is the fallback, to the calling thread.

    Its own pool of threads ignores `workers`.
    """
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
