"""Hashing: shuffles and word hashes that are the same in every process and library version.

A permutation is a sort of SplitMix64 hashes, because the generators of libraries change between
versions. Texts are compared by 64-bit hashes of their words and of runs of words.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import numpy.typing as npt
import xxhash

_UINT64 = np.uint64


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit integers.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", fig. 16.
    """
    with np.errstate(over="ignore"):
        z = x + _UINT64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> _UINT64(30))) * _UINT64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> _UINT64(27))) * _UINT64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = z ^ (z >> _UINT64(31))
        return mixed


def permutation(n: int, *key: int | str) -> npt.NDArray[np.int64]:
    """Return a permutation of 0..n-1 that depends on nothing but n and the key."""
    digest = hashlib.sha256("\x00".join(map(str, key)).encode()).digest()
    word = np.frombuffer(digest[:8], dtype="<u8").astype(_UINT64)
    return np.argsort(
        splitmix64(splitmix64(np.arange(n, dtype=_UINT64)) ^ word), kind="stable"
    ).astype(np.int64)


# Text is cut into words in two ways. Filters count the words of `lit_pretrain.words`. Comparisons
# between texts (near-duplicates, containment, decontamination) ignore case and punctuation, and do
# not depend on what is installed: a segmenter may cut the same sentence in two ways, by what stands
# around it. In Thai and Lao, whose vowel signs are no letters, a run of letters is about a word
# (13 runs are 13 to 17 of them), in Khmer and Burmese half of one.

# Scripts written without spaces (kana, Han): a character is a word, or a page would be one.
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PLAIN_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
# ASCII needs no regex: everything but letters and digits becomes a space. Three times as fast (97
# MB/s against 33).
_PLAIN_ASCII = bytes(
    ord(chr(code).lower()) if code < 128 and chr(code).isalnum() else 32 for code in range(256)
)
_TYPOGRAPHY = (  # often all that keeps an English text from being ASCII
    "\u2019\u2018\u201c\u201d\u2013\u2014\u2026\u00a0"
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it loses bits
_CACHED_WORDS = 1 << 20


def plain_words(text: str) -> list[str]:
    """Return the lower-case runs of letters and digits; kana and Han characters one by one."""
    if not text.isascii():
        bare = text
        for mark in _TYPOGRAPHY:
            bare = bare.replace(mark, " ")
        if not bare.isascii():
            return _PLAIN_WORD.findall(text.lower())
        text = bare
    return text.encode().translate(_PLAIN_ASCII).decode().split()


class _HashOf(dict[str, int]):
    """Cache word -> 64-bit hash: texts repeat their words, and a look-up beats a call."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return value


_hash_of = _HashOf()


def hash_words(found: list[str]) -> npt.NDArray[np.uint64]:
    """Return one stable 64-bit hash (XXH3) per word, [words]."""
    return np.fromiter(map(_hash_of.__getitem__, found), dtype=np.uint64, count=len(found))


def hash_ngrams(hashes: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """Hash all runs of `n` words from the hashes of the words, [max(0, words - n + 1)].

    A polynomial in an odd constant modulo 2^64, mixed by SplitMix64: two runs collide by chance
    once in about 2^64 pairs.
    """
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    with np.errstate(over="ignore"):
        total = hashes[:count].copy()
        for offset in range(1, n):
            total *= _MULTIPLIER
            total += hashes[offset : offset + count]
    return splitmix64(total)
