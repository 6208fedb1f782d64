"""The config of `prepare`: sources, what happens to their text, tokenizer, splits and limits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.dedup.dedup_config import DedupConfig
from lit_pretrain.prepare.engine.task_stage import RayConfig, SlurmConfig
from lit_pretrain.prepare.filters.filter_spec import FilterEntry
from lit_pretrain.prepare.pii.redact import PiiConfig
from lit_pretrain.redaction import redact

TEXT_FIELDS = ("text", "url", "id", "language", "date")
"""Our names of the fields that a source may have for a document."""
COMMON_SOURCE_FIELDS = ("kind", "filters", "licence", "origin")
"""Fields of `SourceConfig` that go with every kind."""

_REGEX_PROBE = "Words, 12 numbers; and\n\tlines of x = f(y)!"
"""Text that the regex of a tokenizer must cut into words."""


@dataclass(kw_only=True)
class SourceConfig:
    """Where the text of one source lies, and how to read it.

    Documents of a source keep their order: files by name, rows as they stand.
    """

    kind: str
    """embedded: the Python standard library, needs no path. text: plain files and Markdown. html:
    pages, their main text is extracted. jsonl: one JSON object a line. parquet: tables. dataset: a
    Hugging Face dataset, saved to disk or on the hub. warc: WARC or WET files, as Common Crawl has
    them. Files ending in .gz, .zst or .bz2 are unpacked as they are read. Or the dotted path of a
    reader of your own, a subclass of lit_pretrain.prepare.read.FileReader.
    """
    path: str | list[str] | None = None
    """A file, or a directory that is searched with `glob`, or an s3:// address of either, or the
    http(s):// address of a file, or a list of these.
    """
    glob: str | None = None
    """Which files of the directory, e.g. "**/*.rst". Default: by kind, those ending in .txt or .md,
    .html or .htm, .jsonl, .parquet, .arrow, .warc or .wet (packed or not).
    """
    part: Literal["code", "prose", "tests"] | None = None
    """Embedded only. code: modules. prose: their docstrings and the language reference. tests:
    the test packages.
    """
    fields: dict[str, str | list[str]] = field(default_factory=dict)
    """Jsonl, parquet and dataset: our name -> the field or column that holds it, for text (default
    "text"), url, id, language and date. Dots reach into nested fields (meta.url). A list for text
    joins several by a blank line: {text: [question, answer]}. With `id`, a record whose id occurred
    before in the same file is rejected; over files and parts, the first document that the filters
    kept stays.
    """
    separator: str | None = None
    """Text only: what separates documents within a file (e.g. "\\n\\n"). Default: each file is
    one document.
    """
    hub: str | None = None
    """Dataset only, instead of `path`: its name on the Hugging Face hub. Needs the package
    `datasets`.
    """
    subset: str | None = None
    """Dataset on the hub only: one of its configurations."""
    split: str | None = None
    """Dataset only: one of its splits. A dataset on the hub needs it, and one on disk that was
    saved with several.
    """
    revision: str | None = None
    """Dataset on the hub only: branch, tag or commit. A commit makes the preparation repeatable."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """For s3:// only: arguments of boto3's client, e.g. endpoint_url. The manifest does not record
    them.
    """
    filters: list[FilterEntry] | None = None
    """Filters of this source, in place of those of all sources; [] for none."""
    licence: str | None = None
    """Licence of the text, for the manifest. SPDX names are best."""
    origin: str | None = None
    """Where the text came from, in words, for the manifest."""

    @property
    def paths(self) -> list[str]:
        """List the entries of `path`."""
        if self.path is None:
            return []
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def text_fields(self) -> list[str]:
        """List the fields whose values make the text."""
        names = self.fields.get("text", "text")
        return [names] if isinstance(names, str) else list(names)

    @property
    def other_fields(self) -> dict[str, str]:
        """Map our names to theirs, for all fields but the text."""
        return {
            ours: theirs
            for ours, theirs in self.fields.items()
            if ours != "text" and isinstance(theirs, str)
        }

    @property
    def has_ids(self) -> bool:
        """Tell whether `fields` maps the ids of documents."""
        return "id" in self.fields

    def validate(self, name: str) -> None:
        """Check what the types cannot say.

        Args:
            name: Name of the source, which is also a directory's name and part of metric names.

        Raises:
            UserError: A field does not go with the kind, or is missing; or the name cannot be used.
        """
        from lit_pretrain.prepare.read.reader import reader_class  # it imports this file

        _check_name(name)
        where = f"sources.{name}"
        reader_class(self.kind, where).validate_source(where, self)
        if self.separator == "":
            raise UserError(
                f"{where}.separator is empty; give the text between documents, or leave it out"
            )
        if self.path is not None and not all(self.paths):
            raise UserError(
                f"{where}.path={self.path!r} names nothing; give a file, a directory or an address"
            )
        if self.path == []:
            raise UserError(
                f"{where}.path is an empty list; name at least one file, directory or address"
            )
        self._check_fields(where)

    def _check_fields(self, where: str) -> None:
        """Refuse a name that is not one of ours, and a field without a name of theirs."""
        for ours, theirs in self.fields.items():
            if ours not in TEXT_FIELDS:
                raise UserError(
                    f"{where}.fields.{ours} is not one of ours: {', '.join(TEXT_FIELDS)} (our name"
                    " comes first, theirs second)"
                )
            if not theirs or (not isinstance(theirs, str) and not all(theirs)):
                raise UserError(
                    f"{where}.fields.{ours}={theirs!r} is empty; name the source's field"
                )
            if ours != "text" and not isinstance(theirs, str):
                raise UserError(
                    f"{where}.fields.{ours}={theirs!r} is a list; only text is made of several"
                    " fields"
                )


LONGEST_SOURCE_NAME = 200


def _check_name(name: str) -> None:
    """Refuse a name that cannot be a directory's name and part of metric names."""
    if (
        not name
        or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in name)
        or name.startswith(".")
    ):
        raise UserError(
            f"sources: the name {name!r} must consist of ASCII letters, digits, '_', '-' and '.',"
            " and not start with '.'"
        )
    if len(name) > LONGEST_SOURCE_NAME:
        raise UserError(
            f"sources: the name {name!r} has {len(name)} characters; {LONGEST_SOURCE_NAME} are"
            " allowed, because files are named by it"
        )


