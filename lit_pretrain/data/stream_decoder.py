"""Ids to text one at a time, without ever giving out half a character."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_pretrain.data.tokenizer import Tokenizer


class StreamDecoder:
    """Ids to text one at a time; what it gave out concatenates to `Tokenizer.decode` of all of them."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []
        self._given = ""

    def push(self, index: int) -> str:
        """Takes one id; gives out the text that is complete now, which may be empty."""
        tokenizer = self._tokenizer
        if tokenizer._bytes_of is not None:
            return self._utf8.decode(tokenizer._token_bytes(index, self._skip_special))
        # Other kinds decode in context (a space before a word): decode all, hold back what may still change.
        self._ids.append(index)
        text = tokenizer.decode(self._ids, skip_special=self._skip_special)
        if text.endswith("\ufffd"):
            return ""
        new, self._given = text[len(self._given) :], text
        return new

    def flush(self) -> str:
        """The end: whatever is held back, half characters as U+FFFD."""
        if self._tokenizer._bytes_of is not None:
            return self._utf8.decode(b"", final=True)
        return self._tokenizer.decode(self._ids, skip_special=self._skip_special)[len(self._given) :]
