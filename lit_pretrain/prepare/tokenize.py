"""Tokenizing: training a byte-level BPE, and encoding documents."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.prepare_config import END_OF_TEXT, SPECIAL_TOKENS, TokenizerConfig
from lit_pretrain.prepare.progress_table import say
from lit_pretrain.tokenizer.byte_level import ALIASES, PATTERNS
from lit_pretrain.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

USUAL_VOCAB_SIZE = 8192
"""Ids of a tokenizer that learns from enough text; they fit uint16, two bytes a token."""
_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 4096


def train_bpe(
    texts: Sequence[str],
    config: TokenizerConfig,
    advance: Callable[[int], None] = lambda done: None,
) -> Tokenizer:
    """Trains a byte-level BPE; the same texts give the same tokenizer.json on any number of
    threads.

    A pair must occur twice to be merged: a vocabulary padded with chance pairs is refused rather
    than made.

    Args:
        texts: What to learn from.
        config: Size, pattern or regex, special tokens.
        advance: Told the bytes of each text that is taken.

    Raises:
        UserError: The texts do not hold enough repeated pairs for the vocabulary.
    """
    if config.regex is not None:
        say(
            "tokenizer.regex is none of the named patterns: encoding is several times slower, and"
            " converters to GGUF refuse the tokenizer"
        )
    wanted = USUAL_VOCAB_SIZE if config.vocab_size is None else config.vocab_size
    tokenizer = _train(_counted(texts, advance), config, wanted)
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


def _counted(texts: Sequence[str], advance: Callable[[int], None]) -> Iterator[str]:
    """The texts, their bytes told as they are taken."""
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


def load_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that the config names, None when one is to be trained.

    Raises:
        UserError: It cannot be read, or has no token that could separate documents.
    """
    if config.kind == "train":
        return None
    assert config.path is not None
    return Tokenizer.load(Path(config.path).expanduser(), bos=config.bos, eos=config.eos)


@dataclass(frozen=True)
class Encoded:
    """A document as it will be stored."""

    document: Document
    ids: npt.NDArray[np.generic]
    """[tokens], of the stored dtype: bos, the text, and eos where it is another token."""


def encode(
    documents: Iterable[Document], tokenizer: Tokenizer, dtype: npt.DTypeLike
) -> Generator[Encoded]:
    """Encodes documents in their order, on this thread; holds about 1 MiB of text.

    Raises:
        RuntimeError: The tokens of a document do not spell its bytes.
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
                if lengths is not None and int(lengths[ids].sum()) != len(document.utf8):
                    raise RuntimeError(
                        f"{document.origin}: its tokens do not spell its {len(document.utf8)}"
                        " bytes; please report this text"
                    )
                yield Encoded(document, np.concatenate([head, ids.astype(dtype), tail]))


def _batches(documents: Iterable[Document]) -> Generator[list[Document]]:
    """Groups documents by size, so that a task is neither tiny nor huge."""
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
    """Keeps `tokenizers`, where it is the fallback, to the thread that calls it: its own pool
    ignores `workers`.
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