END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|pad|>")
"""Ids 0 to 3 of every trained tokenizer: the document separator (bos and eos), the two ends of a
chat turn, and padding. The last three are unused in pretraining; having their rows from the start
spares chat training a resize.
"""
MAX_CHUNK_TOKENS = 2**29 - 1
"""The chunk header holds byte offsets as uint32: 4 bytes a token and 4 a row must stay below 4
GiB.
"""


@dataclass(kw_only=True)
class TokenizerConfig:
    """Train a byte-level BPE on the data, or load one."""

    kind: Literal["train", "file"] = "train"
    """train: a byte-level BPE on the training split. file: any tokenizer.json."""
    vocab_size: int | None = None
    """Train only: number of ids, special tokens included. Default: 8192, or half of what the text
    yields if that is less.
    """
    pattern: Literal["cl100k", "llama3", "qwen2", "gpt2"] = "cl100k"
    """Train only: the pre-tokenizer's regex, by the name that other tools use. cl100k and llama3
    are the same regex.
    """
    regex: str | None = None
    """Train only, instead of `pattern`: a regex of your own (Oniguruma's syntax). Its matches, and
    the text between them, are the words that no token crosses. Encoding is then several times
    slower, and converters to GGUF, which know only the named ones, refuse the tokenizer.
    """
    special_tokens: list[str] | None = None
    """Train only: further special tokens, with ids from 4 on. Ids 0 to 3 are <|endoftext|>,
    <|im_start|>, <|im_end|> and <|pad|>.
    """
    sample_bytes: int = 20_000_000
    """Train only: bytes of training text to learn from, sampled over all sources. More text
    costs memory and time and gains little.
    """
    path: str | None = None
    """File only: a tokenizer.json, or a folder that holds one (a Hugging Face model, a prepared
    dataset).
    """
    bos: str | None = None
    """File only: token that starts a document. Default: as tokenizer_config.json says, else by
    its usual name.
    """
    eos: str | None = None
    """File only: token that ends a document. A tokenizer with only one of both uses it for both."""
    allow_unspelt: bool = False
    """File only: keep documents of which the tokenizer cannot spell a part, because its vocabulary
    lacks some bytes, and count them. They are refused otherwise: bits per byte would be wrong.
    """

    def validate(self) -> None:
        """Check what the types cannot say.

        Raises:
            UserError: A value is out of range, a field does not go with its kind, a special token
                is empty or named twice, or the regex is not one.
        """
        train = ("vocab_size", "pattern", "regex", "special_tokens", "sample_bytes")
        file = self.kind == "file"
        check_kind(
            "tokenizer",
            self,
            ("path", "bos", "eos", "allow_unspelt") if file else train,
            ("path",) if file else (),
            common=("kind",),
        )
        for position, token in enumerate(self.special_tokens or ()):
            where = f"tokenizer.special_tokens[{position}]={token!r}"
            if not token:
                raise UserError(
                    f"{where} is empty; a special token needs a spelling, such as <|tool|>"
                )
            if token in SPECIAL_TOKENS:
                raise UserError(
                    f"{where} is there already: every trained tokenizer has"
                    f" {', '.join(SPECIAL_TOKENS)}. Remove it."
                )
            if token in (self.special_tokens or ())[:position]:
                raise UserError(f"{where} is named twice; remove one of them")
        specials = len(SPECIAL_TOKENS) + len(self.special_tokens or ())
        for label, value, low, high in (
            ("sample_bytes", self.sample_bytes, 1, 2**40),
            ("vocab_size", self.vocab_size, 257 + specials, 2**24),
        ):
            if value is not None and not low <= value <= high:
                why = (
                    f" (256 bytes, {specials} special tokens and at least one merge)"
                    if label == "vocab_size" and value < low
                    else ""
                )
                raise UserError(f"tokenizer.{label}={value} must lie between {low} and {high}{why}")
        if self.regex is not None:
            if self.pattern != "cl100k":
                raise UserError(
                    f"tokenizer.regex and tokenizer.pattern={self.pattern} exclude each other; give"
                    " one of them"
                )
            _check_regex(self.regex)


