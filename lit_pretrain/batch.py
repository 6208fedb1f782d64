"""Batch: the one contract that data, model, objective and stage share."""

from typing import NamedTuple

from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is not supervised; the value torch's own losses ignore."""


class Batch(NamedTuple):
    """One micro-batch of packed rows: B rows, T tokens, all tensors on one device.

    A named tuple, so that Lightning, `pin_memory` and `torch.compile` take it apart and put it together without help.
    """

    tokens_BT: Tensor
    """Input token ids, int64."""
    labels_BT: Tensor
    """Target token ids, int64, already shifted: labels[t] follows tokens[t]; IGNORE_INDEX where unsupervised."""
    doc_BT: Tensor
    """Number of the document within its row (0, 1, 2, ...), int32. Attention does not cross it."""
    source_B: Tensor
    """Index of the row's source in the mixture, int64."""
    index_B: Tensor
    """Global sample number of the row in the data order, int64; -1 for a row that only pads a batch."""


class DataContract(NamedTuple):
    """What the data promises to a stage; the stage refuses a network or a parent that does not fit it."""

    sources: tuple[str, ...]
    """Names of the sources, in the order of `Batch.source_B`."""
    vocab_size: int
    """Number of token ids; every id is below it."""
    tokenizer_hash: str
    manifest_hash: str
    token_bytes: tuple[int, ...]
    """UTF-8 bytes that each token id stands for (0 for special tokens); bits per byte are computed from it."""
    seq_len: int
    """Inputs per row."""
    global_batch_tokens: int
    """Inputs per optimizer step, over all ranks and micro-batches."""
