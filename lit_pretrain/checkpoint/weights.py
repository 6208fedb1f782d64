"""Weights: write checkpoints, and read the network's tensors from them or from other folders.

A place may hold them in one file, in a sharded folder or in the format of Hugging Face. A run with
an adapter stores the adapter alone, with a record of the base that it belongs to; reading it merges
the two into one network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.adapter import (
    FIRST_ROW,
    ROWS,
    LoRA,
    is_adapter_tensor,
    merged_weight,
    stored_factors,
)
from lit_pretrain.adapter.new_tokens import NewTokens, extend_rows, extend_weights
from lit_pretrain.adapter.nf4 import dequantize, quantize
from lit_pretrain.checkpoint.digests import write_archive
from lit_pretrain.checkpoint.hf_import import read_tensors
from lit_pretrain.checkpoint.layout import (
    ADAPTER_KEY,
    AVERAGE_KEY,
    NET_PREFIX,
    SCORE_KEY,
    CheckpointEntries,
    CheckpointRecord,
    is_hf_folder,
    resolve,
)
from lit_pretrain.checkpoint.shards import load_archive, read_entries, read_shards
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import padded_vocab_size


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint with its digest straight to its path, and wait until the disk holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, partial(torch.save, checkpoint))


def read_metadata(path: Path) -> Mapping[str, Any]:
    """Read the entries of a checkpoint; tensors in a file are mapped and not read."""
    return read_entries(path) if path.is_dir() else load_archive(path, mmap=True)


def read_stored(path: Path, *, average: bool = False) -> dict[str, Tensor]:
    """Read the network's tensors that a place holds itself, in their own dtypes.

    An adapter's checkpoint holds the adapter alone.

    Args:
        path: A checkpoint or a Hugging Face folder.
        average: Whether to take the moving average of what is trained, and not the last weights.

    Raises:
        UserError: It holds no network, or no average.
    """
    if is_hf_folder(path):
        if average:
            raise UserError(f"{path} is a Hugging Face folder, which holds no average of weights")
        return read_tensors(path)
    whole = _state_dict(path) | (read_average(path) if average else {})
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


def _state_dict(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        # Moments may take twice the memory of the weights, and nobody asks for them here.
        return dict(read_shards(path, only={"state_dict"})["state_dict"])
    return dict(read_metadata(path).get("state_dict", {}))


def read_average(path: Path) -> dict[str, Tensor]:
    """Read the moving average of what a run trains, by its keys in `state_dict`.

    Raises:
        UserError: The checkpoint holds none.
    """
    record = read_metadata(path).get(AVERAGE_KEY)
    if record is None:
        raise UserError(
            f"{path} holds no average of weights: train with --model.ema_half_life TOKENS, or take"
            " the mean of several checkpoints by `lit_pretrain average`"
        )
    if not record["updates"]:
        raise UserError(
            f"{path} holds no average of weights yet: the first is taken later in the run"
        )
    if path.is_dir():
        state = read_shards(path, only={"optimizer_0"})["optimizer_0"]["state"]
        return {name: state[name]["average"] for name in record["names"]}
    # In shards the state goes by names, in a file by numbers that follow the optimizer's groups.
    saved = read_metadata(path)["optimizer_states"][0]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    return {
        name: saved["state"][number]["average"]
        for name, number in zip(record["names"], numbers, strict=True)
    }


def read_score(path: Path, *, average: bool = False) -> Tensor | None:
    """Read the score head of a checkpoint, or its average; None if it is no reward model's."""
    weight = _state_dict(path).get(SCORE_KEY)
    return weight if weight is None or not average else read_average(path)[SCORE_KEY]


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


def read_weights(
    where: str, *, which: str = "last", base: str | None = None, average: bool = False
) -> dict[str, Tensor]:
    """Read the network's state dict, whole, from a run, a checkpoint or a Hugging Face folder.

    An adapter is put into its base's matrices.

    Args:
        where: The place.
        which: Which checkpoint of a run folder: last or best.
        base: Where the base of an adapter lies, if it has moved since training.
        average: As for `read_stored`.

    Raises:
        UserError: There is no complete checkpoint, it holds no network, or its base is gone or has
            changed.
    """
    path = _place(where, which)
    stored, record = read_stored(path, average=average), read_adapter_record(path)
    if record is None:
        if base is not None:
            raise UserError(f"{where} is a whole network and has no base: leave --base out")
        return stored
    beneath = record.find_base(path) if base is None else base
    # By content: a run that has gone on since then has other weights under the same path.
    record.check_base(weights_identity(beneath), beneath, str(path))
    return compose(read_weights(beneath), stored, record.adapter)


def _place(where: str, which: str = "last") -> Path:
    return Path(where) if is_hf_folder(Path(where)) else resolve(where, which=which)


def load_weights(
    net: nn.Module,
    where: str,
    *,
    which: str = "last",
    average: bool = False,
    new_tokens: NewTokens | None = None,
) -> None:
    """Give a whole network the weights of a checkpoint, or their moving average.

    Args:
        net: The network.
        where: A run folder, a checkpoint or a Hugging Face folder.
        which: Which checkpoint of a run folder: last or best.
        average: Read the moving average of the weights.
        new_tokens: Tokens that the network has and the checkpoint has not.

    Raises:
        UserError: Names or shapes differ; the first few are named.
    """
    weights = read_weights(where, which=which, average=average)
    own = net.state_dict()
    if new_tokens is not None:
        weights = extend_weights(weights, new_tokens, len(own["token_embedding.weight"]))
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


