"""Contestant: a tokenizer as the report sees it, from a file, a folder, or one of tiktoken's public encodings by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.data.tokenizer_files import FILENAME
from lit_pretrain.errors import UserError

_VISIBLE = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}


@dataclass(frozen=True)
class Contestant:
    """What is asked of a tokenizer."""

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
        """Bytes of every id, [vocab_size]; 0 for special tokens and unused ids."""
        return None if self.pieces is None else _table(self.vocab_size, {index: len(piece) for index, piece in self.pieces.items()})

    def cut(self) -> npt.NDArray[np.int64] | None:
        """1 for every id whose bytes are not whole characters, [vocab_size]."""
        return None if self.pieces is None else _table(self.vocab_size, {i: 1 for i, piece in self.pieces.items() if _whole(piece) is None})

    def characters(self) -> frozenset[str] | None:
        """The characters that occur whole in at least one token."""
        return None if self.pieces is None else frozenset().union(*(_whole(piece) or "" for piece in self.pieces.values()))

    def show(self, index: int) -> str:
        """A token for reading: spaces, tabs and line ends visible, bytes that are no character as hexadecimal escapes."""
        piece = (self.pieces or {}).get(index)
        text = self.spellings.get(index, "") if piece is None else piece.decode("utf-8", errors="backslashreplace")
        return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def find(paths: list[str], own: Tokenizer | None = None) -> list[Contestant]:
    """Loads tokenizers, the first of which may be loaded already.

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
    """One of tiktoken's encodings, None when it has none of that name."""
    import tiktoken

    if path not in tiktoken.list_encoding_names():
        return None
    try:
        encoding = tiktoken.get_encoding(path)
    except Exception as error:  # whatever the network does: it is fetched when it is first used
        raise UserError(
            f"{path} is one of tiktoken's public encodings, which tiktoken downloads when it is first used, and that failed ({error}). "
            "Run this where there is a network, set TIKTOKEN_CACHE_DIR to a folder that was filled elsewhere, or give the path of a "
            f"{FILENAME}."
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
        spellings={index: piece.decode("utf-8", errors="backslashreplace") for index, piece in pieces.items()} | special,
        pieces=pieces,
        encode=lambda text: np.asarray(encoding.encode(text, disallowed_special=()), dtype=np.int32),
    )


def _short(path: str) -> str:
    """A name that fits a column: the last folder of the path."""
    where = Path(path).expanduser().absolute()
    return (where.parent.name if where.name == FILENAME else where.name.removesuffix(".json"))[-16:]


def _whole(piece: bytes) -> str | None:
    """A token's text, None where it cuts a character."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _table(size: int, values: dict[int, int]) -> npt.NDArray[np.int64]:
    table = np.zeros(size, dtype=np.int64)
    table[list(values)] = list(values.values())
    return table
