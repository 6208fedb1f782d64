"""Classifier: how good a text is, by a small model that a user trains from examples.

Logistic regression over hashed n-grams: words, pairs of words, and runs of four bytes, which know
punctuation, case, layout and scripts without spaces. A text's log-odds are a bias plus, of each of
the three kinds, the mean weight of its n-grams, so that its length does not decide (as in fastText,
Joulin et al. 2017, arXiv:1607.01759, by which DCLM was chosen). Weights are 16-bit integers and
their sum is exact: a text has the same score on every machine.
`train_classifier.py` makes one; `lit_pretrain classifier` is its command line.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError
from lit_pretrain.files import file_sha256, parse_sealed_json, seal_json, write_file
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import FilterInputs, Verdict, View

_BITS = 18
BUCKETS = 1 << _BITS
"""Rows of the weights, half a megabyte: as accurate as four times as many in the trials of
docs/experiments.md, and it stays in a core's cache.
"""
KINDS = ("words", "pairs of words", "runs of four bytes")
SCORES = 10**6
"""A score is one of so many steps from 0 to 1, so that scores can be counted exactly."""
QUALITY = "quality"
"""Field of a document that holds its score."""
_BLOCK = 1 << 15
"""Bytes that are hashed at a time, so that all arrays stay in the cache."""
_SHORT = 1 << 12
"""Bytes below which calls of numpy cost more (4 µs each) than to read numbers that overlap."""
_LONGEST = 1 << 20
"""Bytes of a text that are looked at: its beginning."""
_FORMAT = 1
_METADATA = "lit_pretrain.classifier"
_TENSOR = "weights"

# Polynomial hashes of words: the prefix sums of byte × M^position give that of every word at once.
# M is odd, so that it has an inverse modulo 2^64, which takes out the position of the word.
_M = 0x9E3779B97F4A7C15
_K64, _SHIFT64 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(64 - _BITS)
_K32, _SHIFT32 = np.uint32(0x9E3779B1), np.uint32(32 - _BITS)
# Letters, digits and all bytes of other characters make words; ASCII in lower case.
_WORD_BYTES = bytes(
    ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else byte if byte >= 128 else 0
    for byte in range(256)
)


def _powers(base: int) -> npt.NDArray[np.uint64]:
    """Return base^0, base^1, … modulo 2^64, [_BLOCK]."""
    powers = np.full(_BLOCK, base, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


_POWERS, _INVERSES = _powers(_M), _powers(pow(_M, -1, 1 << 64))
Buckets = npt.NDArray[np.unsignedinteger[Any]]


def ngram_buckets(block: bytes) -> tuple[Buckets, Buckets, Buckets]:
    """Hash the n-grams of a block of UTF-8 into buckets, by the kinds of `KINDS`."""
    starts, ends, letters = word_spans(block)
    sums = np.zeros(len(letters) + 1, dtype=np.uint64)
    np.add.accumulate(letters * _POWERS[: len(letters)], out=sums[1:])
    words = (sums[ends] - sums[starts]) * _INVERSES[starts]
    pairs = words[:-1] * _K64 + words[1:]
    fours = _runs_of_four(block)
    return (
        (words * _K64) >> _SHIFT64,
        (pairs * _K64) >> _SHIFT64,
        (fours * _K32) >> _SHIFT32,
    )


def _runs_of_four(block: bytes) -> npt.NDArray[np.uint32]:
    """Return the four bytes at every place of a block as numbers, in any order."""
    size = len(block)
    if size < 4:
        return np.empty(0, dtype=np.uint32)
    if size < _SHORT:  # one view of the bytes, whose numbers overlap
        overlapping: npt.NDArray[np.uint32] = np.ndarray(size - 3, "<u4", block, 0, (1,))
        return overlapping.astype(np.uint32)
    # Those that begin at 0, 4, …, then those at 1, 5, …, and so on, which are aligned.
    runs = [np.frombuffer(block, "<u4", count=(size - at) // 4, offset=at) for at in range(4)]
    return np.concatenate(runs)


def word_spans(
    block: bytes,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Find the words of a block: where each begins and ends, and all bytes in lower case."""
    letters = np.frombuffer(block.translate(_WORD_BYTES), dtype=np.uint8)
    inside = np.zeros(len(letters) + 2, dtype=bool)
    np.not_equal(letters, 0, out=inside[1:-1])
    edges = (inside[1:] != inside[:-1]).nonzero()[0]
    return edges[::2], edges[1::2], letters


def text_blocks(text: str) -> list[bytes]:
    """Cut the beginning of a text into the blocks that are hashed."""
    utf8 = text.encode("utf-8", "surrogatepass")[:_LONGEST]
    return [utf8[begin : begin + _BLOCK] for begin in range(0, len(utf8), _BLOCK)]


