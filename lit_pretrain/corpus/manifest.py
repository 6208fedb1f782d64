"""Manifest: the content of a prepared dataset, the origin of each part, and all checksums."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from lit_pretrain.decontaminate.evaluation_set import DecontaminationRecord
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.files import (
    canonical_hash,
    check_plain_names,
    file_sha256,
    parse_sealed_json,
    seal_json,
)
from lit_pretrain.plain_data import load_json

MANIFEST_FILENAME = "manifest.json"
INDEX_FILENAME = "index.json"
"""LitData's list of the chunks of one split of one source, in `<split>/<source>/`."""
MANIFEST_VERSION = 3
SPLITS = ("train", "validation", "test")
"""The splits of every dataset, in the order in which they are listed and stored."""


_MEND = (
    "Copy it again from where the dataset came from, or delete the dataset's directory and run"
    " `lit_pretrain prepare` again."
)


@dataclass(frozen=True)
class Chunk:
    """Describe one LitData chunk file."""

    filename: str
    """File name within `<split>/<source>/`."""
    tokens: int
    """Stored tokens, separators included."""
    documents: int
    """Rows of the chunk header: documents, or pieces of a document longer than a chunk."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the whole file, header included."""


@dataclass(frozen=True)
class SourceSplit:
    """Describe what one source gives to one split."""

    documents: int
    """Documents, each counted once even where it was cut into pieces."""
    tokens: int
    """Stored tokens, separators included."""
    bytes: int
    """UTF-8 bytes of the documents' text: the denominator of bits per byte."""
    chunks: tuple[Chunk, ...]
    """In the order of the data; empty when the split holds no document of this source."""


@dataclass(frozen=True)
class Step:
    """Count what one step of the preparation let through; all steps together are the funnel."""

    name: str
    """read, then the steps of the config in their order (a filter's name, exact, near, ...), then
    store.
    """
    documents: int
    """Documents that left the step."""
    bytes: int
    """UTF-8 bytes of their text."""
    tokens: int
    """Tokens of their text, separators included."""
    tokens_estimated: bool
    """Whether `tokens` comes from a sample of what left the step. False: counted."""
    removed: Mapping[str, int]
    """Documents taken out, by reason."""
    changed: Mapping[str, int]
    """Documents kept but altered, by what happened."""
    scores: tuple[int, ...] = ()
    """Of a filter that scores documents from 0 to 1: how many have which score, in bins of equal
    width, those that it removed included.
    """


