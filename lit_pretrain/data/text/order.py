"""Order: the (source, epoch, block) of each sample, a pure function of (blocks, mixture, seed, n).

Calls keep no state, so a checkpoint stores a single integer, prefetching cannot change the order,
and any step can be traced to its documents. The order has four levels:

1. Stretches (`stretches.py`) lie between two changes of the mixture.
2. Cycles have `cycle` samples. Every cycle of a stretch holds exactly `quota[s]` samples of source
   s, in a shuffled order of its own.
3. Epochs. The i-th sample of a source, counted over all stretches, lies in its epoch i // blocks;
   every epoch holds every block once, reshuffled. So a mixture decides when a source is read, never
   in which order.
4. Groups. An epoch visits the source's chunks in shuffled order, `shuffle_chunks` at a time, and
   shuffles blocks only within such a group, so that a remote reader downloads each chunk once per
   epoch, one after the other.

Ranges of this numbering may be left out (`skips.py`); what is read is numbered on without a gap.

`Tracer` follows it back: from the samples of a step to the rows, chunks and documents that they
read, without reading a token.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_pretrain.corpus.chunk_reader import DocumentRecord, full_origin, read_document_records
from lit_pretrain.corpus.manifest import Manifest, held_out_rows
from lit_pretrain.data.text.stretches import (
    Change,
    MaxEpochs,
    SourceBlocks,
    Stretch,
    checked_weights,
    count_until,
    cycle_plan,
    lay_stretches,
    limits_of,
)
from lit_pretrain.errors import UserError
from lit_pretrain.files import is_remote
from lit_pretrain.hashing import permutation
from lit_pretrain.skips import Skips


class OrderedSample(NamedTuple):
    """The place of one sample in the data."""

    source: int
    """Index into the order's sources."""
    epoch: int
    """How often the source has been read completely before."""
    block: int
    """Number of the block (row) within the source, in stored order."""


