"""Adapter only: what a checkpoint of a run with an adapter keeps, and what such a run goes on from."""

from collections.abc import Mapping
from typing import Any, Optional

from lit_pretrain.adapter import is_adapter_tensor
from lit_pretrain.checkpoint.adapted import RECORD, AdapterRecord
from lit_pretrain.checkpoint.weights import PREFIX
from lit_pretrain.errors import UserError


def keep_adapter(checkpoint: dict[str, Any], record: Optional[AdapterRecord]) -> None:
    """Leave of a whole network's checkpoint the adapter, and the record of it on the rank that writes."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(PREFIX) or is_adapter_tensor(key)}
    if record is not None:
        checkpoint[RECORD] = record.plain()


def check_adapter(checkpoint: Mapping[str, Any], names: set[str], *, base: str, base_hash: Optional[str]) -> None:
    """Refuse to go on from an adapter that belongs to another base, and from one whose tensors are others.

    Args:
        checkpoint: That of an interrupted run.
        names: Keys of the state dict of the network that goes on.
        base: Where the weights beneath its adapter lie.
        base_hash: Their identity, on ranks that know it.

    Raises:
        UserError: Names both hashes, or tensors of either.
    """
    record = AdapterRecord.of(checkpoint)
    if record is None:
        raise UserError("this checkpoint holds a whole network, but the run has model.adapter; start from it with --from")
    if base_hash is not None:
        record.check_base(base_hash, base, "the checkpoint")
    if "state_dict" not in checkpoint:
        return  # a sharded strategy has loaded it itself
    saved, own = ({key for key in keys if is_adapter_tensor(key)} for keys in (checkpoint["state_dict"], names))
    if saved != own:
        raise UserError(f"the checkpoint's adapter is another: it lacks {sorted(own - saved)[:3]} and has {sorted(saved - own)[:3]}")
