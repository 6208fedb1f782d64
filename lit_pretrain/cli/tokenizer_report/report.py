"""Report: a prepared dataset or a tokenizer in, figures that are plain JSON values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.cli.tokenizer_report import measure
from lit_pretrain.cli.tokenizer_report.contestant import Contestant, find
from lit_pretrain.data import manifest as manifests
from lit_pretrain.data.manifest import Manifest
from lit_pretrain.data.stored import sample_documents, token_counts
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.errors import UserError

SPLIT = "train"
Samples = Mapping[str, Sequence[str]]


def report(path: str, *, against: Sequence[str] = (), text: Sequence[str] = (), sample_bytes: int = 1_000_000) -> dict[str, Any]:
    """Examines the tokenizer of a dataset, or a tokenizer by itself.

    Holds the sample (`sample_bytes` per source) in memory.

    Args:
        path: A prepared dataset, a tokenizer.json, a folder that holds one, or the name of an encoding of tiktoken's.
        against: Tokenizers to compare it with, likewise.
        text: UTF-8 files to compare on, each a source of one document. Default: documents of the dataset's training split.
        sample_bytes: UTF-8 bytes to compare on, per source or file.

    Raises:
        UserError: Something cannot be read, or is no dataset and no tokenizer.
    """
    if "://" in path:
        raise UserError(f"{path} is remote; name a local copy")
    if sample_bytes < 1:
        raise UserError(f"sample_bytes={sample_bytes} must be at least 1")
    where = Path(path).expanduser()
    manifest = Manifest.load(where) if (where / manifests.FILENAME).is_file() else None
    own = Tokenizer.load(where) if manifest is not None else None
    if manifest is not None and own is not None and own.hash != manifest.tokenizer.hash:
        raise UserError(
            f"the tokenizer.json in {path} ({own.hash[:12]}) is not the one that encoded the data ({manifest.tokenizer.hash[:12]}); copy "
            "the dataset again from where it came from, or run `lit_pretrain prepare` again"
        )
    contestants = find([path, *against], own)
    samples: dict[str, list[str]] = {name: [_read(name, sample_bytes)] for name in text}
    if manifest is not None and own is not None and not samples:
        samples = {
            name: list(sample_documents(where, manifest, name, own, size=sample_bytes, split=SPLIT))
            for name, source in manifest.sources.items()
            if source.splits[SPLIT].tokens
        }
    if against and not samples:
        raise UserError(f"{path} is a tokenizer without data, so there is nothing to compare on; name files with --text")
    return {
        "path": path,
        "manifest": manifest.hash if manifest is not None else None,
        "normalizes": own is not None and own.normalizes and not text,
        "tokenizers": [_facts(contestant) for contestant in contestants],
        "samples": {name: {"documents": len(texts), "bytes": sum(len(t.encode()) for t in texts)} for name, texts in samples.items()},
        "stored": {} if manifest is None else {name: _stored(source) for name, source in manifest.sources.items()},
        "results": measure.compare(contestants, samples) if samples else {},
        "characters_outside": {c.name: measure.characters_outside(c, samples) for c in contestants} if samples else {},
        "use": _use(contestants[0], where, manifest, samples),
        "longest": measure.longest(contestants[0]),
        "probes": {name: _cuts(contestants, probe) for name, probe in measure.PROBES.items()},
        "examples": {name: _cuts(contestants, measure.excerpt(texts)) for name, texts in samples.items()},
    }


def _use(contestant: Contestant, where: Path, manifest: Manifest | None, samples: Samples) -> dict[str, Any] | None:
    """Of the whole training split, where there is one, else of the sample."""
    if manifest is not None:
        return {"where": f"the {SPLIT} split", **measure.use(contestant, token_counts(where, manifest, SPLIT))}
    return {"where": "the text given", **measure.use(contestant, measure.count(contestant, samples))} if samples else None


def _cuts(contestants: Sequence[Contestant], text: str) -> dict[str, list[str]]:
    return {contestant.name: measure.cuts(contestant, text) for contestant in contestants}


def _facts(contestant: Contestant) -> dict[str, Any]:
    return {
        "name": contestant.name,
        "path": contestant.path,
        "vocab_size": contestant.vocab_size,
        "special_tokens": len(contestant.special),
        "pattern": contestant.pattern,
        "encoder": contestant.encoder,
    }


def _stored(source: manifests.Source) -> dict[str, Any]:
    part = source.splits[SPLIT]
    return {"tokens": part.tokens, "bytes": part.bytes, "bytes_per_token": part.bytes / part.tokens if part.tokens else None}


def _read(name: str, size: int) -> str:
    """The beginning of a text file."""
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(size)
            rest = file.read(1)
    except OSError as error:
        raise UserError(f"--text {name} cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if rest and error.reason == "unexpected end of data":  # the size cut a character
            return data[: error.start].decode("utf-8")
        raise UserError(f"--text {name} is not UTF-8: {error}; convert it, e.g. `iconv -t utf-8`") from None
