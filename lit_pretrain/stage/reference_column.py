"""Reference column: the reference's log-probabilities of all pairs, computed once and kept in a file that later runs find."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Protocol

import torch
from torch import Tensor

from lit_pretrain.batch import PreferenceBatch
from lit_pretrain.errors import UserError
from lit_pretrain.stage.frozen import Frozen, label_logp


class ReferenceData(Protocol):
    """What is asked of data for which a column can be computed: `PreferenceData` has it."""

    manifest_hash: str
    tokenizer_hash: str
    template_hash: Optional[str]

    def reference_batches(self) -> list[PreferenceBatch]:
        """Every pair once, those held out too, in a fixed order."""
        ...

    def take_reference(self, logp_B2: Tensor) -> None:
        """Take over the log-probabilities (chosen, rejected) of all pairs, in that order."""
        ...


def column_key(data: ReferenceData, *, network: str, precision: str) -> str:
    """The name of a column: a hash of the network, the data (rows, how they are cut, tokenizer), its template and the precision."""
    parts = [network, data.manifest_hash, data.tokenizer_hash, data.template_hash, precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def fill_column(
    data: ReferenceData,
    folder: Path,
    key: str,
    *,
    make: Callable[[], Frozen],
    context: Callable[[], Any],
    device: torch.device,
    rank: int,
    gather: Callable[[Any], list[Any]],
) -> str:
    """Give the data its column, from the file of an earlier run if there is one.

    Args:
        data: The pairs.
        folder: Where columns are kept.
        key: From `column_key`.
        make: Makes the reference; called only if nothing is found.
        context: The precision's context.
        device: Where it computes.
        rank: Of this process; the first one writes the file.
        gather: What every rank holds, as a list; all ranks call this together.

    Returns:
        What was done, in words.

    Raises:
        UserError: The file is damaged, or the folder cannot be written.
    """
    file = folder / f"{key}.pt"
    # Whether it is there is decided by one rank, or another would wait for it in vain.
    if gather(file.is_file())[0]:
        data.take_reference(_read(file))
        return f"column {file}, computed before"
    batches = data.reference_batches()
    ranks = len(gather(None))
    mine: dict[int, Tensor] = {}
    frozen = make()
    with torch.no_grad(), context():
        for i in range(rank, len(batches), ranks):
            batch = batches[i]
            tokens_BT, doc_BT, labels_BT = (x.to(device) for x in (batch.tokens_BT, batch.doc_BT, batch.labels_BT))
            mine[i] = label_logp(frozen.net, tokens_BT, doc_BT, labels_BT).sum(dim=1).float().cpu()
    del frozen
    found = {i: logp_B for part in gather(mine) for i, logp_B in part.items()}
    columns = [torch.stack(found[i].chunk(2), dim=1) for i in range(len(batches))]
    logp_B2 = torch.cat(columns) if columns else torch.zeros(0, 2)
    if rank == 0:
        _write(file, logp_B2)
    data.take_reference(logp_B2)
    return f"column of {len(logp_B2):,} pairs, computed now and kept in {file}"


def _read(file: Path) -> Tensor:
    try:
        logp_B2: Tensor = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}): delete it, and it is computed again") from None
    return logp_B2


def _write(file: Path, logp_B2: Tensor) -> None:
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(logp_B2, scratch)
        os.replace(scratch, file)
    except (OSError, RuntimeError) as error:
        scratch.unlink(missing_ok=True)
        raise UserError(f"model.reference_cache: {file} cannot be written: {error}") from None
