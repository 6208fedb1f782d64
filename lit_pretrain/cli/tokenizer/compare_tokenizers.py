"""Compare tokenizers on samples of text.

A tokenizer comes from a file, a folder, or is one of tiktoken's public encodings by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer
from lit_pretrain.tokenizer.tokenizer_files import TOKENIZER_FILENAME

_VISIBLE = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}


@dataclass(frozen=True)
class Contestant:
    """A tokenizer that is compared."""

    name: str
    """Short, and different from the others' names."""
    path: str
    """As it was given."""
    vocab_size: int
    """Highest id + 1: the rows of an embedding."""
    pattern: str | None
    """Name of its regex, where it is known."""
    encoder: str
    """tiktoken or tokenizers."""
    special: dict[int, str]
    """Special tokens."""
    spellings: dict[int, str]
    """Every token, special ones included, as its file spells it."""
    pieces: dict[int, bytes] | None
    """Bytes of every ordinary token; None for lossy tokenizers, whose tokens stand for no bytes."""
    encode: Callable[[str], npt.NDArray[np.int32]]
    """Ids of a text, without separators."""

    def lengths(self) -> npt.NDArray[np.int64] | None:
        """Return the bytes of every id, [vocab_size]; 0 for special tokens and unused ids."""
        return (
            None
            if self.pieces is None
            else _table(
                self.vocab_size, {index: len(piece) for index, piece in self.pieces.items()}
            )
        )

    def cut(self) -> npt.NDArray[np.int64] | None:
        """Mark every id whose bytes are not whole characters with 1, [vocab_size]."""
        return (
            None
            if self.pieces is None
            else _table(
                self.vocab_size, {i: 1 for i, piece in self.pieces.items() if _whole(piece) is None}
            )
        )

    def characters(self) -> frozenset[str] | None:
        """Return the characters that occur whole in at least one token."""
        return (
            None
            if self.pieces is None
            else frozenset().union(*(_whole(piece) or "" for piece in self.pieces.values()))
        )

    def show(self, index: int) -> str:
        """Write a token for reading, with visible white space and escapes for broken bytes."""
        piece = (self.pieces or {}).get(index)
        text = (
            self.spellings.get(index, "")
            if piece is None
            else piece.decode("utf-8", errors="backslashreplace")
        )
        return "".join(
            _VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode())
            for c in text
        )


def find_contestant(paths: list[str], own: Tokenizer | None = None) -> list[Contestant]:
    """Load tokenizers, the first of which may be loaded already.

    Raises:
        UserError: One cannot be loaded.
    """
    found: list[Contestant] = []
    names: set[str] = set()
    for number, path in enumerate(paths):
        short = name = _short(path)
        count = 1
        while name in names:
            count += 1
            name = f"{short}#{count}"
        names.add(name)
        if own is None or number > 0:
            if not Path(path).expanduser().exists() and (public := _public(path, name)):
                found.append(public)
                continue
            tokenizer = Tokenizer.load(Path(path).expanduser())
        else:
            tokenizer = own
        found.append(_from_file(tokenizer, path, name))
    return found


def _from_file(tokenizer: Tokenizer, path: str, name: str) -> Contestant:
    pieces: dict[int, bytes] | None
    try:
        pieces = tokenizer.pieces()
    except UserError:
        pieces = None
    return Contestant(
        name=name,
        path=path,
        vocab_size=tokenizer.vocab_size,
        pattern=tokenizer.pattern_name,
        encoder=tokenizer.backend,
        special={index: token for token, index in tokenizer.special_tokens.items()},
        spellings=tokenizer.spellings(),
        pieces=pieces,
        encode=lambda text: tokenizer.encode_batch([text])[0],
    )


