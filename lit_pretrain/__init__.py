"""lit_pretrain: raw text to a base model, an assistant and a task model, in one framework.

The command line is `lit_pretrain VERB`. Scripts and notebooks begin with `load` and `open_data`
(docs/guides/python.md); nothing heavy is imported before they are called.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_pretrain.interface import LoadedModel, OpenDataset

__version__ = "0.1.0"
__all__ = ["load", "open_data"]

if sys.platform == "win32":
    warnings.warn(
        "on Windows lit_pretrain only reads: training, prepare, join, scaling sweep and what writes"
        " runs or exports need POSIX (file locks, signals, syncing of folders); use WSL 2 for them",
        stacklevel=2,
    )


def load(
    where: str | PathLike[str],
    *,
    checkpoint: str = "last",
    device: str = "auto",
    dtype: str = "float32",
    accept: Sequence[str] = (),
) -> LoadedModel:
    """Load a trained model, ready to compute logits and losses and to write text.

    Args:
        where: A run folder, one checkpoint, or a Hugging Face folder.
        checkpoint: For a run folder: last or best.
        device: auto (a GPU if there is one), cpu, cuda, or another that torch finds.
        dtype: Of the weights, and so of the arithmetic: float32 or bfloat16.
        accept: Fields of the contract in which the run's files may differ from its record:
            tokenizer, template, vocabulary, bos_id, eos_id, stop_ids.

    Raises:
        lit_pretrain.errors.UserError: There is no such run, checkpoint or device; or its tokenizer
            or template was changed.
    """
    from lit_pretrain.interface import LoadedModel

    return LoadedModel.from_place(
        fspath(where), checkpoint=checkpoint, device=device, dtype=dtype, accept=accept
    )


def open_data(path: str | PathLike[str]) -> OpenDataset:
    """Open a dataset that `lit_pretrain prepare` wrote: its documents, and batches of them.

    Args:
        path: Its directory, or the s3:// URL of one.

    Raises:
        lit_pretrain.errors.UserError: There is no dataset, or it is damaged.
    """
    from lit_pretrain.interface import OpenDataset

    return OpenDataset(fspath(path))
