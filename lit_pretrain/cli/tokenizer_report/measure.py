"""Measurement: what tokenizers make of the same text, and which ids of one of them are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.cli.tokenizer_report.contestant import Contestant

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


def compare(contestants: Sequence[Contestant], samples: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Encodes the samples with every tokenizer.

    Args:
        contestants: Tokenizers.
        samples: Source -> texts.

    Returns:
        Tokenizer -> source -> figures, and "all" for the sum over the sources. Separators are not counted. Shares are of the bytes that
        the tokens stand for, None for lossy tokenizers.
    """
    return {contestant.name: _figures(contestant, samples) for contestant in contestants}


def _figures(contestant: Contestant, samples: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    lengths, cut = contestant.lengths(), contestant.cut()
    by_source: dict[str, Counter[str]] = {}
    for source, texts in samples.items():
        sums = by_source[source] = Counter(documents=len(texts), bytes=0, tokens=0, spelt=0, one_byte=0, cut=0, documents_cut=0)
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


def characters_outside(contestant: Contestant, samples: Mapping[str, Sequence[str]]) -> dict[str, Any] | None:
    """Characters of the samples that no token spells whole, the most frequent first; None for lossy tokenizers."""
    known = contestant.characters()
    if known is None:
        return None
    counts: Counter[str] = Counter()
    for texts in samples.values():
        for text in texts:
            counts.update(text)
    outside = sorted(((count, character) for character, count in counts.items() if character not in known), key=lambda e: (-e[0], e[1]))
    return {
        "distinct": len(outside),
        "of": len(counts),
        "share": sum(count for count, _ in outside) / max(1, counts.total()),
        "examples": [character for _, character in outside[:_EXAMPLES]],
    }


def count(contestant: Contestant, samples: Mapping[str, Sequence[str]]) -> npt.NDArray[np.int64]:
    """How often each id occurs in the samples, [vocab_size]."""
    counts = np.zeros(contestant.vocab_size, dtype=np.int64)
    for texts in samples.values():
        for text in texts:
            counts += np.bincount(contestant.encode(text), minlength=contestant.vocab_size)
    return counts


def use(contestant: Contestant, counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Which ids are used, and how the tokens share out among them.

    Args:
        contestant: The tokenizer.
        counts: How often each id occurs, [vocab_size].
    """
    ordinary = np.array(sorted(contestant.spellings.keys() - contestant.special.keys()), dtype=np.int64)
    unused = ordinary[counts[ordinary] == 0]
    total = int(counts.sum())
    running = np.cumsum(np.sort(counts)[::-1])
    # From the whole list, not its beginning: the first ids are bytes, the last ones the merges that the data could spare.
    shown = unused[np.linspace(0, len(unused) - 1, min(_EXAMPLES, len(unused))).astype(np.int64)]
    return {
        "tokens": total,
        "ordinary_ids": len(ordinary),
        "unused": len(unused),
        "unused_ids": unused.tolist(),
        "unused_examples": [contestant.show(index) for index in shown.tolist()],
        "rare": int(np.count_nonzero((counts[ordinary] > 0) & (counts[ordinary] < RARE))),
        "special_tokens_unused": [token for index, token in sorted(contestant.special.items()) if counts[index] == 0],
        "ids_without_token": contestant.vocab_size - len(contestant.spellings),
        "coverage": {str(k): int(running[k - 1]) / total for k in _MOST_FREQUENT if k < len(running)} if total else {},
        "ids_for_99_percent": int(np.searchsorted(running, 0.99 * total)) + 1 if total else None,
    }


def longest(contestant: Contestant) -> list[str]:
    """The tokens of the most bytes, longest first."""
    sizes = {i: len((contestant.pieces or {}).get(i, s.encode())) for i, s in contestant.spellings.items() if i not in contestant.special}
    return [contestant.show(index) for index in sorted(sizes, key=lambda index: (-sizes[index], index))[:_EXAMPLES]]


def cuts(contestant: Contestant, text: str) -> list[str]:
    """A text's tokens, for reading."""
    return [contestant.show(index) for index in contestant.encode(text).tolist()]


def excerpt(texts: Sequence[str]) -> str:
    """The beginning of the first text that is long enough, else of the longest."""
    return max(texts, key=lambda text: min(len(text), _EXCERPT_CHARACTERS), default="")[:_EXCERPT_CHARACTERS]
