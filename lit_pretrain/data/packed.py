"""Packed: conversations laid end to end in rows of one length, each a document of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.data.render import Rendered


def places(rendered: Rendered) -> int:
    """Places that a conversation takes: its last token is a label only."""
    return len(rendered.ids) - 1


def pack_rows(packs: Sequence[Sequence[Rendered]], *, pad_id: int, seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out conversations: (tokens, labels, doc), each (B, T).

    A conversation of n tokens gives n - 1 inputs and as many labels, so that no label ever reaches into the next one. What is left of a
    row is padding, a document of its own without labels.

    Args:
        packs: Of each row its conversations; no row has more than `seq_len` places.
        pad_id: What fills up.
        seq_len: Inputs per row, T.
    """
    shape = (len(packs), seq_len)
    tokens, labels, doc = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64), np.zeros(shape, np.int32)
    for b, pack in enumerate(packs):
        begin = 0
        for number, (ids, learned, _) in enumerate(pack):
            end = begin + len(ids) - 1
            tokens[b, begin:end], doc[b, begin:end] = ids[:-1], number
            labels[b, begin:end] = np.where(learned[1:], ids[1:], IGNORE_INDEX)
            begin = end
        assert begin <= seq_len, f"a pack has {begin} places of {seq_len}"
        doc[b, begin:] = len(pack)
    return torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(doc)
