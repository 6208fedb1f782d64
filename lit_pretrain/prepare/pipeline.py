"""The pipeline: find → learn a tokenizer → read, split, encode, store → record. Filters and deduplication belong between read and split."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections import Counter
from pathlib import Path

import lit_pretrain
from lit_pretrain.data import manifest as manifests
from lit_pretrain.data.manifest import SPLITS, Manifest, Source, SourceSplit, Step, TokenizerRecord, canonical_hash
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.prepare import directory, read, tokenize
from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.inputs import Inputs, find
from lit_pretrain.prepare.report import say, working
from lit_pretrain.prepare.rerun import refuse_difference
from lit_pretrain.prepare.shard import ShardWriter, directories_below, sync, write_durably
from lit_pretrain.prepare.source import SourceConfig
from lit_pretrain.prepare.split import Sample, Splitter

_EQUALITY_SAMPLE_BYTES = 1_000_000
"""Text of the data itself on which tiktoken must agree with `tokenizers` before it encodes the rest."""


def prepare(config: PrepareConfig) -> Manifest:
    """Turns raw text into a finished dataset directory, or finds that it is there already.

    The result is a function of the config and the input: the same bytes for any number of workers, on any day. `config.out` appears at
    the end, as a whole; whatever interrupts the work leaves nothing under that name.

    Args:
        config: What to prepare.

    Returns:
        The manifest of `config.out`.

    Raises:
        UserError: Something in the config, the input or the disk stands in the way; the message says what to do.
    """
    config.validate()
    out = Path(config.out).expanduser()
    if (out / manifests.FILENAME).exists():
        existing = Manifest.load(out)
        refuse_difference(out, existing, config)
        say(f"{out} is already prepared with this config ({existing.tokens('train'):,} training tokens); nothing to do")
        return existing
    inputs = _find(config)
    given = tokenize.load(config.tokenizer)
    directory.check_free(out)
    with directory.whole(out) as work:
        return _Preparation(config, inputs, work).run(given)


class _Preparation:
    """One run of the pipeline into a directory of its own."""

    def __init__(self, config: PrepareConfig, inputs: dict[str, Inputs], work: Path) -> None:
        self._config = config
        self._inputs = inputs
        self._work = work
        self._splitter = Splitter(config.splits, config.seed)
        self._workers = config.workers or _processors()
        self._sizes: dict[str, int] = {}  # UTF-8 bytes per source, once a pass has counted them

    def run(self, tokenizer: Tokenizer | None) -> Manifest:
        """All of it; returns the manifest that was written."""
        if tokenizer is None:
            tokenizer = self._train_tokenizer()
        self._check_encoder(tokenizer)
        # 65,536 ids fit uint16; above, int32, for torch has few operations on uint32.
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
        for path in tokenizer.save(self._work):
            sync(path)
        sources = {name: self._store(name, tokenizer, dtype) for name in self._inputs}
        identity, splits = self._config.identity(), self._config.splits
        manifest = Manifest(
            tokenizer=TokenizerRecord(
                hash=tokenizer.hash,
                vocab_size=tokenizer.vocab_size,
                bos=tokenizer.bos,
                eos=tokenizer.eos,
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                pattern=tokenizer.pattern_name,
                kind=self._config.tokenizer.kind,
            ),
            dtype=dtype,
            splits={"train": round(1 - splits.validation - splits.test, 12), **dataclasses.asdict(splits)},
            sources=sources,
            config=identity,
            config_hash=canonical_hash(identity),
            versions=_versions(),
        )
        for path in directories_below(self._work):
            sync(path)
        write_durably(self._work / manifests.FILENAME, manifest.dump())
        return manifest

    def _reader(self, name: str) -> read.Reader:
        """The documents of a source, for one pass; what both passes must not see is to be taken out here."""
        return read.Reader(self._config.sources[name], self._inputs[name], self._config)

    def _train_tokenizer(self) -> Tokenizer:
        """Reads everything once, for a uniform sample of the training split over all sources. Bad input shows up here, early."""
        sample = Sample(self._config.tokenizer.sample_bytes)
        with working("read all sources", None) as (advance, figures):
            documents = 0
            for name in self._inputs:
                self._sizes[name] = 0
                for document in self._reader(name):
                    key = self._splitter.key(document.utf8)
                    if self._splitter.split(key) == "train":
                        sample.offer(key, document.text, len(document.utf8))
                    documents += 1
                    self._sizes[name] += len(document.utf8)
                    advance(len(document.utf8))
            figures.append(f"{documents:,} documents, {sum(self._sizes.values()):,} bytes")
        texts = sample.texts()
        if not texts:
            raise UserError("no source holds any training text: every file is empty, or every document fell to validation or test")
        config = self._config.tokenizer
        with working(f"train a tokenizer of {config.vocab_size:,} ids on {sum(map(len, texts)):,} characters", None):
            return tokenize.train(texts, config)

    def _check_encoder(self, tokenizer: Tokenizer) -> None:
        """Compares the fast encoder with the reference on the data's own text."""
        texts: list[str] = []
        size = 0
        for name in self._inputs:
            share = size + _EQUALITY_SAMPLE_BYTES // len(self._inputs)
            for document in self._reader(name):
                texts.append(document.text[:_EQUALITY_SAMPLE_BYTES])
                size += len(document.utf8)
                if size >= share:
                    break
        tokenizer.check_equality(texts)
        if tokenizer.fallback_reason is not None:
            say(f"encoding with `tokenizers`, several times slower than tiktoken, because {tokenizer.fallback_reason}")

    def _store(self, name: str, tokenizer: Tokenizer, dtype: str) -> Source:
        """Encodes one source into the shards of its splits."""
        reader = self._reader(name)
        writers: dict[str, ShardWriter] = {}
        encoding = tokenize.encode(reader, tokenizer, dtype, self._workers)
        try:
            with working(f"encode {name}", self._sizes.get(name)) as (advance, figures), contextlib.closing(encoding):
                for encoded in encoding:
                    document = encoded.document
                    split = self._splitter.split(self._splitter.key(document.utf8))
                    if split not in writers:
                        writers[split] = ShardWriter(
                            self._work / split / name, dtype=dtype, chunk_tokens=self._config.chunk_tokens, vocab_size=tokenizer.vocab_size
                        )
                    writers[split].add(encoded.ids, origin=document.origin, utf8_bytes=len(document.utf8))
                    advance(len(document.utf8))
                splits = {split: writers[split].close() if split in writers else SourceSplit(0, 0, 0, ()) for split in SPLITS}
                tokens = sum(split.tokens for split in splits.values())
                figures += [f"{sum(split.documents for split in splits.values()):,} documents", f"{tokens:,} tokens"]
        finally:
            for writer in writers.values():
                writer.abort()
        _check_splits(name, splits, reader, self._config)
        source = self._config.sources[name]
        cut = sum(writer.cut for writer in writers.values())
        return Source(
            kind=source.kind,
            origin=_origin(source),
            licence=source.licence,
            files=len(self._inputs[name].files),
            input_bytes=self._inputs[name].bytes,
            path=source.path,
            funnel=(
                Step(
                    name="read",
                    documents=sum(split.documents for split in splits.values()),
                    bytes=sum(split.bytes for split in splits.values()),
                    removed=dict(sorted(reader.skipped.items())),
                    changed=dict(sorted((reader.changed + Counter(cut=cut)).items())),
                ),
            ),
            splits=splits,
        )