@dataclass(kw_only=True)
class SplitsConfig:
    """Shares of each source's bytes that are held out.

    A hash of each document's text chooses, so that adding text moves no document to another split.
    Where few or very unequal documents give a split less than a quarter of its share, or more than
    four times as much, documents are taken up to the share, and the end of one if all are too
    large.
    """

    validation: float = 0.01
    """Share of the bytes for validation."""
    test: float = 0.005
    """Share of the bytes for the test."""


@dataclass(kw_only=True)
class PrepareConfig:
    """How to turn raw text into a directory of LitData shards."""

    out: str
    """The dataset's directory; it appears whole, at the end."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Name -> where the text lies. Each source has its own shards, so that a mixture is weighted at
    training time.
    """
    filters: list[FilterEntry] = field(default_factory=list)
    """Filters that a document must pass, in this order: presets (gopher, c4, fineweb, and
    documentation for manuals, Markdown and wikis), our filters, or your own by class path. A
    source's own `filters` replace them.
    """
    dedup: DedupConfig | None = None
    """Which documents repeat what earlier ones say, and are removed. Null: all stay."""
    pii: PiiConfig | None = None
    """Which personal data to replace; `pii: {}` for all kinds. Null: none."""
    decontaminate: DecontaminateConfig | None = None
    """Evaluation sets that no document may contain. Null: no set is checked, and `evaluate` will
    say so.
    """
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    chunk_tokens: int = 8_000_000
    """Most tokens in a chunk file: 16 MB at two bytes a token. A reader drops less than one row
    per chunk (0.01 % at T = 1024).
    """
    max_document_bytes: int = 50_000_000
    """Largest document, in UTF-8 bytes; also bounds the memory."""
    too_large: Literal["truncate", "skip"] = "skip"
    """What to do with a larger one: keep its beginning, or reject it. The manifest counts them."""
    errors: Literal["replace", "skip"] = "skip"
    """What to do with text that is not UTF-8: replace the bytes by U+FFFD, or reject the
    document. The manifest counts them.
    """
    max_bad_fraction: float = 0.01
    """Largest fraction of a source that may be rejected, in records or in unread bytes of damaged
    files; more stops the run. 0: none.
    """
    allow_empty: bool = False
    """Go on without the sources of which no document is left, and say which they are. Otherwise
    they are refused, all at once.
    """
    seed: int = 0
    """Seed of the hash that splits documents."""
    keep_rejects: int = 3
    """How many of the rejected documents to keep, per source, step and reason, for a person to
    read: rejects.jsonl of the dataset.
    """
    part_bytes: int = 256_000_000
    """Size of a part: the consecutive files that a task reads. Each part has its own chunks."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Where the tasks run. local: processes of this machine. ray, slurm: clusters, by datatrove's
    executors. The result is the same.
    """
    workers: int | None = None
    """Tasks at a time; the result does not depend on it. Default: the processors that this process
    may use.
    """
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def validate(self) -> None:
        """Check what the types cannot say.

        Raises:
            UserError: A value is out of range, or a field does not go with its kind.
        """
        from lit_pretrain.prepare.filters.filter import Chain  # numpy, which --help can do without

        refuse_null(self)
        if not self.sources:
            raise UserError(
                "sources is empty: name at least one, e.g. `sources: {mine: {kind: text, path:"
                " corpus/}}`"
            )
        for name, source in self.sources.items():
            source.validate(name)
            Chain(self.filters_of(name))
        if self.pii is not None:
            self.pii.validate()
        if self.dedup is not None:
            self.dedup.validate()
        if self.decontaminate is not None:
            self.decontaminate.validate()
        self.tokenizer.validate()
        for label, fraction in (("validation", self.splits.validation), ("test", self.splits.test)):
            if not 0 <= fraction < 1:
                raise UserError(
                    f"splits.{label}={fraction} must be a share of the text: at least 0 and below 1"
                )
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(
                f"max_bad_fraction={self.max_bad_fraction} must be a fraction of the records: from"
                " 0 to 1"
            )
        held_out = self.splits.validation + self.splits.test
        if held_out >= 1:
            raise UserError(
                f"splits.validation + splits.test = {held_out} leaves nothing to train on; they"
                " must sum to less than 1"
            )
        for label, value, low, high in (
            ("chunk_tokens", self.chunk_tokens, 2, MAX_CHUNK_TOKENS),
            ("max_document_bytes", self.max_document_bytes, 1, 2**31),
            ("workers", self.workers, 1, 100_000),
            ("keep_rejects", self.keep_rejects, 0, 10_000),
            ("part_bytes", self.part_bytes, 1, 2**50),
        ):
            if value is not None and not low <= value <= high:
                raise UserError(f"{label}={value} must lie between {low} and {high}")

    def filters_of(self, source: str) -> list[FilterEntry]:
        """List the filters of a source: its own, or those of all sources."""
        own = self.sources[source].filters
        return self.filters if own is None else own

    def identity(self) -> dict[str, Any]:
        """List the fields that can change the data.

        These are all but where it goes, who works on it, when it stops, and how to reach a store.
        """
        fields = dataclasses.asdict(self)
        for name in (
            "out",
            "workers",
            "engine",
            "ray",
            "slurm",
            "keep_rejects",
            "max_bad_fraction",
            "allow_empty",
        ):
            del fields[name]
        for source in fields["sources"].values():
            # It may hold credentials, and the manifest is for others to read.
            del source["storage_options"]
        if not self.tokenizer.allow_unspelt:  # datasets that are older than the field fit it
            del fields["tokenizer"]["allow_unspelt"]
        redacted: dict[str, Any] = redact(fields)
        return redacted


