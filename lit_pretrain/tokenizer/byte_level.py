"""Byte-level BPE: which tokenizer.json files tiktoken can run exactly, and how."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The regexes are interfaces, not style: other tools recognise a tokenizer by its exact pattern
# (GGUF converters refuse one they do not know), so they are spelt here as the published
# tokenizer.json files spell them.
PATTERNS: dict[str, str] = {
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""Pre-tokenizer regexes by name. cl100k is GPT-4's and Llama 3's (digits in threes), qwen2 Qwen
2 and 3's (single digits), gpt2 GPT-2's.
"""
ALIASES: dict[str, str] = {"llama3": "cl100k"}
"""Other names of the same regex. Llama 3's `pat_str` (meta-llama/llama3, llama/tokenizer.py) and
the Split of its tokenizer.json are cl100k's, character for character, so a file alone cannot tell
them apart: manifests record cl100k for both.
"""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF_CHARACTER: dict[str, int] = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + n): byte
    for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
"""GPT-2's alphabet: byte-level vocabularies spell each byte as one printable character, the
unprintable ones from U+0100 on.
"""


class NotByteLevel(Exception):
    """Say why tiktoken cannot run a tokenizer exactly."""


@dataclass(frozen=True)
class ByteLevelBPE:
    """Hold all that tiktoken needs."""

    pattern_name: str
    """Key of PATTERNS."""
    ranks: Mapping[bytes, int]
    """Bytes of every ordinary token -> its id, which is also its merge priority."""
    plain: frozenset[str]
    """Added tokens that are matched in ordinary text (Qwen 3's <think>)."""
    nfc: bool
    """Text is normalised to Unicode NFC first (Qwen)."""


def pattern_name(spec: Mapping[str, Any]) -> str | None:
    """Name the pre-tokenizer's regex in the JSON of a tokenizer; None if `PATTERNS` lacks it."""
    try:
        return _pattern_name(spec.get("pre_tokenizer"))
    except NotByteLevel:
        return None


def analyse(spec: Mapping[str, Any]) -> ByteLevelBPE:
    """Take the JSON of a tokenizer apart.

    tiktoken merges whichever adjacent pair spells the token with the lowest id; `tokenizers`
    follows its list of merges. They agree when the list is in the order of the ids, which is
    checked here. The caller compares both on real text too.

    Raises:
        NotByteLevel: Something in it is beyond tiktoken; says what.
    """
    model = spec.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise NotByteLevel(f"its model is {model.get('type')}, not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise NotByteLevel(f"its BPE uses {option}")
    if model.get("byte_fallback"):
        raise NotByteLevel("its BPE works on characters with a fallback to bytes")
    normalizer = (spec.get("normalizer") or {"type": None})["type"]
    if normalizer not in (None, "NFC"):
        raise NotByteLevel(f"its normalizer is {normalizer}")
    name = _pattern_name(spec.get("pre_tokenizer"))
    added = spec.get("added_tokens") or []
    plain = _plain_tokens([token for token in added if not token["special"]])
    added_spellings = {token["content"] for token in added}
    try:
        ranks = {
            bytes(BYTE_OF_CHARACTER[character] for character in token): index
            for token, index in model["vocab"].items()
            if token not in added_spellings
        }
    except KeyError as error:
        raise NotByteLevel(
            f"its vocabulary holds the character {error.args[0]!r}, outside the byte alphabet"
        ) from None
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise NotByteLevel(f"its vocabulary has no token for {len(missing)} of the 256 bytes")
    last = -1
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        product = model["vocab"].get(left + right, -1)
        if product < last:
            raise NotByteLevel(
                f"its merges are not in the order of their ids (at {left!r} + {right!r})"
            )
        last = product
    return ByteLevelBPE(pattern_name=name, ranks=ranks, plain=plain, nfc=normalizer == "NFC")


def _plain_tokens(tokens: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Return the added tokens for which tiktoken finds the same matches as `tokenizers`."""
    spellings = sorted(token["content"] for token in tokens)
    for token in tokens:
        if any(token.get(option) for option in ("lstrip", "rstrip", "single_word", "normalized")):
            raise NotByteLevel(f"its added token {token['content']!r} is matched by special rules")
    for shorter, longer in itertools.pairwise(spellings):
        if longer.startswith(shorter):  # the one takes the longest match, the other the first
            raise NotByteLevel(f"its added token {shorter!r} begins {longer!r}")
    return frozenset(spellings)


def _pattern_name(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """Name the regex of the split, or raise NotByteLevel with what was found."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or ([pre_tokenizer] if pre_tokenizer else [])
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or kinds[:-1] not in ([], ["Split"]):
        raise NotByteLevel(
            f"its pre-tokenizer is {' + '.join(kinds) or 'none'}, not a byte-level one"
        )
    if steps[-1].get("add_prefix_space"):
        raise NotByteLevel("its pre-tokenizer adds a space in front")
    if len(steps) == 1:
        if not steps[0].get("use_regex", True):
            raise NotByteLevel("its pre-tokenizer does not split words")
        return "gpt2"
    split = steps[0]
    if (
        steps[1].get("use_regex", True)
        or split.get("behavior") != "Isolated"
        or split.get("invert")
    ):
        raise NotByteLevel("its pre-tokenizer splits in an unknown manner")
    regex = split.get("pattern", {}).get("Regex")
    for name, pattern in PATTERNS.items():
        if regex == pattern:
            return name
    raise NotByteLevel(f"its split is none of {', '.join(PATTERNS)}: {regex!r}")