@dataclass(frozen=True)
class Source:
    """Record where one source came from, what was left out, and what it holds."""

    kind: str
    """As in the config: embedded, text, jsonl, parquet, ..."""
    origin: str | None
    """Where the text came from, in the words of the config."""
    licence: str | None
    """Its licence, in the words of the config."""
    files: int
    """Input files read."""
    input_bytes: int
    """Size of the input files on disk."""
    content_sha256: str
    """Of the input: over one line `<name>\\0<sha256>` for every file, in reading order
    (`content_hash`). Shows that it changed since.
    """
    path: str | None
    """Where the files lay, in the words of the config; origins of documents are relative to it.
    None: the embedded corpus.
    """
    funnel: tuple[Step, ...]
    """In the order of the work; the last step is what the splits hold."""
    splits: Mapping[str, SourceSplit]
    """By split name."""
    held_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """How the text of each held-out split was chosen. hash: each document by the hash of its text.
    bytes: documents in the order of their hash, up to the share. tail: the end of one among them.
    """
    remote_sha256: str | None = None
    """Of remote input: the same over what its server said of each file when it was read (its ETag,
    else the time of its last change). Shows that it changed without fetching it. None: all files
    were local.
    """
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Files that lay beside those that were read: how many, by their ending, and how many hidden
    ones.
    """

    @property
    def tokens(self) -> int:
        """Sum the tokens over all splits."""
        return sum(split.tokens for split in self.splits.values())


@dataclass(frozen=True)
class TokenizerRecord:
    """State the contract of the tokenizer that encoded the data."""

    hash: str
    """sha256 of the canonical tokenizer.json (`Tokenizer.hash`)."""
    vocab_size: int
    """Highest id + 1, special tokens included: the rows an embedding needs."""
    bos: str
    """Spelling of the token that starts every document."""
    eos: str
    """Spelling of the one that ends it."""
    bos_id: int
    """Id of `bos`."""
    eos_id: int
    """Id of `eos`; equal to `bos_id` when one separator does both."""
    pattern: str | None
    """Name of the pre-tokenizer's regex (cl100k, gpt2, ...); None when it is not one that is
    known by name.
    """
    kind: str
    """train or file."""


@dataclass(frozen=True)
class Manifest:
    """Record a finished dataset.

    It is written last: a directory without a manifest is not a dataset.
    """

    tokenizer: TokenizerRecord
    dtype: str
    """Of the stored tokens: uint16 or int32."""
    splits: Mapping[str, float]
    """Share of bytes per split, as the config gives it."""
    sources: Mapping[str, Source]
    """By name, in the order of the config."""
    config: Mapping[str, Any]
    """The resolved config of `prepare`, without what cannot change the data (`out`, `workers`)."""
    config_hash: str
    """sha256 of the canonical JSON of `config`."""
    versions: Mapping[str, str]
    """Versions of lit_pretrain, Python, its Unicode tables and the libraries that were used."""
    files: Mapping[str, str]
    """sha256 of every other file of the dataset, by its path in it: tokenizer.json, index.json and
    documents.jsonl of every split, and the reports. They are no part of `hash`.
    """
    decontamination: tuple[DecontaminationRecord, ...] = ()
    """Evaluation sets that the documents were decontaminated against, and what was found."""
    format_version: int = MANIFEST_VERSION

    @property
    def hash(self) -> str:
        """Identify the data: sha256 over the stored tokens and the contract to read them.

        Two datasets with the same hash give the same training run. Paths, licences, versions and
        the config may differ between them; one token, a chunk boundary, a source's name or the
        tokenizer may not.
        """
        identity = {
            "format_version": self.format_version,
            "dtype": self.dtype,
            "tokenizer": [
                self.tokenizer.hash,
                self.tokenizer.vocab_size,
                self.tokenizer.bos_id,
                self.tokenizer.eos_id,
            ],
            "sources": {
                name: {split: dataclasses.asdict(part) for split, part in source.splits.items()}
                for name, source in self.sources.items()
            },
        }
        return canonical_hash(identity)

    def check_names(self, where: str) -> None:
        """Refuse a manifest that names files outside its dataset.

        Raises:
            UserError: Names the first.
        """
        check_plain_names(self.sources, where)
        for source in self.sources.values():
            check_plain_names(source.splits, where)
            for part in source.splits.values():
                check_plain_names((chunk.filename for chunk in part.chunks), where)
        check_plain_names(self.files, where, folders=True)

    def tokens(self, split: str) -> int:
        """Sum the tokens of a split over all sources."""
        return sum(source.splits[split].tokens for source in self.sources.values())

    def dump(self) -> str:
        """Return the text of manifest.json.

        It holds the fields in their order, the `hash` for readers without this library, and a
        digest of all of it: the hash does not cover licences, input hashes or the records of
        decontamination.
        """
        record = {
            "gate" if name == "decontamination" else name: value  # the file keeps its old key
            for name, value in dataclasses.asdict(self).items()
        }
        return seal_json({"hash": self.hash, **record})

    @classmethod
    def parse(cls, text: str, where: str) -> Manifest:
        """Read the text of a manifest.json.

        Args:
            text: The JSON.
            where: Path or URL of the file, for messages.

        Raises:
            UserError: It is not JSON, misses a field, was edited by hand, or has another format
                version.
        """

        def damaged(what: str) -> NoReturn:
            raise UserError(f"{where} is damaged: {what}. {_MEND}")

        try:
            raw = load_json(text)
        except ValueError as error:
            damaged(f"not JSON ({error})")
        if not isinstance(raw, dict):
            damaged(f"expected a JSON object, found {type(raw).__name__}")
        # Before the rest: another version may hold other fields.
        if raw.get("format_version") != MANIFEST_VERSION:
            raise UserError(
                f"{where} has format_version {raw.get('format_version')!r}; this lit_pretrain reads"
                f" {MANIFEST_VERSION}. Prepare the data again with this version, or use the version"
                " that wrote it."
            )
        try:
            raw = parse_sealed_json(text, where, known=_MANIFEST_KEYS)
        except UserError as error:
            raise UserError(f"{error}. {_MEND}") from None
        for name in ("splits", "config", "versions", "files"):
            if not isinstance(raw.get(name), dict):
                damaged(f"a field is missing or has the wrong type ({name})")
        try:
            manifest = cls(
                tokenizer=TokenizerRecord(**raw["tokenizer"]),
                dtype=raw["dtype"],
                splits=raw["splits"],
                sources={name: _source(source) for name, source in raw["sources"].items()},
                config=raw["config"],
                config_hash=raw["config_hash"],
                versions=raw["versions"],
                files=raw["files"],
                decontamination=tuple(
                    DecontaminationRecord.from_json(record) for record in raw["gate"]
                ),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            damaged(f"a field is missing or has the wrong type ({error})")
        manifest.check_names(where)
        if raw.get("hash") != manifest.hash:
            damaged(f"its content has the hash {manifest.hash} but it says {raw.get('hash')!r}")
        return manifest

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read `<directory>/manifest.json`.

        Raises:
            UserError: There is none, or it is damaged.
        """
        path = Path(directory) / MANIFEST_FILENAME
        try:
            return cls.parse(path.read_text(encoding="utf-8"), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise _no_dataset(Path(directory)) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is damaged: {error}. Delete {directory} and run `lit_pretrain prepare`"
                " again."
            ) from None