def _find(config: PrepareConfig) -> dict[str, Inputs]:
    """The files of every source, by name. Some distributions ship Python without its tests: that source is then left out, and said so."""
    inputs: dict[str, Inputs] = {}
    for name, source in config.sources.items():
        found = find(name, source)
        if found.files:
            inputs[name] = found
        else:
            say(f"sources.{name} is left out: this Python's standard library ({found.base}) ships no {source.part}")
    if not inputs:
        raise UserError("no source has any file; give at least one that has (see the lines above)")
    return inputs


def _origin(source: SourceConfig) -> str | None:
    """Of the embedded corpus, the version that decides what it holds goes with it."""
    if source.kind != "embedded":
        return source.origin
    return f"{source.origin or 'Python standard library'} ({platform.python_implementation()} {platform.python_version()})"


def _check_splits(name: str, splits: dict[str, SourceSplit], reader: read.Reader, config: PrepareConfig) -> None:
    """Refuses a source without documents or without training text, and says when a held-out split came out empty."""
    documents = sum(split.documents for split in splits.values())
    if not documents:
        left = ", ".join(f"{count} {reason}" for reason, count in sorted(reader.skipped.items())) or "it has no rows"
        raise UserError(f"sources.{name} holds no document ({left}). Correct its path, or remove it from `sources`.")
    if not splits["train"].tokens:
        raise UserError(
            f"sources.{name} is left without training text: all of its {documents} documents fell to validation or test. Lower `splits`, "
            "add documents, cut the files into more of them with `separator`, or change `seed`."
        )
    for label, fraction in dataclasses.asdict(config.splits).items():
        if fraction and not splits[label].documents:
            say(
                f"{name}: no document fell to {label} ({documents} documents, fraction {fraction}); "
                "more documents or a larger fraction would give it some"
            )


def _versions() -> dict[str, str]:
    """What made the bytes."""
    libraries = {name: importlib.metadata.version(name) for name in ("litdata", "tiktoken", "tokenizers")}
    return {"lit_pretrain": lit_pretrain.__version__, "python": platform.python_version(), **libraries}


def _processors() -> int:
    """Those that this process may use, which on a cluster is not all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
