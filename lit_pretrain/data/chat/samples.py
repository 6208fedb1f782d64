"""Samples: encoded rows by sample number, in the order of the epochs and in the held-out selection.

Which rows a sample holds is a pure function of (row lengths, weights, seed, n). An epoch takes
every row of a source `weight` times, so once if the weight is 1. It shuffles the rows, packs them
(or leaves each alone), and shuffles the packs of all sources together. Nothing of it depends on
ranks or micro-batches.

Axes: B rows of a micro-batch, T tokens of a row.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from math import floor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_pretrain.batch import IGNORE_INDEX, ROW_MULTIPLE
from lit_pretrain.chat.render import Rendered
from lit_pretrain.data.batches import PAD_ROW
from lit_pretrain.data.chat.encoded_rows import EncodedRows
from lit_pretrain.data.text.order import chosen_rows
from lit_pretrain.hashing import permutation
from lit_pretrain.skips import Skips


def best_fit(
    lengths: npt.NDArray[np.int64], capacity: int, order: npt.NDArray[np.int64]
) -> list[list[int]]:
    """Pack rows by best-fit decreasing: the longest first, each into the fullest pack with room.

    Johnson 1973; for training Ding et al. 2024, "Fewer Truncations Improve Language Modeling".

    Args:
        lengths: Lengths of the rows, at most `capacity`.
        capacity: Size of a pack.
        order: The rows to pack, each as often as it is listed; rows of equal length keep this
            order.

    Returns:
        The packs, each with its rows in the order in which they were added.
    """
    sorted_rows: Sequence[int] = order[np.argsort(-lengths[order], kind="stable")].tolist()
    packs: list[list[int]] = []
    rooms: list[int] = []  # distinct free lengths, in rising order
    having: dict[int, list[int]] = {}  # free length -> packs with it, of which the last is taken
    for row in sorted_rows:
        length = int(lengths[row])
        assert 0 < length <= capacity, f"row {row} has {length} places of {capacity}"
        i = bisect_left(rooms, length)
        if i == len(rooms):
            pack, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[i]
            pack = having[room].pop()
            if not having[room]:
                del having[room], rooms[i]
        packs[pack].append(row)
        room -= length
        if room:
            if room not in having:
                having[room] = []
                insort(rooms, room)
            having[room].append(pack)
    return packs


@dataclass(frozen=True)
class SourceRows:
    """The training rows of one source."""

    name: str
    lengths: npt.NDArray[np.int64]
    """Tokens of a pack that each row takes."""
    weight: float = 1.0
    """How often an epoch takes each row. Below 1, successive epochs take successive parts."""


class Pack(NamedTuple):
    """The rows of one sample."""

    epoch: int
    source: int
    rows: tuple[int, ...]
    """Numbers of rows of the source, in their order within the sample."""


class Epochs:
    """The order of the samples.

    Args:
        sources: The sources; at least one has a row.
        capacity: Tokens of a pack; None makes each row a sample of its own.
        seed: Seed of the order.
        skips: Ranges of samples that are left out. Sample n is the n-th that is read; epochs begin
            and end where they would without skips.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        capacity: int | None,
        seed: int,
        skips: Skips = Skips(),
    ) -> None:
        self.sources = tuple(sources)
        self.capacity = capacity
        self.seed = seed
        self.skips = skips
        self._ends: list[int] = []
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __call__(self, n: int) -> Pack:
        """Return the rows of sample n."""
        n = self.skips.place(n)
        e = self.epoch_of(n)
        return self._epoch(e)[n - self.first(e)]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def epoch_of(self, n: int) -> int:
        """Return the epoch of sample n."""
        while not self._ends or self._ends[-1] <= n:
            self._grow()
        return bisect_right(self._ends, n)

    def first(self, epoch: int) -> int:
        """Return the number of the first sample of an epoch."""
        while len(self._ends) < epoch:
            self._grow()
        return self._ends[epoch - 1] if epoch else 0

    def in_epochs(self, n: int) -> float:
        """Convert the samples 0..n-1 to a number of epochs."""
        if n == 0:
            return 0.0
        e = self.epoch_of(n - 1)
        return e + (n - self.first(e)) / (self.first(e + 1) - self.first(e))

    def until(self, epochs: float) -> float:
        """Convert a number of epochs to samples; a partial epoch may give a fraction."""
        whole = floor(epochs)
        begin, end = self.first(whole), self.first(whole + 1)
        return begin + (epochs - whole) * (end - begin)

    def _grow(self) -> None:
        # The number of packs depends on the lengths alone, so it is the same for all epochs as long
        # as each takes the same rows.
        same = bool(self._ends) and all(
            float(source.weight).is_integer() for source in self.sources
        )
        count = self._ends[0] if same else len(self._epoch(len(self._ends)))
        self._ends.append((self._ends[-1] if self._ends else 0) + count)

    def _make_epoch(self, epoch: int) -> list[Pack]:
        packs: list[Pack] = []
        for s, source in enumerate(self.sources):
            rows = self._rows(source, epoch)
            groups = (
                [[int(row)] for row in rows]
                if self.capacity is None
                else best_fit(source.lengths, self.capacity, rows)
            )
            packs += [Pack(epoch, s, tuple(group)) for group in groups]
        return [packs[i] for i in permutation(len(packs), self.seed, "packs", epoch)]

    def _rows(self, source: SourceRows, epoch: int) -> npt.NDArray[np.int64]:
        """Return what an epoch takes of a source: a stretch of endless shuffled passes."""
        n = len(source.lengths)
        weight = Fraction(str(source.weight))  # exactly 0.3, not the nearest binary number
        begin, end = (epoch * weight * n).__floor__(), ((epoch + 1) * weight * n).__floor__()
        taken = []
        while begin < end:
            k, place = divmod(begin, n)
            upto = min(n, place + end - begin)
            taken.append(permutation(n, self.seed, "rows", source.name, k)[place:upto])
            begin += upto - place
        return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)


