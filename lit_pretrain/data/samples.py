"""Samples: encoded rows by number, in the order of training and in the selection that is held out."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from lit_pretrain.data.batches import PAD_ROW
from lit_pretrain.data.encoded import EncodedRows
from lit_pretrain.data.epochs import Epochs, SourceRows
from lit_pretrain.data.held_out import chosen_rows


class Sample(NamedTuple):
    """What one row of a batch is made of."""

    number: int
    """Global sample number; `PAD_ROW` where the sample only fills up a batch."""
    source: int
    items: tuple[Any, ...]
    """Encoded rows; none in a sample that fills up."""


FILLER = Sample(PAD_ROW, 0, ())
"""Fills up the last batch of what is held out, and supervises nothing."""


class Samples(Dataset[Sample]):
    """Samples by number, from a function of it."""

    def __init__(self, at: Callable[[int], Sample]) -> None:
        self.at = at

    def __getitem__(self, n: int) -> Sample:
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
        self, rows: EncodedRows, *, weights: Mapping[str, float], places: Callable[[Any], int], capacity: Optional[int], seed: int
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
            for (name, weight), held in zip(self.weights.items(), self.rows.splits["train"], strict=True)
        ]
        return Epochs(rows, capacity=self.capacity, seed=self.seed)

    def train(self, n: int) -> Sample:
        """Training sample n."""
        pack = self.order(n)
        items = self.rows.splits["train"][pack.source].items
        return Sample(n, pack.source, tuple(items[row] for row in pack.rows))

    def wheres(self, n: int) -> list[str]:
        """File and number of the rows of training sample n."""
        pack = self.order(n)
        return [self.rows.splits["train"][pack.source].wheres[row] for row in pack.rows]

    def held_out(self, split: str, *, limit: Optional[int]) -> list[Sample]:
        """The samples of a held-out split, the same at every validation and for every number of ranks.

        Args:
            split: validation or test.
            limit: Most rows of each source; None takes all.
        """
        samples: list[Sample] = []
        for s, (name, held) in enumerate(zip(self.weights, self.rows.splits[split], strict=True)):
            items = [held.items[row] for row in chosen_rows(len(held.items), split=split, source=name, limit=limit)]
            if not items:
                continue
            order = Epochs([SourceRows(name, self._lengths(items))], capacity=self.capacity, seed=0)
            for n in range(order.first(1)):
                samples.append(Sample(len(samples), s, tuple(items[row] for row in order(n).rows)))
        return samples

    def _lengths(self, items: Sequence[Any]) -> npt.NDArray[np.int64]:
        return np.array([self.places(item) for item in items], dtype=np.int64)