class Order:
    """The data order of a run.

    Args:
        sources: All sources of the data.
        weights: Share of the samples by source name, in any scale; 0 or a missing name leaves a
            source out. None: in proportion to blocks, so that every source reaches the end of its
            epoch at about the same time.
        changes: Changes to other weights, by rising `begin`; a change at sample 0 replaces
            `weights`.
        max_epochs: How often a source may be read. When a source reaches its cap, the others take
            its place in proportion to their weights.
        seed: Seed of the order.
        cycle: Samples per cycle; the resolution of the weights is 1 / cycle.
        shuffle_chunks: Chunks whose blocks are shuffled together.
        skips: Ranges of samples that are left out. Sample n is the n-th that is read. Everything
            else, `changes` too, counts with what is left out.

    Raises:
        UserError: Negative weights, unknown names, no weight at all, a weight too small for the
            cycle, or an impossible cap.
    """

    def __init__(
        self,
        sources: Sequence[SourceBlocks],
        *,
        weights: Mapping[str, float] | None = None,
        changes: Sequence[Change] = (),
        max_epochs: MaxEpochs = None,
        seed: int = 0,
        cycle: int = 1024,
        shuffle_chunks: int = 1,
        skips: Skips = Skips(),
    ) -> None:
        if cycle < 1 or shuffle_chunks < 1:
            raise UserError(f"data order: {cycle=} and {shuffle_chunks=} must be at least 1")
        if not changes or changes[0].begin > 0:
            changes = [Change(0, weights, "data.weights"), *changes]
        self.sources = tuple(sources)
        self.seed = seed
        self.cycle = cycle
        self.shuffle_chunks = shuffle_chunks
        self.skips = skips
        self.changes = tuple(changes)
        self.weights = tuple(checked_weights(self.sources, change) for change in changes)
        """The weight of each source after each change, not normalised."""
        self.limits = limits_of(self.sources, max_epochs)
        """Most samples of each source; None without a limit."""
        self.stretches, self.last_place = lay_stretches(
            self.sources, self.changes, self.weights, self.limits, seed=seed, cycle=cycle
        )
        self._make_caches()

    def _make_caches(self) -> None:
        self._blocks = [source.blocks for source in self.sources]
        self._begins = [stretch.begin for stretch in self.stretches]
        # Caches of the instance: neighbouring samples need the same cycle, epoch and group.
        self._cycle_plan = lru_cache(maxsize=8)(self._make_cycle_plan)
        self._epoch_plan = lru_cache(maxsize=4 * len(self.sources))(self._make_epoch_plan)
        self._group_blocks = lru_cache(maxsize=4 * len(self.sources))(self._make_group_blocks)

    def __getstate__(self) -> dict[str, object]:
        # Without the caches: they cannot be pickled, and a worker fills its own.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    @property
    def end(self) -> int | None:
        """Number of samples that can be read; None without end."""
        return None if self.last_place is None else self.skips.kept_until(self.last_place)

    def __call__(self, n: int) -> OrderedSample:
        """Return the place of global sample n.

        Raises:
            UserError: No source may be read any more at sample n.
        """
        n = self._place(n)
        j = self._stretch_at(n)
        stretch = self.stretches[j]
        k, position = divmod(n - stretch.begin, self.cycle)
        source_of, rank_of = self._cycle_plan(j, k)
        s = int(source_of[position])
        # Counted over all stretches: a mixture decides when a source is read, never in which order.
        i = stretch.before[s] + k * stretch.quotas[s] + int(rank_of[position])
        epoch, place = divmod(i, self._blocks[s])
        _, ends = self._epoch_plan(s, epoch)
        # To the right: a place at the end of a group is the first of the next one.
        group = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[group - 1]) if group else 0
        return OrderedSample(s, epoch, int(self._group_blocks(s, epoch, group)[place - begin]))

    def counts(self, n: int) -> tuple[int, ...]:
        """Count the samples of each source among the samples 0..n-1.

        Raises:
            UserError: No source may be read any more before sample n - 1.
        """
        found = list(self.counts_before(self._place(n - 1) + 1 if n else 0))
        # What was passed over takes places but is no sample.
        for begin, end in self.skips.passed(n):
            for s, (before, after) in enumerate(
                zip(self.counts_before(begin), self.counts_before(end), strict=True)
            ):
                found[s] -= after - before
        return tuple(found)

    def counts_before(self, place: int) -> tuple[int, ...]:
        """Count the samples of each source before a place, with those that are left out."""
        return count_until(self.stretches[self._stretch_at(place)], place, seed=self.seed)

    def begins_as(self, other: "Order", n: int) -> bool:
        """Tell whether the samples 0..n-1 equal those of another order over the same sources."""
        same = [
            getattr(self, name) == getattr(other, name)
            for name in ("sources", "seed", "cycle", "shuffle_chunks")
        ]
        return (
            all(same) and self.skips.begins_as(other.skips, n) and self._until(n) == other._until(n)
        )

    def _until(self, n: int) -> tuple[Stretch, ...]:
        # Up to the place of the last sample: a change right behind it has not shown yet.
        return self.stretches[: bisect_right(self._begins, self.skips.gone(n) - 1)]

    def _place(self, n: int) -> int:
        """Return the place of sample n among all samples, with those that are left out."""
        if n < 0:
            raise ValueError(f"sample numbers start at 0, got {n}")
        if self.end is not None and n >= self.end:
            raise UserError(
                f"there is no sample {n}: the order ends after {self.end} samples, because every"
                " source of the mixture has then been read as often as data.max_epochs allows"
            )
        return self.skips.place(n)

    def _stretch_at(self, place: int) -> int:
        """Find the index of the stretch that holds a place, or ends there."""
        return bisect_right(self._begins, place) - 1

    def _make_cycle_plan(
        self, j: int, k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Plan the k-th cycle of stretch j."""
        return cycle_plan(self.stretches[j].quotas, self.seed, self.stretches[j].first_cycle + k)

    def _make_epoch_plan(
        self, s: int, epoch: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Order the chunks of an epoch, and count the blocks up to the end of each group."""
        source = self.sources[s]
        chunks = permutation(len(source.chunk_blocks), self.seed, "chunks", source.name, epoch)
        blocks = np.asarray(source.chunk_blocks, dtype=np.int64)[chunks]
        # Blocks are shuffled within groups of chunks, so that only one group has to be there at a
        # time.
        ends = np.cumsum(np.add.reduceat(blocks, np.arange(0, len(blocks), self.shuffle_chunks)))
        return chunks, ends

    def _make_group_blocks(self, s: int, epoch: int, group: int) -> npt.NDArray[np.int64]:
        """Order the blocks of one group of chunks."""
        source = self.sources[s]
        chunks, _ = self._epoch_plan(s, epoch)
        begins = np.concatenate([[0], np.cumsum(source.chunk_blocks)])
        mine = chunks[group * self.shuffle_chunks : (group + 1) * self.shuffle_chunks]
        blocks = np.concatenate([np.arange(begins[c], begins[c + 1]) for c in mine])
        return blocks[
            permutation(len(blocks), self.seed, "blocks", source.name, epoch, group)
        ].astype(np.int64)


_ROWS_NAMED, _DOCUMENTS_NAMED = 8, 4
"""Most rows, and documents of a row, that a message about a step names."""


@dataclass(frozen=True)
class TracedRow:
    """A row of a step with the origin of its tokens."""

    sample: int
    source: str
    epoch: int
    block: int
    chunk: str
    first_token: int
    """Offset of the row's first token in the chunk."""
    documents: tuple[DocumentRecord, ...]
    """The documents that the row reads from, in order."""
    begins: tuple[int, ...]
    """Place in the row at which each begins; negative of the first, if it began before the row."""


class Tracer:
    """Looks up rows of a local dataset.

    Args:
        path: Directory of the dataset.
        manifest: Manifest of the dataset.
        order: Data order of the run.
        seq_len: Inputs per row.
    """

    def __init__(self, path: Path, manifest: Manifest, order: Order, *, seq_len: int) -> None:
        self.path = path
        self.manifest = manifest
        self.order = order
        self.seq_len = seq_len
        self._documents: dict[str, dict[str, list[DocumentRecord]]] = {}

    def rows(self, samples: Iterable[int]) -> Iterator[TracedRow]:
        """Yield the rows of some global sample numbers."""
        for n in samples:
            sample = self.order(n)
            source = self.order.sources[sample.source]
            ends = np.cumsum(source.chunk_blocks)
            c = int(np.searchsorted(ends, sample.block, side="right"))
            chunk = self.manifest.sources[source.name].splits["train"].chunks[c].filename
            first = (sample.block - (int(ends[c - 1]) if c else 0)) * self.seq_len
            # One token more than the inputs: the label of the last one.
            found = self._overlapping(source.name, chunk, first, first + self.seq_len + 1)
            documents = tuple(document for _, document in found)
            begins = tuple(begin - first for begin, _ in found)
            yield TracedRow(
                n, source.name, sample.epoch, sample.block, chunk, first, documents, begins
            )

    def _overlapping(
        self, source: str, chunk: str, first: int, last: int
    ) -> list[tuple[int, DocumentRecord]]:
        """List the documents between two tokens of a chunk, each with its first token."""
        found, begin = [], 0
        for document in self._chunk_documents(source).get(chunk, []):
            end = begin + document.tokens
            if end > first and begin < last:
                found.append((begin, document))
            begin = end
        return found

    def _chunk_documents(self, source: str) -> dict[str, list[DocumentRecord]]:
        if source not in self._documents:
            by_chunk: dict[str, list[DocumentRecord]] = {}
            for record in read_document_records(self.path, "train", source):
                by_chunk.setdefault(record.chunk, []).append(record)
            self._documents[source] = by_chunk
        return self._documents[source]


def named_rows(
    samples: Sequence[int], *, path: str, manifest: Manifest, order: Order, seq_len: int
) -> str:
    """Name the rows of a few samples: source, epoch, row and, of local data, documents.

    Args:
        samples: Global sample numbers.
        path: Directory or URL of the dataset.
        manifest: Manifest of the dataset.
        order: Data order of the run.
        seq_len: Inputs per row.
    """
    shown, names = samples[:_ROWS_NAMED], list(manifest.sources)
    if is_remote(path):  # the list of documents would have to be downloaded
        found = [f"{names[s.source]} epoch {s.epoch} row {s.block}" for s in map(order, shown)]
    else:
        found = []
        for row in Tracer(Path(path), manifest, order, seq_len=seq_len).rows(shown):
            source = manifest.sources[row.source]
            origins = [full_origin(source, document.origin) for document in row.documents]
            rest = (
                f" and {len(origins) - _DOCUMENTS_NAMED} more"
                if len(origins) > _DOCUMENTS_NAMED
                else ""
            )
            found.append(
                f"{row.source} epoch {row.epoch} row {row.block}:"
                f" {', '.join(origins[:_DOCUMENTS_NAMED])}{rest}"
            )
    more = [
        f"and {len(samples) - _ROWS_NAMED} more rows (`lit_pretrain inspect order --step` names"
        " them all)"
    ]
    return "\n  ".join(["", *found, *(more if len(samples) > _ROWS_NAMED else [])])


def row_documents(
    samples: Sequence[int], *, path: str, manifest: Manifest, order: Order, seq_len: int
) -> list[list[tuple[int, int, str]]]:
    """List the documents in the rows of some samples, as begin, end and origin of each.

    Of remote data a row is one document, because the list of documents would have to be downloaded.

    Args:
        samples: Global sample numbers.
        path: Directory or URL of the dataset.
        manifest: Manifest of the dataset.
        order: Data order of the run.
        seq_len: Inputs per row.
    """
    if is_remote(path):
        names = list(manifest.sources)
        return [
            [(0, seq_len, f"{names[s.source]} epoch {s.epoch} row {s.block}")]
            for s in map(order, samples)
        ]
    found = []
    for row in Tracer(Path(path), manifest, order, seq_len=seq_len).rows(samples):
        source, ends = manifest.sources[row.source], [*row.begins[1:], seq_len]
        found.append(
            [
                (max(begin, 0), min(end, seq_len), full_origin(source, document.origin))
                for begin, end, document in zip(row.begins, ends, row.documents, strict=True)
                if begin < seq_len  # one that begins there gives the row its last label only
            ]
        )
    return found


def chosen_rows(n: int, *, split: str, source: str, limit: int | None) -> list[int]:
    """Choose which of the n rows of a source in a split are read, in rising order.

    Args:
        n: Number of rows.
        split: validation or test.
        source: Name of the source.
        limit: Most rows to read; None reads all.
    """
    return sorted(permutation(n, "held-out", split, source).tolist()[:limit])


def rows_held_out(manifest: Manifest, split: str, *, seq_len: int, location: str) -> list[int]:
    """Count the rows of each source of prepared text in a held-out split (`held_out_rows`).

    Args:
        manifest: Manifest of the data.
        split: validation or test.
        seq_len: Inputs per row.
        location: Where the data lies, for the message.

    Raises:
        UserError: The split holds no row.
    """
    rows = [
        sum(held_out_rows([chunk.tokens for chunk in source.splits[split].chunks], seq_len))
        for source in manifest.sources.values()
    ]
    if not any(rows):
        raise UserError(
            f"the {split} split of {location} holds no text; prepare it again with more text,"
            f" or with a larger splits.{split} in the prepare config"
        )
    return rows


def spread_rows(
    manifest: Manifest, split: str, *, seq_len: int, tokens: int | None, location: str
) -> list[tuple[int, int]]:
    """Choose the (source, row) pairs to read of a held-out split, evenly over the sources.

    Args:
        manifest: Manifest of the data.
        split: validation or test.
        seq_len: Inputs per row.
        tokens: Most inputs over all sources; None reads all rows.
        location: Where the data lies, for the message.

    Raises:
        UserError: The split holds no text.
    """
    rows = rows_held_out(manifest, split, seq_len=seq_len, location=location)
    share = max(rows) if tokens is None else max(1, tokens // seq_len // sum(n > 0 for n in rows))
    return [
        (s, row)
        for s, (name, n) in enumerate(zip(manifest.sources, rows, strict=True))
        for row in chosen_rows(n, split=split, source=name, limit=share)
    ]
