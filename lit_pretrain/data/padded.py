"""Padded: sequences of different lengths as rows of one micro-batch, for batches that are not packed."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.data.render import Rendered

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
    tokens, labels, doc = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64), np.ones(shape, np.int32)
    for b, sequence in enumerate(sequences):
        if sequence is not None:
            n = len(sequence.ids)
            tokens[b, :n], doc[b, :n] = sequence.ids, 0
            labels[b, : n - 1] = np.where(sequence.learned[1:], sequence.ids[1:], IGNORE_INDEX)
    return Rows(*(torch.from_numpy(array) for array in (tokens, labels, doc)))
