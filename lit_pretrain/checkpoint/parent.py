"""Parent: what a stage takes its first weights from, a run of ours or a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from lit_pretrain.checkpoint.contract import KEY
from lit_pretrain.checkpoint.find import config_of, resolve
from lit_pretrain.checkpoint.hf_import import is_hf_folder, read_shape
from lit_pretrain.checkpoint.weights import read_metadata


@dataclass(frozen=True)
class Parent:
    """A parent, found and read as far as its shape."""

    path: Path
    """A checkpoint of ours, or a Hugging Face folder."""
    shape: dict[str, Any]
    """The fields of its `ModelConfig`."""
    tokenizer_hash: Optional[str]
    """Identity of the tokenizer it was trained with; None for a Hugging Face folder, whose own files say it."""


def find_parent(where: str) -> Parent:
    """Find a parent.

    Args:
        where: A run folder, one of its checkpoints, or a Hugging Face folder.

    Raises:
        UserError: It is none of these, or cannot be read.
    """
    folder = Path(where)
    if is_hf_folder(folder):
        return Parent(folder, read_shape(folder), None)
    path = resolve(where)
    saved = read_metadata(path).get(KEY, {})
    return Parent(path, config_of(path)["model"]["net"], saved.get("contract", {}).get("data.tokenizer"))
