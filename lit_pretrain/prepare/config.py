"""The config of `prepare`: sources, tokenizer, splits, limits."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.checks import check_kind
from lit_pretrain.prepare.decontaminate.config import DecontaminateConfig
from lit_pretrain.prepare.dedup.config import DedupConfig
from lit_pretrain.prepare.engine.config import RayConfig, SlurmConfig
from lit_pretrain.prepare.filters.spec import FilterEntry
from lit_pretrain.prepare.pii.config import PiiConfig
from lit_pretrain.prepare.source import SourceConfig

MAX_CHUNK_TOKENS = 2**29 - 1
"""The chunk header holds byte offsets as uint32: 4 bytes a token and 4 a row must stay below 4 GiB."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """Train a byte-level BPE on the data, or load one."""

    kind: Literal["train", "file"] = "train"
    """train: a byte-level BPE on the training split. file: any tokenizer.json."""
    vocab_size: int = 8192
    """Train only: ids, special tokens included."""
    pattern: Literal["cl100k", "qwen2", "gpt2"] = "cl100k"
    """Train only: the pre-tokenizer's regex, by the name that other tools know it by."""
    sample_bytes: int = 20_000_000
    """Train only: bytes of training text to learn from, drawn over all sources; more costs memory and time and gains little."""
    path: Optional[str] = None
    """File only: a tokenizer.json, or a folder that holds one (a Hugging Face model, a prepared dataset)."""
    bos: Optional[str] = None
    """File only: token that starts a document. Default: as tokenizer_config.json says, else by its usual name."""
    eos: Optional[str] = None
    """File only: token that ends a document. A tokenizer with only one of both uses it for both."""


@dataclass(kw_only=True)
class SplitsConfig:
    """Fractions of the documents held out, by a hash of each document's text: adding text never moves a document to another split."""

    validation: float = 0.01
    """Fraction of documents for validation."""
    test: float = 0.005
    """Fraction of documents for the test."""


@dataclass(kw_only=True)
class PrepareConfig:
    """Raw text to a finished directory of LitData shards."""

    out: str
    """The dataset's directory; made as a whole, at the end."""
    sources: dict[str, SourceConfig]
    """Name -> where it comes from. Each source keeps its own shards, so that mixtures are weighed at training time."""
    filters: list[FilterEntry] = field(default_factory=list)
    """What a document must pass, in this order: presets (gopher, c4, fineweb), our filters, or your own by class path. A source's own
    `filters` replace them."""
    dedup: Optional[DedupConfig] = None
    """Which documents say what others said before. Null: all stay."""
    pii: Optional[PiiConfig] = None
    """Which personal data are replaced; `pii: {}` for all kinds. Null: none."""
    decontaminate: Optional[DecontaminateConfig] = None
    """Evaluation sets that no document may hold. Null: none is checked, and `evaluate` will say so."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    chunk_tokens: int = 8_000_000
    """Most tokens in a chunk file: 16 MB at two bytes a token. A reader drops less than one row per chunk (0.01 % at T = 1024)."""
    max_document_bytes: int = 50_000_000
    """Largest document, in UTF-8 bytes; also bounds the memory."""
    too_large: Literal["truncate", "skip"] = "skip"
    """What to do with a larger one: keep its beginning, or reject it. Counted in the manifest."""
    errors: Literal["replace", "skip"] = "skip"
    """What to do with text that is not UTF-8: replace the bytes by U+FFFD, or reject the document. Counted in the manifest."""
    max_bad_fraction: float = 0.01
    """Rejected records stop the run when they are more than this fraction of a source, as do unread bytes of damaged files. 0: any."""
    seed: int = 0
    """Of the hash that splits documents."""
    keep_rejects: int = 3
    """Documents kept for reading, per source, step and reason, of those that were left out: rejects.jsonl of the dataset."""
    part_bytes: int = 256_000_000
    """A task reads consecutive files of about this size. Each part has chunks of its own."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """What runs the tasks. local: processes of this machine. ray, slurm: clusters, by datatrove's executors. The result is the same."""
    workers: Optional[int] = None
    """Tasks at a time. Default: the processors this process may use. The result does not depend on it."""
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def validate(self) -> None:
        """Checks what the types cannot say.

        Raises:
            UserError: A value is out of range, or a field does not go with its kind.
        """
        from lit_pretrain.prepare.filters.chain import Chain  # numpy, which --help can do without

        if not self.sources:
            raise UserError("sources is empty: name at least one, e.g. `sources: {mine: {kind: text, path: corpus/}}`")
        for name, source in self.sources.items():
            source.validate(name)
            Chain(self.filters_of(name))
        if self.pii is not None:
            self.pii.validate()
        if self.dedup is not None:
            self.dedup.validate()
        if self.decontaminate is not None:
            self.decontaminate.validate()
        kind = self.tokenizer.kind
        fields = ("path", "bos", "eos") if kind == "file" else ("vocab_size", "pattern", "sample_bytes")
        check_kind("tokenizer", self.tokenizer, fields, ("path",) if kind == "file" else (), common=("kind",))
        for label, fraction in (("validation", self.splits.validation), ("test", self.splits.test)):
            if not 0 <= fraction < 1:
                raise UserError(f"splits.{label}={fraction} must be a fraction of the documents: at least 0 and below 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"max_bad_fraction={self.max_bad_fraction} must be a fraction of the records: from 0 to 1")
        held_out = self.splits.validation + self.splits.test
        if held_out >= 1:
            raise UserError(f"splits.validation + splits.test = {held_out} leaves nothing to train on; they must sum to less than 1")
        for label, value, low, high in (
            ("chunk_tokens", self.chunk_tokens, 2, MAX_CHUNK_TOKENS),
            ("max_document_bytes", self.max_document_bytes, 1, 2**31),
            ("workers", self.workers, 1, 100_000),
            ("keep_rejects", self.keep_rejects, 0, 10_000),
            ("part_bytes", self.part_bytes, 1, 2**50),
            ("tokenizer.sample_bytes", self.tokenizer.sample_bytes, 1, 2**40),
            ("tokenizer.vocab_size", self.tokenizer.vocab_size, 261, 2**24),
        ):
            if value is not None and not low <= value <= high:
                why = " (256 bytes, 4 special tokens and at least one merge)" if label == "tokenizer.vocab_size" and value < low else ""
                raise UserError(f"{label}={value} must lie between {low} and {high}{why}")

    def filters_of(self, source: str) -> list[FilterEntry]:
        """The filters of a source: its own, or those of all."""
        own = self.sources[source].filters
        return self.filters if own is None else own

    def identity(self) -> dict[str, Any]:
        """What can change the data: every field but where it goes, who works on it, when it stops, and how a store is reached."""
        fields = dataclasses.asdict(self)
        for name in ("out", "workers", "engine", "ray", "slurm", "keep_rejects", "max_bad_fraction"):
            del fields[name]
        for source in fields["sources"].values():
            del source["storage_options"]  # may hold credentials, and the manifest is for others to read
        return fields