def _public(path: str, name: str) -> Contestant | None:
    """Load one of tiktoken's encodings; None if it has none of that name."""
    import tiktoken

    if path not in tiktoken.list_encoding_names():
        return None
    try:
        encoding = tiktoken.get_encoding(path)
    except Exception as error:  # whatever the network does: it is fetched when it is first used
        raise UserError(
            f"{path} is one of tiktoken's public encodings, which tiktoken downloads when it is"
            f" first used, and that failed ({error}). Run this where there is a network, set"
            " TIKTOKEN_CACHE_DIR to a folder that was filled elsewhere, or give the path of a"
            f" {TOKENIZER_FILENAME}."
        ) from None
    special = {encoding.encode_single_token(token): token for token in encoding.special_tokens_set}
    pieces = {}
    for index in range(encoding.n_vocab):
        try:
            if index not in special:
                pieces[index] = encoding.decode_single_token_bytes(index)
        except KeyError:  # an id without a token
            continue
    return Contestant(
        name=name,
        path=path,
        vocab_size=encoding.n_vocab,
        pattern=None,
        encoder="tiktoken",
        special=special,
        spellings={
            index: piece.decode("utf-8", errors="backslashreplace")
            for index, piece in pieces.items()
        }
        | special,
        pieces=pieces,
        encode=lambda text: np.asarray(
            encoding.encode(text, disallowed_special=()), dtype=np.int32
        ),
    )


def _short(path: str) -> str:
    """Shorten a path to a name that fits a column: its last folder."""
    where = Path(path).expanduser().absolute()
    return (
        where.parent.name if where.name == TOKENIZER_FILENAME else where.name.removesuffix(".json")
    )[-16:]


