"""Train a tokenizer on the text that is left, and check the fast encoder against the reference.

Each part writes the documents that may belong to a uniform sample over all sources; the driver
merges these samples and trains a byte-level BPE on the result.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file
from lit_pretrain.prepare.document_store import (
    Document,
    DocumentWriter,
    clean_file,
    read_documents,
)
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.prepare_config import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    PrepareConfig,
    TokenizerConfig,
)
from lit_pretrain.prepare.progress_table import say, show_progress
from lit_pretrain.prepare.stages.compare import Survivors
from lit_pretrain.prepare.stages.encode import unspelt_document
from lit_pretrain.prepare.stages.hold_out import Splitter
from lit_pretrain.tokenizer.byte_level import ALIASES, PATTERNS
from lit_pretrain.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

USUAL_VOCAB_SIZE = 8192
"""Ids of a tokenizer that learns from enough text; they fit uint16, two bytes a token."""
_SLACK = 4
"""How many times the text that the sample needs lies below the threshold, so that enough is left
when deduplication removes most of it.
"""
_DOCUMENTS = 1_000
"""Documents that should lie below the threshold, so that chance does not leave too few of them."""
_EQUALITY_SAMPLE_BYTES = 1_000_000
"""Text of the data itself on which tiktoken must agree with `tokenizers` before it encodes the
rest.
"""


def load_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """Load the tokenizer that the config names; None when one is to be trained.

    Raises:
        UserError: It cannot be read, or has no token that could separate documents.
    """
    if config.kind == "train":
        return None
    assert config.path is not None
    return Tokenizer.load(Path(config.path).expanduser(), bos=config.bos, eos=config.eos)


def train_tokenizer(run: Preparation) -> Tokenizer:
    """Train on a uniform sample of the training split over all sources, once for all attempts."""
    documents = sum(result["funnel"][-1]["documents"] for result in run.clean)
    run.do(
        "sample",
        "sample text for the tokenizer",
        SampleTask(run.config, run.work, sum(run.left), documents, run.begins),
        run.bytes_left(),
    )
    # After the stage, so that the next ones have the same number in every attempt, and an attempt
    # finds what an earlier one has encoded.
    saved = run.work / "tokenizer"
    if (saved / "done").exists():
        return Tokenizer.load(saved)
    texts = _merge_samples(run.config, run.work, len(run.parts))
    if not texts:
        raise UserError(
            "no source holds any training text: every document fell to validation or test"
        )
    size = sum(len(text.encode()) for text in texts)
    with show_progress(f"train a tokenizer on {sum(map(len, texts)):,} characters", size) as (
        advance,
        figures,
    ):
        tokenizer = train_bpe(texts, run.config.tokenizer, advance)
        figures.append(f"{tokenizer.vocab_size:,} ids")
    saved.mkdir(exist_ok=True)
    tokenizer.save(saved)
    write_file(saved / "done", "")
    return tokenizer


def check_encoder(run: Preparation, tokenizer: Tokenizer) -> None:
    """Compare the fast encoder with the reference on the data's own text, and say what it lacks.

    Raises:
        UserError: It cannot spell a part of the text.
    """
    texts: list[str] = []
    for name in run.inputs:
        size, share = 0, _EQUALITY_SAMPLE_BYTES // len(run.inputs)
        for document in read_documents(clean_file(run.work, run.parts_of(name)[0])):
            texts.append(document.text[:_EQUALITY_SAMPLE_BYTES])
            size += len(document.utf8)
            if size >= share:
                break
    tokenizer.check_equality(texts)
    if tokenizer.separator_note is not None:
        say(tokenizer.separator_note)
    if tokenizer.backend != "tiktoken" and not run.config.tokenizer.allow_unspelt:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            if unspelt := tokenizer.unspelt_bytes(text, ids):
                raise unspelt_document("the data", text, unspelt)
    if tokenizer.fallback_reason is not None:
        say(
            "encoding with `tokenizers`, several times slower than tiktoken, because"
            f" {tokenizer.fallback_reason}"
        )


class SampleResult(TypedDict):
    """The result of a SampleTask, whose findings all lie in its file."""


@dataclass(frozen=True)
class SampleTask:
    """Draw the documents of one part that may belong to the sample; holds at most its size."""

    config: PrepareConfig
    work: Path
    total_bytes: int
    """Bytes of all parts. Both totals decide which share of the keys may count."""
    total_documents: int
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> SampleResult:
        """Write sample/<number>.parquet, with the keys as origins."""
        limit = self.config.tokenizer.sample_bytes
        share = max(
            _SLACK * limit / max(1, self.total_bytes), _DOCUMENTS / max(1, self.total_documents)
        )
        # The same keys decide the splits, and the lowest of them are held out.
        splits = self.config.splits
        below = round(min(1.0, splits.test + splits.validation + share) * 2**64)
        splitter = Splitter.load(self.config, self.work)
        sample = TokenizerSample(limit)
        for document in Survivors(self.config.dedup, self.work, number, self.begins[number]):
            for key, split, piece in splitter.pieces(document):
                size = len(piece.utf8)
                if key < below and split == "train":
                    sample.offer(key, piece.text, size)
                advance(size)
        with DocumentWriter(_sample_file(self.work, number)) as writer:
            for key, text in sample.documents():
                writer.add(Document(text, str(key)))
        return SampleResult()


class TokenizerSample:
    """Keep a uniform sample of bounded size: the documents with the smallest keys.

    The order in which they come makes no difference.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # (-key, -number, bytes, text): the largest key comes first.
        self._heap: list[tuple[int, int, int, str]] = []
        self._bytes = 0

    def offer(self, key: int, text: str, size: int) -> None:
        """Take a document, and drop those with the largest keys while the rest suffices."""
        # The heap holds enough already, all of it with smaller keys.
        if self._bytes >= self._max_bytes and key > -self._heap[0][0]:
            return
        heapq.heappush(self._heap, (-key, -len(self._heap), size, text))
        self._bytes += size
        while self._bytes - self._heap[0][2] >= self._max_bytes:
            self._bytes -= heapq.heappop(self._heap)[2]

    def documents(self) -> Iterator[tuple[int, str]]:
        """Yield (key, text) in the order of the keys."""
        for key, _, _, text in sorted(self._heap, key=lambda entry: (-entry[0], entry[3])):
            yield -key, text

    def texts(self) -> list[str]:
        """List the documents in the order of their keys, and cut the last one at the limit."""
        texts, left = [], self._max_bytes
        for _, text in self.documents():
            size = len(text.encode())
            texts.append(text if size <= left else text.encode()[:left].decode(errors="ignore"))
            left -= size
        return texts


