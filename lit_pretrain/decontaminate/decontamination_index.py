"""Decontamination index: find the items of evaluation sets in a text by their runs of words.

The index is built once from the files of the sets, written to one file, and loaded by every task.
For a document, its words are hashed and every n-gram is looked up in a bitmap that is nearly empty.
Only n-grams that pass the bitmap are searched for among the sorted hashes and then compared word by
word, so that two equal hashes alone never make a hit.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_pretrain.decontaminate.evaluation_set import (
    DecontaminateConfig,
    DecontaminationHit,
    EvaluationSet,
    content_sha256,
    texts_of,
)
from lit_pretrain.errors import UserError
from lit_pretrain.files import atomic_path, canonical_hash, file_sha256
from lit_pretrain.hashing import hash_ngrams, hash_words, plain_words
from lit_pretrain.record_files import read_records

_FORMAT = 1
_SPARSE = 32
"""Bitmap cells per n-gram, at least: of a text without any item, 1 n-gram in 32 is searched for."""
_EXCERPT_WORDS = 8
"""Words of context on each side of a match."""
_WORD_SHOWN = 40
"""Letters of a word that an excerpt shows: encoded data counts as one word, maybe of megabytes."""


@dataclass(frozen=True)
class IndexedSet:
    """One evaluation set of an index."""

    name: str
    file_sha256: str
    content_sha256: str
    fields: tuple[str, ...]
    items: int
    unchecked_items: int
    licence: str | None
    origin: str | None


class _Table:
    """Sorted hashes of runs of `n` words, with the text and the word where each begins."""

    def __init__(
        self,
        n: int,
        hashes: npt.NDArray[np.uint64],
        texts: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int32],
    ) -> None:
        self.n, self.hashes, self.texts, self.offsets = n, hashes, texts, offsets
        bits = max(10, (_SPARSE * len(hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, dtype=np.bool_)
        self._present[hashes >> self._shift] = True

    def find(self, hashes: npt.NDArray[np.uint64]) -> list[tuple[int, int, int]]:
        """Find the runs of a text that the table holds.

        Args:
            hashes: Hashes of the words of the text.

        Returns:
            (word at which the run begins, first of its entries in the table, end of its entries).
        """
        if len(self.hashes) == 0 or len(hashes) < self.n:
            return []
        runs = hash_ngrams(hashes, self.n)
        places = np.flatnonzero(self._present[runs >> self._shift])
        if len(places) == 0:
            return []
        wanted = runs[places]
        first = np.searchsorted(self.hashes, wanted, side="left")
        end = np.searchsorted(self.hashes, wanted, side="right")
        found = np.flatnonzero(end > first)
        return list(
            zip(places[found].tolist(), first[found].tolist(), end[found].tolist(), strict=True)
        )


class _Match(NamedTuple):
    """Equal words in a text and in an item."""

    place: int
    """Word of the text at which they begin."""
    text: int
    """Number of the item's text among those of the index."""
    offset: int
    """Word of the item's text at which they begin."""
    length: int
    """How many words are equal."""