def _whole(piece: bytes) -> str | None:
    """Decode a token; None where it cuts a character."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _table(size: int, values: dict[int, int]) -> npt.NDArray[np.int64]:
    table = np.zeros(size, dtype=np.int64)
    table[list(values)] = list(values.values())
    return table


# ---------------------------------------------------------------- measurement


RARE = 10
"""An id seen fewer times than this has hardly been trained."""
_MOST_FREQUENT = (100, 1_000, 10_000, 100_000)
_EXAMPLES = 20
_EXCERPT_CHARACTERS = 160
PROBES = {
    "digits": "0123456789 1000000 3.14159 2025-01-31",
    "white space": "a  b\n\n    indented\n\tx\t\ty\n" + " " * 16 + "end",
}
"""Texts that show at a glance how a tokenizer treats numbers and indentation."""


class SourceFigures(TypedDict):
    """How a tokenizer encodes the sample of one source; shares are None for lossy tokenizers."""

    tokens: int
    bytes_per_token: float | None
    one_byte_share: float | None
    cut_character_share: float | None
    documents_with_cut_characters: int | None


class OutsideReport(TypedDict):
    """Characters that no token spells whole."""

    distinct: int
    of: int
    share: float
    examples: list[str]


class UseReport(TypedDict):
    """Which ids are used, and how the tokens share out among them."""

    where: str
    tokens: int
    ordinary_ids: int
    unused: int
    unused_ids: list[int]
    unused_examples: list[str]
    rare: int
    special_tokens_unused: list[str]
    ids_without_token: int
    coverage: dict[str, float]
    ids_for_99_percent: int | None


def compare_tokenizers(
    contestants: Sequence[Contestant], samples: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, SourceFigures]]:
    """Encode the samples with every tokenizer.

    Args:
        contestants: Tokenizers.
        samples: Source -> texts.

    Returns:
        Tokenizer -> source -> figures, and "all" for the sum over the sources. Separators are not
        counted. Shares are of the bytes that the tokens stand for, None for lossy tokenizers.
    """
    return {contestant.name: _figures(contestant, samples) for contestant in contestants}


def _figures(
    contestant: Contestant, samples: Mapping[str, Sequence[str]]
) -> dict[str, SourceFigures]:
    lengths, cut = contestant.lengths(), contestant.cut()
    by_source: dict[str, Counter[str]] = {}
    for source, texts in samples.items():
        sums = by_source[source] = Counter(
            documents=len(texts), bytes=0, tokens=0, spelt=0, one_byte=0, cut=0, documents_cut=0
        )
        for text in texts:
            ids = contestant.encode(text)
            sums["bytes"] += len(text.encode())
            sums["tokens"] += len(ids)
            if lengths is not None and cut is not None:
                sizes = lengths[ids]
                in_pieces = int(sizes[cut[ids] == 1].sum())
                sums["spelt"] += int(sizes.sum())
                sums["one_byte"] += int((sizes == 1).sum())
                sums["cut"] += in_pieces
                sums["documents_cut"] += in_pieces > 0
    everything: Counter[str] = Counter()
    for sums in by_source.values():
        everything.update(sums)
    return {
        source: {
            "tokens": sums["tokens"],
            "bytes_per_token": sums["bytes"] / sums["tokens"] if sums["tokens"] else None,
            "one_byte_share": sums["one_byte"] / sums["spelt"] if sums["spelt"] else None,
            "cut_character_share": sums["cut"] / sums["spelt"] if sums["spelt"] else None,
            "documents_with_cut_characters": sums["documents_cut"] if sums["spelt"] else None,
        }
        for source, sums in {**by_source, "all": everything}.items()
    }


def characters_outside(
    contestant: Contestant, samples: Mapping[str, Sequence[str]]
) -> OutsideReport | None:
    """Find the characters that no token spells whole, the most frequent first.

    Lossy tokenizers give None: their tokens stand for no characters.
    """
    known = contestant.characters()
    if known is None:
        return None
    counts: Counter[str] = Counter()
    for texts in samples.values():
        for text in texts:
            counts.update(text)
    outside = sorted(
        ((count, character) for character, count in counts.items() if character not in known),
        key=lambda e: (-e[0], e[1]),
    )
    return {
        "distinct": len(outside),
        "of": len(counts),
        "share": sum(count for count, _ in outside) / max(1, counts.total()),
        "examples": [character for _, character in outside[:_EXAMPLES]],
    }


def count(contestant: Contestant, samples: Mapping[str, Sequence[str]]) -> npt.NDArray[np.int64]:
    """Count how often each id occurs in the samples, [vocab_size]."""
    counts = np.zeros(contestant.vocab_size, dtype=np.int64)
    for texts in samples.values():
        for text in texts:
            counts += np.bincount(contestant.encode(text), minlength=contestant.vocab_size)
    return counts


def use(contestant: Contestant, counts: npt.NDArray[np.int64], *, where: str) -> UseReport:
    """Find which ids are used, and how the tokens share out among them.

    Args:
        contestant: The tokenizer.
        counts: How often each id occurs, [vocab_size].
        where: The text that was counted, for the report.
    """
    ordinary = np.array(
        sorted(contestant.spellings.keys() - contestant.special.keys()), dtype=np.int64
    )
    unused = ordinary[counts[ordinary] == 0]
    total = int(counts.sum())
    running = np.cumsum(np.sort(counts)[::-1])
    # From the whole list, not its beginning: the first ids are bytes, the last ones the merges that
    # the data could spare.
    shown = unused[np.linspace(0, len(unused) - 1, min(_EXAMPLES, len(unused))).astype(np.int64)]
    return {
        "where": where,
        "tokens": total,
        "ordinary_ids": len(ordinary),
        "unused": len(unused),
        "unused_ids": unused.tolist(),
        "unused_examples": [contestant.show(index) for index in shown.tolist()],
        "rare": int(np.count_nonzero((counts[ordinary] > 0) & (counts[ordinary] < RARE))),
        "special_tokens_unused": [
            token for index, token in sorted(contestant.special.items()) if counts[index] == 0
        ],
        "ids_without_token": contestant.vocab_size - len(contestant.spellings),
        "coverage": (
            {str(k): int(running[k - 1]) / total for k in _MOST_FREQUENT if k < len(running)}
            if total
            else {}
        ),
        "ids_for_99_percent": int(np.searchsorted(running, 0.99 * total)) + 1 if total else None,
    }


def longest(contestant: Contestant) -> list[str]:
    """Return the tokens of the most bytes, longest first."""
    sizes = {
        i: len((contestant.pieces or {}).get(i, s.encode()))
        for i, s in contestant.spellings.items()
        if i not in contestant.special
    }
    return [
        contestant.show(index)
        for index in sorted(sizes, key=lambda index: (-sizes[index], index))[:_EXAMPLES]
    ]


def cuts(contestant: Contestant, text: str) -> list[str]:
    """Split a text into its tokens, for reading."""
    return [contestant.show(index) for index in contestant.encode(text).tolist()]


def compared_excerpt(texts: Sequence[str]) -> str:
    """Return the beginning of the first text that is long enough, else of the longest."""
    return max(texts, key=lambda text: min(len(text), _EXCERPT_CHARACTERS), default="")[
        :_EXCERPT_CHARACTERS
    ]