class PaddedRows(NamedTuple):
    """Padded rows in the layout of `lit_pretrain.batch`."""

    tokens_BT: Tensor
    labels_BT: Tensor
    doc_BT: Tensor


def pad_rows(sequences: Sequence[Rendered | None], *, pad_id: int, seq_len: int) -> PaddedRows:
    """Lay out sequences as rows of one micro-batch, padded on the right; None gives an empty row.

    Args:
        sequences: The sequences, none longer than `seq_len`.
        pad_id: Token id of the padding.
        seq_len: Most tokens of a row.
    """
    longest = max((len(sequence.ids) for sequence in sequences if sequence is not None), default=1)
    assert longest <= seq_len, f"a sequence of {longest} tokens is longer than {seq_len=}"
    shape = (len(sequences), min(seq_len, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE))
    tokens, labels, doc = (
        np.full(shape, pad_id, np.int64),
        np.full(shape, IGNORE_INDEX, np.int64),
        np.ones(shape, np.int32),
    )
    for b, sequence in enumerate(sequences):
        if sequence is not None:
            n = len(sequence.ids)
            tokens[b, :n], doc[b, :n] = sequence.ids, 0
            labels[b, : n - 1] = np.where(sequence.learned[1:], sequence.ids[1:], IGNORE_INDEX)
    return PaddedRows(*(torch.from_numpy(array) for array in (tokens, labels, doc)))


class EncodedSample(NamedTuple):
    """The content of one row of a batch."""

    number: int
    """Global sample number; `PAD_ROW` if the sample only fills up a batch."""
    source: int
    items: tuple[Any, ...]
    """Encoded rows; none in a sample that only fills up a batch."""


FILLER = EncodedSample(PAD_ROW, 0, ())
"""Fills up the last held-out batch and supervises nothing."""


class Samples(Dataset[EncodedSample]):
    """A dataset that computes each sample from its number."""

    def __init__(self, at: Callable[[int], EncodedSample]) -> None:
        self.at = at

    def __getitem__(self, n: int) -> EncodedSample:
        return self.at(n)


class RowSamples:
    """Numbers the samples that encoded rows form.

    Args:
        rows: The rows.
        weights: Source -> how often an epoch takes each of its rows.
        places: Computes how many tokens of a pack an encoded row takes.
        capacity: Tokens of a pack; None makes each row a sample of its own.
        seed: Seed of the order.
        skips: Ranges of samples that training leaves out.
    """

    def __init__(
        self,
        rows: EncodedRows,
        *,
        weights: Mapping[str, float],
        places: Callable[[Any], int],
        capacity: int | None,
        seed: int,
        skips: Skips = Skips(),
    ) -> None:
        self.rows = rows
        self.weights = weights
        self.places = places
        self.capacity = capacity
        self.seed = seed
        self.skips = skips

    @cached_property
    def order(self) -> Epochs:
        """The order of the training samples."""
        rows = [
            SourceRows(name, self._lengths(part.items), weight)
            for (name, weight), part in zip(
                self.weights.items(), self.rows.splits["train"], strict=True
            )
        ]
        return Epochs(rows, capacity=self.capacity, seed=self.seed, skips=self.skips)

    def train(self, n: int) -> EncodedSample:
        """Return training sample n."""
        pack = self.order(n)
        items = self.rows.splits["train"][pack.source].items
        return EncodedSample(n, pack.source, tuple(items[row] for row in pack.rows))

    def origins(self, n: int) -> list[str]:
        """Return file and number of each row of training sample n."""
        pack = self.order(n)
        return [self.rows.splits["train"][pack.source].origins[row] for row in pack.rows]

    def held_out(self, split: str, *, limit: int | None) -> list[EncodedSample]:
        """Return the samples of a held-out split.

        They are the same at every validation and for every number of ranks.

        Args:
            split: validation or test.
            limit: Most rows of each source; None takes all.
        """
        samples: list[EncodedSample] = []
        for s, (name, part) in enumerate(zip(self.weights, self.rows.splits[split], strict=True)):
            items = [
                part.items[row]
                for row in chosen_rows(len(part.items), split=split, source=name, limit=limit)
            ]
            if not items:
                continue
            order = Epochs([SourceRows(name, self._lengths(items))], capacity=self.capacity, seed=0)
            for n in range(order.first(1)):
                samples.append(
                    EncodedSample(len(samples), s, tuple(items[row] for row in order(n).rows))
                )
        return samples

    def _lengths(self, items: Sequence[Any]) -> npt.NDArray[np.int64]:
        return np.array([self.places(item) for item in items], dtype=np.int64)