_RAW = {
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
"""Ending of a file -> the kind of a source of `prepare` that reads it."""
_LOOKED_AT = 1000
"""Files of a folder from which its kind is concluded."""


def _no_dataset(folder: Path) -> UserError:
    """Say what a path holds that is no dataset, and how to come by one."""
    problem = f"no prepared dataset at {folder}:"
    if not folder.exists():
        near = nearest(folder.name, [other.name for other in _datasets_in(folder.parent)])
        hint = f" Did you mean '{folder.parent / near[0]}'?" if near else ""
        return UserError(
            f"{problem} {folder / MANIFEST_FILENAME} does not exist.{hint} Make it with"
            f" `lit_pretrain prepare --config configs/prepare/embedded.yaml --out {folder}`"
            " (or another prepare config)."
        )
    if below := _datasets_in(folder):
        return UserError(
            f"{problem} it is a folder of datasets; give one of them:"
            f" {', '.join(map(str, below[:5]))}"
        )
    if (folder / "checkpoints").is_dir():
        return UserError(f"{problem} it is a run folder; give the dataset that is to be read")
    files = [folder] if folder.is_file() else islice(folder.rglob("*"), _LOOKED_AT)
    kinds = Counter(filter(None, (_RAW.get(file.suffix.lower()) for file in files)))
    if not kinds:
        return UserError(
            f"{problem} it holds no {MANIFEST_FILENAME}; give a folder that `lit_pretrain prepare`"
            " has written"
        )
    kind = kinds.most_common(1)[0][0]
    rows = " (rows to post-train on are given by data.sources instead)" if kind == "jsonl" else ""
    return UserError(
        f"{problem} it is raw data, which is prepared first{rows}: lit_pretrain prepare"
        f" --sources.mine.kind {kind} --sources.mine.path {folder} --out data/mine"
    )


def _datasets_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if (child / MANIFEST_FILENAME).is_file())


