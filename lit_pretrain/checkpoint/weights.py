"""Weights: the network's tensors out of a checkpoint, whole, sharded or an adapter's, or out of a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from lit_pretrain.checkpoint.adapted import AdapterRecord, compose, content_hash
from lit_pretrain.checkpoint.consolidate import read_folder
from lit_pretrain.checkpoint.find import resolve
from lit_pretrain.checkpoint.hf_import import is_hf_folder, read_tensors
from lit_pretrain.errors import UserError

PREFIX = "net."
SCORE = "score.weight"
"""Key of a reward model's score head, (1, D), in a checkpoint."""


def read_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; the tensors of a file are mapped and not read."""
    if path.is_dir():
        return dict(torch.load(path / "meta.pt", map_location="cpu", weights_only=True))
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def read_stored(path: Path) -> dict[str, Tensor]:
    """The network's tensors that a place holds itself, in their own dtypes: of an adapter's checkpoint the adapter's only.

    Args:
        path: A checkpoint or a Hugging Face folder.

    Raises:
        UserError: It holds no network.
    """
    if is_hf_folder(path):
        return read_tensors(path)
    if path.is_dir():
        whole: Mapping[str, Tensor] = read_folder(path, only={"state_dict"})["state_dict"]
    else:
        whole = read_metadata(path).get("state_dict", {})
    weights = {key.removeprefix(PREFIX): value for key, value in whole.items() if key.startswith(PREFIX)}
    if not weights:
        raise UserError(f"checkpoint {path} holds no network (no key starts with {PREFIX!r}); was it made by lit_pretrain?")
    return weights


def read_score(path: Path) -> Optional[Tensor]:
    """The score head of a checkpoint, if it is a reward model's."""
    whole = read_folder(path, only={"state_dict"}) if path.is_dir() else read_metadata(path)
    weight: Optional[Tensor] = whole.get("state_dict", {}).get(SCORE)
    return weight


def read_record(path: Path) -> Optional[AdapterRecord]:
    """What a place says of its adapter; None if it is a whole network."""
    return None if is_hf_folder(path) else AdapterRecord.of(read_metadata(path))


def identity(where: str) -> str:
    """sha256 of weights by content; of an adapter's checkpoint, over the adapter and the identity of its base.

    Args:
        where: A run folder, a checkpoint or a Hugging Face folder.
    """
    path = _place(where)
    record = read_record(path)
    return content_hash(read_stored(path), beneath="" if record is None else record.base_hash)


def read_weights(where: str, *, which: str = "last", base: Optional[str] = None) -> dict[str, Tensor]:
    """The network's state dict, consolidated, from a run folder, a checkpoint or a Hugging Face folder.

    An adapter is put into its base's matrices.

    Args:
        where: The place.
        which: Of a run folder, its last or its best checkpoint.
        base: Where the base of an adapter lies, if not where it lay in training.

    Raises:
        UserError: There is no complete checkpoint, it holds no network, or its base is gone or has changed.
    """
    path = _place(where, which)
    stored, record = read_stored(path), read_record(path)
    if record is None:
        if base is not None:
            raise UserError(f"{where} is a whole network and has no base: leave --base out")
        return stored
    beneath = record.find_base(path) if base is None else base
    record.check_base(identity(beneath), beneath, str(path))
    return compose(read_weights(beneath), stored, record.adapter)


def _place(where: str, which: str = "last") -> Path:
    return Path(where) if is_hf_folder(Path(where)) else resolve(where, which=which)


def load_weights(net: nn.Module, where: str, *, which: str = "last") -> None:
    """Give a whole network the weights of a checkpoint.

    Raises:
        UserError: Names or shapes differ; the first few are named.
    """
    weights = read_weights(where, which=which)
    own = net.state_dict()
    missing = sorted(set(own) - set(weights))
    extra = sorted(set(weights) - set(own))
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in own if k in weights and own[k].shape != weights[k].shape
    ]
    if missing or extra or shapes:
        raise UserError(
            f"the weights of {where} do not fit this network: missing {missing[:3]}, unknown {extra[:3]}, "
            f"other shape {shapes[:3]}; use the network of that run (its config.yaml, model.net)"
        )
    net.load_state_dict(weights)
