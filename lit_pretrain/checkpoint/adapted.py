"""Adapter checkpoints: they hold the adapter alone, and name the base that it belongs to.

`weights.py` reads base and adapter as one network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.adapter import LoRA, is_adapter_tensor, merged_weight
from lit_pretrain.adapter.nf4 import dequantize, quantize
from lit_pretrain.checkpoint.layout import ADAPTER_KEY, NET_PREFIX
from lit_pretrain.errors import UserError


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
        weight = weights[f"{name}.weight"].float()
        if adapter.quantize is not None:
            weight = dequantize(quantize(weight), tuple(weight.shape))
        A, B = own["lora_A"].float(), own["lora_B"].float()
        if "lora_A0" in own:
            A, B = (
                torch.cat([A, own["lora_A0"].float()]),
                torch.cat([B, -own["lora_B0"].float()], dim=1),
            )
        merged = merged_weight(
            weight, A, B, scale=adapter.scale, magnitude=own.get("lora_magnitude")
        )
        weights[f"{name}.weight"] = merged
    return weights


def keep_adapter(checkpoint: dict[str, Any], record: AdapterRecord | None) -> None:
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