class DecontaminationIndex:
    """Runs of words of all evaluation items: 48 to 80 bytes per n-gram, and the texts."""

    def __init__(
        self,
        ngram: int,
        min_words: int,
        sets: tuple[IndexedSet, ...],
        texts: list[str],
        owners: npt.NDArray[np.int32],
        runs: _Table,
        heads: _Table,
    ) -> None:
        self.ngram = ngram
        self.min_words = min_words
        self.sets = sets
        self._texts = texts  # plain words, one space between
        self._owners = owners  # [texts, 2]: number of the set, item from 1
        self._runs = runs
        self._heads = heads  # the first `min_words` words of texts shorter than `ngram`

    @classmethod
    def build(cls, config: DecontaminateConfig) -> DecontaminationIndex:
        """Read the evaluation sets and index their items.

        Raises:
            UserError: The config is wrong, a file cannot be read, or a field is missing.
        """
        config.validate()
        sets: list[IndexedSet] = []
        texts: list[str] = []
        owners: list[tuple[int, int]] = []
        for name, evaluation_set in sorted(config.against.items()):
            described, found = _read(name, evaluation_set, config.min_words)
            for item, text in found:
                texts.append(text)
                owners.append((len(sets), item))
            sets.append(described)
        owner_of = np.array(owners, dtype=np.int32).reshape(-1, 2)
        hashes = [hash_words(text.split(" ")) for text in texts]
        long = [n for n, found in enumerate(hashes) if len(found) >= config.ngram]
        short = [n for n, found in enumerate(hashes) if len(found) < config.ngram]
        runs = _table(config.ngram, {n: hashes[n] for n in long}, owner_of)
        heads = _table(config.min_words, {n: hashes[n][: config.min_words] for n in short}, None)
        return cls(config.ngram, config.min_words, tuple(sets), texts, owner_of, runs, heads)

    def check(self, text: str) -> list[DecontaminationHit]:
        """Find the items whose words a text holds, sorted by set and item.

        A hit is `ngram` words in a row, or the whole of a shorter text.
        """
        found = plain_words(text)
        hashes = hash_words(found)
        long, short = self._runs.find(hashes), self._heads.find(hashes)
        if not long and not short:
            return []
        matches: defaultdict[tuple[int, int], list[_Match]] = defaultdict(list)  # by set and item
        for table, candidates in ((self._runs, long), (self._heads, short)):
            for place, first, end in candidates:
                entries = zip(
                    table.texts[first:end].tolist(), table.offsets[first:end].tolist(), strict=True
                )
                for number, offset in entries:
                    item = self._texts[number].split(" ")
                    length = self.ngram if table is self._runs else len(item)
                    if found[place : place + length] == item[offset : offset + length]:
                        set_number, item_number = self._owners[number].tolist()
                        match = _Match(place, number, offset, length)
                        matches[set_number, item_number].append(match)
        hits = []
        for (set_number, item_number), of_item in sorted(matches.items()):
            # An item that repeats a run matches several times at one place; the first counts.
            first_match = min(of_item, key=lambda match: match.place)
            item = self._texts[first_match.text].split(" ")
            hits.append(
                DecontaminationHit(
                    set=self.sets[set_number].name,
                    item=item_number,
                    ngrams=len({match.place for match in of_item}),
                    excerpt=_excerpt(found, first_match.place, first_match.length),
                    evaluation=_excerpt(item, first_match.offset, first_match.length),
                )
            )
        return hits

    @property
    def hash(self) -> str:
        """Hash what decides about hits: content and fields of the sets, and both lengths."""
        return canonical_hash(
            [
                _FORMAT,
                self.ngram,
                self.min_words,
                [[s.name, s.content_sha256, s.fields] for s in self.sets],
                self._texts,
            ]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file atomically; the same index gives the same bytes."""
        about = {
            "format": _FORMAT,
            "ngram": self.ngram,
            "min_words": self.min_words,
            "sets": [dataclasses.asdict(described) for described in self.sets],
            "texts": self._texts,
        }
        arrays = {
            f"{name}_{part}": getattr(table, part)
            for name, table in self._tables()
            for part in ("hashes", "texts", "offsets")
        }
        with atomic_path(Path(path)) as scratch, scratch.open("wb") as file:
            np.savez(
                file,
                about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
                owners=self._owners,
                **arrays,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DecontaminationIndex:
        """Read what `save` wrote.

        Raises:
            UserError: The file is missing, damaged or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(stored["about"].tobytes())
                if about["format"] != _FORMAT:
                    raise UserError(
                        f"{path} is an index of format {about['format']}; this version reads"
                        f" {_FORMAT}. Build it again."
                    )
                lengths = {"runs": about["ngram"], "heads": about["min_words"]}
                tables = {
                    name: _Table(
                        n,
                        stored[f"{name}_hashes"],
                        stored[f"{name}_texts"],
                        stored[f"{name}_offsets"],
                    )
                    for name, n in lengths.items()
                }
                owners = stored["owners"]
        except FileNotFoundError:
            raise UserError(
                f"the index of evaluation sets {path} does not exist. Run the preparation from its"
                " start."
            ) from None
        except UserError:
            raise
        except Exception as error:
            # A damaged archive fails in as many ways as zipfile, numpy and json know.
            raise UserError(
                f"the index of evaluation sets {path} is damaged ({error}). Delete it and run the"
                " preparation again."
            ) from None
        sets = tuple(
            IndexedSet(**{**described, "fields": tuple(described["fields"])})
            for described in about["sets"]
        )
        return cls(
            about["ngram"],
            about["min_words"],
            sets,
            about["texts"],
            owners,
            tables["runs"],
            tables["heads"],
        )

    def _tables(self) -> tuple[tuple[str, _Table], ...]:
        return (("runs", self._runs), ("heads", self._heads))


def _read(
    name: str, evaluation_set: EvaluationSet, min_words: int
) -> tuple[IndexedSet, list[tuple[int, str]]]:
    """Read one set: its description, and (item, plain words) of each text that is long enough."""
    records = read_records(evaluation_set.path, evaluation_set.separator)
    if not records:
        raise UserError(f"decontaminate.against.{name}: {evaluation_set.path} holds no item")
    found: list[tuple[int, str]] = []
    unchecked = 0
    for item, record in enumerate(records, start=1):
        checked = [
            text
            for raw in texts_of(
                record, evaluation_set.fields, f"{evaluation_set.path}, record {item}"
            )
            if len(text := plain_words(raw)) >= min_words
        ]
        unchecked += not checked
        found += [(item, " ".join(text)) for text in checked]
    described = IndexedSet(
        name=name,
        file_sha256=file_sha256(Path(evaluation_set.path).expanduser()),
        content_sha256=content_sha256(records),
        fields=tuple(evaluation_set.fields),
        items=len(records),
        unchecked_items=unchecked,
        licence=evaluation_set.licence,
        origin=evaluation_set.origin,
    )
    return described, found


def _table(
    n: int, hashes: dict[int, npt.NDArray[np.uint64]], owners: npt.NDArray[np.int32] | None
) -> _Table:
    """Build the table of all runs of `n` words of some texts.

    Args:
        n: Words of a run.
        hashes: Number of each text -> hashes of its words.
        owners: Set and item of each text. If it is given, a run that an item repeats (its stem, in
            each of its choices) is entered once.
    """
    runs = {number: hash_ngrams(found, n) for number, found in hashes.items()}
    values = np.concatenate([np.empty(0, dtype=np.uint64), *runs.values()])
    texts = np.repeat(np.array(list(runs), dtype=np.int32), [len(found) for found in runs.values()])
    offsets = np.concatenate(
        [
            np.empty(0, dtype=np.int32),
            *(np.arange(len(found), dtype=np.int32) for found in runs.values()),
        ]
    )
    order = np.lexsort((offsets, texts, values))
    values, texts, offsets = values[order], texts[order], offsets[order]
    if owners is not None and len(values):
        # Texts of an item are neighbours, so that equal runs of one item are neighbours too.
        same = (values[1:] == values[:-1]) & (owners[texts[1:]] == owners[texts[:-1]]).all(axis=1)
        kept = np.concatenate([[True], ~same])
        values, texts, offsets = values[kept], texts[kept], offsets[kept]
    return _Table(n, values, texts, offsets)


def _excerpt(found: list[str], place: int, length: int) -> str:
    """Join the words around a match, with the match in brackets."""
    start = max(0, place - _EXCERPT_WORDS)
    shown = [
        word if len(word) <= _WORD_SHOWN else f"{word[:_WORD_SHOWN]}\u2026"
        for word in found[start : place + length + _EXCERPT_WORDS]
    ]
    before, match, after = (
        shown[: place - start],
        shown[place - start : place - start + length],
        shown[place - start + length :],
    )
    return " ".join([*before, f"[{' '.join(match)}]", *after])
