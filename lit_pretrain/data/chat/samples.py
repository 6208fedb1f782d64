"""Samples: encoded rows by sample number, in training order and in the held-out selection.

Axes: B rows of a micro-batch, T tokens of a row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.chat.render import Rendered
from lit_pretrain.data.batches import PAD_ROW
from lit_pretrain.data.chat.encoded_rows import EncodedRows
from lit_pretrain.data.chat.epochs import Epochs, SourceRows
from lit_pretrain.data.held_out import chosen_rows

MULTIPLE = 64
"""Row lengths are rounded up to a multiple, because a compiled step makes a graph for each length.
"""


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
    shape = (len(sequences), min(seq_len, -(-longest // MULTIPLE) * MULTIPLE))
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
    """

    def __init__(
        self,
        rows: EncodedRows,
        *,
        weights: Mapping[str, float],
        places: Callable[[Any], int],
        capacity: int | None,
        seed: int,
    ) -> None:
        self.rows = rows
        self.weights = weights
        self.places = places
        self.capacity = capacity
        self.seed = seed

    @cached_property
    def order(self) -> Epochs:
        """The order of the training samples."""
        rows = [
            SourceRows(name, self._lengths(part.items), weight)
            for (name, weight), part in zip(
                self.weights.items(), self.rows.splits["train"], strict=True
            )
        ]
        return Epochs(rows, capacity=self.capacity, seed=self.seed)

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
