"""Samples: encoded rows by number, in the order of training and in the selection that is held
out.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Optional

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

# Padded: sequences of different lengths as rows of one micro-batch, for batches that are not
# packed.


MULTIPLE = 64
"""Rows are rounded up to it: a compiled step makes a graph for each length."""


class Rows(NamedTuple):
    """Padded rows by the layout of `lit_pretrain.batch`."""

    tokens_BT: Tensor
    labels_BT: Tensor
    doc_BT: Tensor


def pad_rows(sequences: Sequence[Optional[Rendered]], *, pad_id: int, seq_len: int) -> Rows:
    """Lay out sequences, padded on the right; None gives a row that holds nothing.

    Args:
        sequences: The sequences, none longer than `seq_len`.
        pad_id: What fills up.
        seq_len: Longest row.
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
    return Rows(*(torch.from_numpy(array) for array in (tokens, labels, doc)))


class EncodedSample(NamedTuple):
    """What one row of a batch is made of."""

    number: int
    """Global sample number; `PAD_ROW` where the sample only fills up a batch."""
    source: int
    items: tuple[Any, ...]
    """Encoded rows; none in a sample that fills up."""


FILLER = EncodedSample(PAD_ROW, 0, ())
"""Fills up the last batch of what is held out, and supervises nothing."""


class Samples(Dataset[EncodedSample]):
    """Samples by number, from a function of it."""

    def __init__(self, at: Callable[[int], EncodedSample]) -> None:
        self.at = at

    def __getitem__(self, n: int) -> EncodedSample:
        return self.at(n)


class RowSamples:
    """The samples that encoded rows make.

    Args:
        rows: The rows.
        weights: How often an epoch takes each row, by name of its source.
        places: Places that an encoded row takes in a pack.
        capacity: Places in a pack; None where every row is a sample.
        seed: Seed of the order.
    """

    def __init__(
        self,
        rows: EncodedRows,
        *,
        weights: Mapping[str, float],
        places: Callable[[Any], int],
        capacity: Optional[int],
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
            SourceRows(name, self._lengths(held.items), weight)
            for (name, weight), held in zip(
                self.weights.items(), self.rows.splits["train"], strict=True
            )
        ]
        return Epochs(rows, capacity=self.capacity, seed=self.seed)

    def train(self, n: int) -> EncodedSample:
        """Training sample n."""
        pack = self.order(n)
        items = self.rows.splits["train"][pack.source].items
        return EncodedSample(n, pack.source, tuple(items[row] for row in pack.rows))

    def wheres(self, n: int) -> list[str]:
        """File and number of the rows of training sample n."""
        pack = self.order(n)
        return [self.rows.splits["train"][pack.source].wheres[row] for row in pack.rows]

    def held_out(self, split: str, *, limit: Optional[int]) -> list[EncodedSample]:
        """The samples of a held-out split, the same at every validation and for every number of
        ranks.

        Args:
            split: validation or test.
            limit: Most rows of each source; None takes all.
        """
        samples: list[EncodedSample] = []
        for s, (name, held) in enumerate(zip(self.weights, self.rows.splits[split], strict=True)):
            items = [
                held.items[row]
                for row in chosen_rows(len(held.items), split=split, source=name, limit=limit)
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