class TextClassifier:
    """Score texts: the probability that one is like the positive examples.

    Args:
        weights: Integer weight of each bucket, [BUCKETS].
        about: Everything else that the file holds: `bias`, `scale` of the weights, and what
            training and its examples were, for reports.
    """

    def __init__(self, weights: npt.NDArray[np.int16], about: Mapping[str, Any]) -> None:
        self.weights = weights
        self.about = about
        self._bias, self._scale = float(about["bias"]), float(about["scale"])

    def log_odds(self, text: str) -> float:
        """Return the calibrated log-odds that a text is like the positive examples."""
        sums, counts = [0] * len(KINDS), [0] * len(KINDS)
        for block in text_blocks(text):
            for kind, buckets in enumerate(ngram_buckets(block)):
                found = self.weights.take(buckets.astype(np.intp), mode="clip")
                sums[kind] += int(np.add.reduce(found, dtype=np.int64))
                counts[kind] += len(buckets)
        means = (total / count for total, count in zip(sums, counts, strict=True) if count)
        return self._bias + self._scale * math.fsum(means)

    def score(self, text: str) -> float:
        """Return the probability, rounded to one of `SCORES` steps."""
        return round(probability(self.log_odds(text)) * SCORES) / SCORES

    def save(self, path: Path) -> None:
        """Write one safetensors file that carries its own digest; equal content, equal bytes."""
        from safetensors.numpy import save

        about = {**self.about, "format": _FORMAT, "weights_sha256": _sha256(self.weights)}
        # One key: the library orders several at random.
        write_file(path, save({_TENSOR: self.weights}, metadata={_METADATA: seal_json(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], where: str = "classifier") -> TextClassifier:
        """Read what `save` wrote. No code can hide in it.

        Args:
            path: The file.
            where: What named it, for messages.

        Raises:
            UserError: It is missing, damaged, no classifier, or of another version.
        """
        from safetensors import SafetensorError, safe_open

        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(
                f"{where}: {path} {'is a folder' if file.is_dir() else 'does not exist'} (relative"
                f" paths start at {Path.cwd()}); `lit_pretrain classifier train --out {path}` makes"
                " a classifier"
            )
        mend = "train it again, or copy it again from where it came from"
        try:
            with safe_open(file, framework="numpy") as stored:
                sealed = (stored.metadata() or {}).get(_METADATA)
                weights = stored.get_tensor(_TENSOR) if sealed is not None else None
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{where}: {path} cannot be read: {error}; {mend}") from None
        if sealed is None or weights is None:
            raise UserError(
                f"{where}: {path} holds tensors but no classifier; `lit_pretrain classifier train`"
                " makes one"
            )
        about = parse_sealed_json(sealed, f"{where}: {path}")
        if about.get("format") != _FORMAT:
            raise UserError(
                f"{where}: {path} is of format {about.get('format')!r}, and this lit_pretrain reads"
                f" {_FORMAT}; {mend}"
            )
        if about.get("weights_sha256") != _sha256(weights) or (
            weights.dtype != np.int16 or weights.shape != (BUCKETS,)
        ):
            raise UserError(
                f"{where}: {path} is damaged: its weights do not have the digest that they were"
                f" written with; {mend}"
            )
        for name in ("bias", "scale"):
            if not isinstance(about.get(name), float) or not math.isfinite(about[name]):
                raise UserError(f"{where}: {path} is damaged: {name}={about.get(name)!r}; {mend}")
        return cls(weights, about)


def probability(log_odds: float) -> float:
    """Return the probability of some log-odds, which may be large."""
    return 0.5 * (1 + math.tanh(log_odds / 2))


def threshold_for(scores: npt.NDArray[Any], sizes: npt.NDArray[Any], share: float) -> float:
    """Find the highest score from which on at least a share of the text lies.

    Args:
        scores: Score of each text, at least one.
        sizes: Size of each.
        share: Wanted share of all sizes.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.cumsum(sizes[order])
    at = int(np.searchsorted(kept, share * float(kept[-1]), side="left"))
    return float(scores[order[min(at, len(order) - 1)]])


def _sha256(weights: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(weights).tobytes()).hexdigest()


class Classifier:
    """Keep the texts that a classifier of your own finds good.

    `lit_pretrain classifier train` makes it from examples. The score, 0 to 1, becomes the field
    `quality` of each document, and the funnel counts the scores of each source.

    Reasons: low_score, with `threshold`; score_below_THRESHOLD, with `keep`, in a step of its own
    after all filters.

    Args:
        path: The file of the classifier. Its sha256 is part of the dataset's record.
        threshold: Least score of a document that stays.
        keep: In place of a threshold, the share of each source's text that stays, by bytes: the
            best of what all of its filters let through.

    Raises:
        UserError: The file is no classifier, or not exactly one of threshold and keep is given, or
            it is out of range.
    """

    counts_words = False

    @staticmethod
    def inputs(init_args: Mapping[str, Any]) -> FilterInputs:
        """See `Filter`."""
        return FilterInputs(files=(init_args["path"],))

    def __init__(
        self, *, path: str, threshold: float | None = None, keep: float | None = None
    ) -> None:
        if (threshold is None) == (keep is None):
            raise UserError(
                "filters: Classifier takes one of threshold (least score, such as 0.5) and keep"
                f" (share of the text that stays, such as 0.1); found threshold={threshold} and"
                f" keep={keep}. `lit_pretrain classifier report {path}` shows what they keep"
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(
                f"filters: Classifier: threshold={threshold} must be a score: from 0 to 1"
            )
        if keep is not None and not 0 < keep < 1:
            raise UserError(
                f"filters: Classifier: keep={keep} must be a share of the text: above 0 and below 1"
            )
        self.keep_share = keep
        self._threshold = threshold
        self._classifier = _load(path, _sha256_of(path))

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        score = self._classifier.score(view.text)
        good = self._threshold is None or score >= self._threshold
        return Verdict(
            good,
            "" if good else "low_score",
            fields={QUALITY: f"{score:.6f}"},
            score=score,
        )


def _sha256_of(path: str) -> str:
    """Identify a file by its content; empty where it cannot be read, which loading reports."""
    file = Path(path).expanduser()
    return file_sha256(file) if file.is_file() else ""


# One file serves all sources of a config.
@functools.cache
def _load(path: str, sha256: str) -> TextClassifier:
    """Load a classifier; the hash distinguishes files that follow each other under one name."""
    return TextClassifier.load(path, "filters: Classifier: path")