def _merge_samples(config: PrepareConfig, work: Path, parts: int) -> list[str]:
    """Collect the documents with the smallest keys of all parts."""
    sample = TokenizerSample(config.tokenizer.sample_bytes)
    for number in range(parts):
        for document in read_documents(_sample_file(work, number)):
            sample.offer(int(document.origin), document.text, len(document.utf8))
    return sample.texts()


def _sample_file(work: Path, number: int) -> Path:
    """Name the file with the sample of a part."""
    return work / "sample" / f"{number:05d}.parquet"


def train_bpe(
    texts: Sequence[str],
    config: TokenizerConfig,
    advance: Callable[[int], None] = lambda done: None,
) -> Tokenizer:
    """Train a byte-level BPE; equal texts give the same tokenizer.json on any number of threads.

    A pair must occur twice to be merged, so a vocabulary that chance pairs would fill is refused.

    Args:
        texts: Training text.
        config: Size, pattern or regex, special tokens.
        advance: Takes the bytes of each text that the trainer has read.

    Raises:
        UserError: The texts do not hold enough repeated pairs for the vocabulary.
    """
    if config.regex is not None:
        say(
            "tokenizer.regex is none of the named patterns: encoding is several times slower, and"
            " converters to GGUF refuse the tokenizer"
        )
    wanted = USUAL_VOCAB_SIZE if config.vocab_size is None else config.vocab_size
    tokenizer = _train(_report_progress(texts, advance), config, wanted)
    if (size := tokenizer.get_vocab_size(with_added_tokens=True)) != wanted:
        if config.vocab_size is not None:
            raise UserError(
                f"tokenizer.vocab_size={wanted} is too large for this text: it yields {size}"
                f" tokens, then no pair occurs twice. Set vocab_size to at most {size} (half of"
                " that would be wiser), raise tokenizer.sample_bytes, or add text."
            )
        least = 256 + len(SPECIAL_TOKENS) + len(config.special_tokens or ())
        half = max(least, size // 2)
        say(
            f"tokenizer.vocab_size is {half:,}: half of the tokens that this text yields, and not"
            f" {wanted:,}"
        )
        tokenizer = _train(texts, config, half)
    return Tokenizer(tokenizer.to_str(pretty=True), bos=END_OF_TEXT, eos=END_OF_TEXT)


def _report_progress(texts: Sequence[str], advance: Callable[[int], None]) -> Iterator[str]:
    """Yield the texts, and report the bytes of each once the trainer has taken it."""
    for text in texts:
        yield text
        advance(len(text.encode()))


def _train(texts: Iterable[str], config: TokenizerConfig, vocab_size: int) -> tokenizers.Tokenizer:
    """Learn at most `vocab_size` tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    if config.pattern == "gpt2":  # its regex is ByteLevel's own, and published files say it so
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        regex = config.regex or PATTERNS[ALIASES.get(config.pattern, config.pattern)]
        split = pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *(config.special_tokens or ())],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