_MANIFEST_KEYS = {"hash", "gate"} | {field.name for field in dataclasses.fields(Manifest)}


def _source(raw: Mapping[str, Any]) -> Source:
    """Read one entry of `sources` from its JSON."""
    splits = {
        name: SourceSplit(**{**split, "chunks": tuple(Chunk(**chunk) for chunk in split["chunks"])})
        for name, split in raw["splits"].items()
    }
    funnel = tuple(
        Step(**{**step, "scores": tuple(step.get("scores", ()))}) for step in raw["funnel"]
    )
    return Source(**{**raw, "splits": splits, "funnel": funnel})


def rows_in(chunk_tokens: int, seq_len: int) -> int:
    """Count the rows of `seq_len` inputs, and as many targets, in a chunk of `chunk_tokens`."""
    # The last token of a chunk is a label only.
    return max(0, (chunk_tokens - 1) // seq_len)


def held_out_rows(chunk_tokens: Sequence[int], seq_len: int) -> list[int]:
    """Count the rows of each chunk of a source that are read of held-out text.

    These are the complete ones. A source that fills none gives one shorter row per chunk, so that
    little text is measured rather than refused.
    """
    complete = [rows_in(tokens, seq_len) for tokens in chunk_tokens]
    return complete if any(complete) else [int(tokens > 1) for tokens in chunk_tokens]


def verify(path: str | os.PathLike[str], manifest: Manifest) -> list[str]:
    """Compare every file of a dataset with its manifest.

    Args:
        path: The dataset's directory.
        manifest: Of the dataset.

    Returns:
        What is wrong, one message for every bad file: missing, unreadable, of another size, or of
        another content. Empty: all is well.
    """
    path = Path(path)
    bad = []
    for name, source in manifest.sources.items():
        for split, part in source.splits.items():
            for chunk in part.chunks:
                try:
                    verify_chunk(path / split / name / chunk.filename, chunk)
                except UserError as error:
                    bad.append(str(error))
    for name, sha256 in manifest.files.items():
        try:
            found = file_sha256(path / name)
        except FileNotFoundError:
            bad.append(f"{path / name} is missing (expected sha256 {sha256}). {_MEND}")
        except OSError as error:
            bad.append(
                f"{path / name} cannot be read: {error.strerror or error} (expected sha256"
                f" {sha256}). {_MEND}"
            )
        else:
            if found != sha256:
                bad.append(
                    f"{path / name} is corrupted: sha256 is {found}, the manifest says {sha256}."
                    f" {_MEND}"
                )
    return bad


def verify_chunk(path: str | os.PathLike[str], expected: Chunk) -> None:
    """Check a chunk file against the manifest.

    Args:
        path: The file.
        expected: Its entry in the manifest.

    Raises:
        UserError: It is missing, has another size, or other content. The message names the sha256
            it should have.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        found = file_sha256(path) if size == expected.bytes else None
    except FileNotFoundError:
        raise UserError(
            f"chunk {path} is missing (expected {expected.bytes:,} bytes, sha256"
            f" {expected.sha256}). {_MEND}"
        ) from None
    except OSError as error:
        raise UserError(
            f"chunk {path} cannot be read: {error.strerror or error} (expected sha256"
            f" {expected.sha256}). {_MEND}"
        ) from None
    if found is None:
        raise UserError(
            f"chunk {path} {'is truncated' if size < expected.bytes else 'is too long'}: {size:,}"
            f" bytes on disk, {expected.bytes:,} in the manifest (expected sha256"
            f" {expected.sha256}). {_MEND}"
        )
    if found != expected.sha256:
        raise UserError(
            f"chunk {path} is corrupted: sha256 is {found}, the manifest says {expected.sha256}."
            f" {_MEND}"
        )