# ------------------------------------------------------------------ adapters


@dataclass(frozen=True)
class AdapterRecord:
    """Describe the adapter of a checkpoint and its base."""

    adapter: LoRA
    """Its settings."""
    base: str
    """Where the base's weights lay: a checkpoint or a Hugging Face folder."""
    base_from_run: str
    """The same place as seen from the run's folder, for runs that have moved together."""
    base_hash: str
    """Identity of the base's weights."""

    def stored(self) -> dict[str, object]:
        """Return the entry of a checkpoint under `ADAPTER_KEY`: primitives only."""
        settings = asdict(self.adapter)
        return {**asdict(self), "adapter": {**settings, "targets": list(settings["targets"])}}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> AdapterRecord | None:
        """Read the record of a checkpoint; None if it holds a whole network."""
        stored = checkpoint.get(ADAPTER_KEY)
        if stored is None:
            return None
        settings = {**stored["adapter"], "targets": tuple(stored["adapter"]["targets"])}
        return cls(LoRA(**settings), stored["base"], stored["base_from_run"], stored["base_hash"])

    def find_base(self, checkpoint: Path) -> str:
        """Find the base, where it lay in training or beside the run.

        Args:
            checkpoint: The adapter's checkpoint, in its run's folder.

        Raises:
            UserError: It lies in neither place.
        """
        beside = os.path.normpath(checkpoint.parent.parent / self.base_from_run)
        for place in (self.base, beside):
            if Path(place).exists():
                return place
        raise UserError(
            f"{checkpoint} is an adapter, and its base {self.base} (sha256 {self.base_hash[:16]})"
            f" is gone, also from {beside}; put it back, or say where it is now: lit_pretrain merge"
            " RUN OUT --base PLACE writes a run that needs no base"
        )

    def check_base(self, found_hash: str, found: str, where: str) -> None:
        """Refuse weights that are not those that the adapter was trained on.

        Raises:
            UserError: Names both hashes.
        """
        if found_hash != self.base_hash:
            raise UserError(
                f"the adapter of {where} was trained on the base {self.base} with sha256"
                f" {self.base_hash}, but {found} has {found_hash}: with other weights beneath it an"
                " adapter means nothing. Name the right base with --from"
            )


def adapter_hash(tensors: Mapping[str, Tensor], *, beneath: str = "") -> str:
    """Hash names, dtypes, shapes and bytes of tensors, in the order of their names (sha256).

    Args:
        tensors: The tensors as they are stored, not as a precision has rounded them.
        beneath: Identity of the base's weights if the tensors are an adapter.
    """
    digest = hashlib.sha256(beneath.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"\x00{name}\x00{tensor.dtype}\x00{list(tensor.shape)}\x00".encode())
        # As bytes, because numpy knows no bf16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def compose(
    base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], adapter: LoRA
) -> dict[str, Tensor]:
    """Merge an adapter into the weights of its base.

    Args:
        base: The base's state dict.
        tensors: The adapter's.
        adapter: Its settings; matrices quantised in training are taken as training saw them.
    """
    weights = dict(base)
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        own = {
            key.rpartition(".")[2]: value
            for key, value in tensors.items()
            if key.rpartition(".")[0] == name
        }
        if ROWS in own:
            rows, first = own[ROWS], int(own[FIRST_ROW])
            weight = weights[f"{name}.weight"]
            size = max(len(weight), padded_vocab_size(first + len(rows)))
            weight = extend_rows(weight, size, first, ())
            weight[first : first + len(rows)] = rows
            weights[f"{name}.weight"] = weight
            continue
        weight = weights[f"{name}.weight"].float()
        if adapter.quantize is not None:
            weight = dequantize(quantize(weight), tuple(weight.shape))
        A, B = stored_factors(own)
        merged = merged_weight(
            weight, A, B, scale=adapter.scale, magnitude=own.get("lora_magnitude")
        )
        weights[f"{name}.weight"] = merged
    return weights


def keep_adapter(checkpoint: CheckpointEntries, record: AdapterRecord | None) -> None:
    """Reduce a network's checkpoint to the adapter, with its record on the rank that writes."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {
        key: value
        for key, value in state.items()
        if not key.startswith(NET_PREFIX) or is_adapter_tensor(key)
    }
    if record is not None:
        checkpoint[ADAPTER_KEY] = record.stored()


def check_adapter(
    checkpoint: Mapping[str, Any], names: set[str], *, base: str, base_hash: str | None
) -> None:
    """Refuse to go on from an adapter that has another base or other tensors.

    Args:
        checkpoint: The checkpoint of an interrupted run.
        names: Keys of the state dict of the network that is to go on.
        base: Where the weights beneath its adapter lie.
        base_hash: Their identity, on ranks that know it.

    Raises:
        UserError: Names both hashes, or tensors of either.
    """
    record = AdapterRecord.of(checkpoint)
    if record is None:
        raise UserError(
            "this checkpoint holds a whole network, but the run has model.adapter; start from it"
            " with --from"
        )
    if base_hash is not None:
        record.check_base(base_hash, base, "the checkpoint")
    if "state_dict" not in checkpoint:
        return  # a sharded strategy has loaded it itself
    saved, own = (
        {key for key in keys if is_adapter_tensor(key)}
        for keys in (checkpoint["state_dict"], names)
    )
    if saved != own:
        raise UserError(
            f"the checkpoint's adapter is another: it lacks {sorted(own - saved)[:3]} and has"
            f" {sorted(saved - own)[:3]}"
        )
