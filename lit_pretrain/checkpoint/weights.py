"""Weights: write checkpoints, and read the network's tensors from them or from other folders.

A place may hold them in one file, in a sharded folder, as an adapter, which is merged into its
base, or in the format of Hugging Face.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.checkpoint.adapted import AdapterRecord, adapter_hash, compose
from lit_pretrain.checkpoint.digests import write_archive
from lit_pretrain.checkpoint.hf_import import read_tensors
from lit_pretrain.checkpoint.layout import (
    NET_PREFIX,
    SCORE_KEY,
    CheckpointRecord,
    is_hf_folder,
    resolve,
)
from lit_pretrain.checkpoint.shards import load_archive, read_entries, read_shards
from lit_pretrain.errors import UserError


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint with its digest straight to its path, and wait until the disk holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, partial(torch.save, checkpoint))


def read_metadata(path: Path) -> Mapping[str, Any]:
    """Read the entries of a checkpoint; tensors in a file are mapped and not read."""
    return read_entries(path) if path.is_dir() else load_archive(path, mmap=True)


def read_stored(path: Path) -> dict[str, Tensor]:
    """Read the network's tensors that a place holds itself, in their own dtypes.

    An adapter's checkpoint holds the adapter alone.

    Args:
        path: A checkpoint or a Hugging Face folder.

    Raises:
        UserError: It holds no network.
    """
    if is_hf_folder(path):
        return read_tensors(path)
    if path.is_dir():
        whole: Mapping[str, Tensor] = read_shards(path, only={"state_dict"})["state_dict"]
    else:
        whole = read_metadata(path).get("state_dict", {})
    weights = {
        key.removeprefix(NET_PREFIX): value
        for key, value in whole.items()
        if key.startswith(NET_PREFIX)
    }
    if not weights:
        raise UserError(
            f"checkpoint {path} holds no network (no key starts with {NET_PREFIX!r}); did"
            " lit_pretrain write it?"
        )
    return weights


def read_score(path: Path) -> Tensor | None:
    """Read the score head of a checkpoint; None if it is not a reward model's."""
    whole = read_shards(path, only={"state_dict"}) if path.is_dir() else read_metadata(path)
    weight: Tensor | None = whole.get("state_dict", {}).get(SCORE_KEY)
    return weight


def read_record(path: Path) -> CheckpointRecord:
    """Read the record of a checkpoint.

    Raises:
        UserError: lit_pretrain did not write it.
    """
    record = CheckpointRecord.of(read_metadata(path))
    if record is None:
        raise UserError(f"{path} was not written by lit_pretrain: it carries no contract")
    return record


def read_adapter_record(path: Path) -> AdapterRecord | None:
    """Read the record of a place's adapter; None if the place holds a whole network."""
    return None if is_hf_folder(path) else AdapterRecord.of(read_metadata(path))


def weights_identity(where: str) -> str:
    """Hash weights by content (sha256); those of an adapter together with its base's hash.

    Args:
        where: A run folder, a checkpoint or a Hugging Face folder.
    """
    path = _place(where)
    record = read_adapter_record(path)
    return adapter_hash(read_stored(path), beneath="" if record is None else record.base_hash)


def read_weights(where: str, *, which: str = "last", base: str | None = None) -> dict[str, Tensor]:
    """Read the network's state dict, whole, from a run, a checkpoint or a Hugging Face folder.

    An adapter is put into its base's matrices.

    Args:
        where: The place.
        which: Which checkpoint of a run folder: last or best.
        base: Where the base of an adapter lies, if it has moved since training.

    Raises:
        UserError: There is no complete checkpoint, it holds no network, or its base is gone or has
            changed.
    """
    path = _place(where, which)
    stored, record = read_stored(path), read_adapter_record(path)
    if record is None:
        if base is not None:
            raise UserError(f"{where} is a whole network and has no base: leave --base out")
        return stored
    beneath = record.find_base(path) if base is None else base
    record.check_base(weights_identity(beneath), beneath, str(path))
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
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in weights and own[k].shape != weights[k].shape
    ]
    if missing or extra or shapes:
        raise UserError(
            f"the weights of {where} do not fit this network: missing {missing[:3]}, unknown"
            f" {extra[:3]}, other shape {shapes[:3]}; use the network of that run (its config.yaml,"
            " model.net)"
        )
    net.load_state_dict(weights)