def _check_regex(pattern: str) -> None:
    """Refuse a regex that `tokenizers` cannot compile, and one that finds nothing."""
    import regex
    import tokenizers
    from tokenizers import pre_tokenizers

    try:
        compiled = tokenizers.Regex(pattern)
    except Exception as error:  # `tokenizers` raises a bare Exception, without the position
        place = ""
        try:
            regex.compile(pattern)
        except regex.error as found:
            if found.pos is not None:
                place = f" at position {found.pos}: {pattern[: found.pos]}>>>{pattern[found.pos :]}"
        raise UserError(
            f"tokenizer.regex={pattern!r} is not a regex: {error}{place}. Correct it, or name a"
            " tokenizer.pattern."
        ) from None
    if len(pre_tokenizers.Split(compiled, "isolated").pre_tokenize_str(_REGEX_PROBE)) == 1:
        raise UserError(
            f"tokenizer.regex={pattern!r} does not cut {_REGEX_PROBE!r} into words: tokens would"
            " span whole documents. Correct it, or name a tokenizer.pattern."
        )


def refuse_null(config: Any, where: str = "") -> None:
    """Refuse a field that is null and may not be, in a config and those within it.

    The parser lets an empty entry of a file through.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if value is None and type(None) not in get_args(hint):
            raise UserError(
                f"{where}{name} is empty (null): give it a value, or leave it out for its default"
            )
        inner = value if isinstance(value, Mapping) else {"": value}
        for key, each in inner.items():
            if dataclasses.is_dataclass(each):
                refuse_null(each, f"{where}{name}.{key}." if key else f"{where}{name}.")


def check_kind(
    where: str,
    config: Any,
    allowed: tuple[str, ...],
    needed: tuple[str, ...],
    *,
    common: tuple[str, ...],
) -> None:
    """Refuse a field that is set but belongs to another kind, and one that is missing."""
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        default = (
            spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        )
        if spec.name not in (*allowed, *common) and value != default:
            raise UserError(
                f"{where}.{spec.name}={value!r} has no meaning for kind {config.kind}, which takes"
                f" {', '.join((*allowed, *common))}"
            )
        if spec.name in needed and value is None:
            raise UserError(f"{where} is of kind {config.kind} and needs `{spec.name}`")
