"""Reference: the log-probabilities that a policy is compared with, from the cheapest source.

A precomputed column costs nothing; an adapter that is switched off costs a forward pass; a frozen
copy costs a forward pass and the memory of a network.

Axes: B rows, T tokens, D width; 2 is (chosen, rejected).
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_pretrain.adapter import LoRA
from lit_pretrain.batch import AnyBatch, LabelledBatch, PolicyBatch, PreferenceBatch
from lit_pretrain.errors import UserError
from lit_pretrain.files import atomic_path
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.parallel.strategy import shard_


class Frozen:
    """A network that is only read.

    It is no module of the stage, so checkpoints, optimizers and DDP never see it.

    Args:
        config: Its shape.
        fill: Gives a whole network its weights.
        mesh: Shards it over this mesh; None where nothing is sharded.
        device: Where it computes.
    """

    def __init__(
        self,
        config: ModelConfig,
        fill: Callable[[Transformer], None],
        *,
        mesh: DeviceMesh | None,
        device: torch.device,
    ) -> None:
        with torch.device("meta" if mesh is not None else "cpu"):
            net = Transformer(config)
        if mesh is not None:
            net = shard_(net, mesh, device=device, fill=fill)
        else:
            fill(net)
            net = net.to(device)
        self.net = net.requires_grad_(False).eval()

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor, doc_BT: Tensor) -> Tensor:
        """Compute the hidden states (B, T, D) that its head reads."""
        hidden_BTD: Tensor = self.net(tokens_BT, doc_BT)
        return hidden_BTD


@torch.no_grad()
def label_logp(
    net: Transformer, tokens_BT: Tensor, doc_BT: Tensor, labels_BT: Tensor, temperature: float = 1.0
) -> Tensor:
    """Compute each label's log-probability (B, T) without a gradient; 0 where ignored."""
    scores = LabelScores(
        net(tokens_BT, doc_BT), net.head_weight, labels_BT,
        logit_softcap=net.config.logit_softcap, temperature=temperature,
    )  # fmt: skip
    return scores.logp()


Place = Literal["column", "cache", "adapter", "copy"]
"""Where a reference's log-probabilities come from: a column of the data, a column that
`model.reference_cache` keeps, the network with its adapter switched off, or a frozen copy.
"""


def resolve_reference(
    provides: frozenset[str],
    *,
    adapter: bool,
    reference: str | None,
    init_from: str | None,
    cache: str | None,
) -> tuple[Place, str | None]:
    """Choose the reference of a run; the stage and the plan before it follow this one rule.

    Args:
        provides: `DataContract.provides`.
        adapter: Whether the network carries an adapter.
        reference: `model.reference`.
        init_from: `model.init_from`.
        cache: `model.reference_cache`.

    Returns:
        Where the log-probabilities come from, and the reference's weights if they are not those
        that training starts from.
    """
    named = reference if reference != init_from else None
    if "ref_logp" in provides:
        return "column", named
    if cache is not None:
        return "cache", named
    return ("adapter" if adapter and named is None else "copy"), named


def describe_place(place: Place, whose: str) -> str:
    """Say where the reference comes from, in the words that a run prints."""
    return {
        "column": "column ref_logp of the data",
        "adapter": "adapter switched off",
        "copy": f"frozen copy of {whose}",
    }[place]


class Reference:
    """Source of the reference's log-probabilities for batches that have none.

    Args:
        place: Where they come from.
        net: The network that is trained.
        adapter: Its adapter; needed where the place is `adapter`.
        make_copy: Makes the frozen copy; called where the place is `copy`.
        temperature: At which policies sample, whose log-probabilities are compared.
    """

    def __init__(
        self,
        place: Place,
        net: Transformer,
        adapter: LoRA | None,
        make_copy: Callable[[], Frozen],
        temperature: float = 1.0,
    ) -> None:
        self.place = place
        self.net = net
        self.adapter = adapter
        self.copy = make_copy() if place == "copy" else None
        self.temperature = temperature

    def fill(self, batch: AnyBatch) -> AnyBatch:
        """Add the reference's column to a batch; one that has it stays as it is."""
        if isinstance(batch, PreferenceBatch | LabelledBatch):
            return (
                batch
                if batch.ref_logp_B is not None
                else batch._replace(ref_logp_B=self._logp(batch).sum(dim=1))
            )
        if isinstance(batch, PolicyBatch):
            return (
                batch
                if batch.ref_logp_BT is not None
                else batch._replace(ref_logp_BT=self._logp(batch))
            )
        return batch

    def _logp(self, batch: AnyBatch) -> Tensor:
        assert self.place != "column", "data that provides ref_logp has it in every batch"
        if self.copy is not None:
            return label_logp(
                self.copy.net, batch.tokens_BT, batch.doc_BT, batch.labels_BT, self.temperature
            )
        assert self.adapter is not None
        with self.adapter.disabled(self.net), evaluating(self.net):
            return label_logp(
                self.net, batch.tokens_BT, batch.doc_BT, batch.labels_BT, self.temperature
            )


@contextmanager
def evaluating(net: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off within this context."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


# The reference's log-probabilities of all pairs, computed once, in a file that later runs find.


class ReferenceData(Protocol):
    """Data for which a column can be computed, such as `PreferenceData`."""

    manifest_hash: str
    tokenizer_hash: str
    template_hash: str | None

    def reference_batches(self) -> list[PreferenceBatch]:
        """Return every pair once, those held out too, in a fixed order."""
        ...

    def take_reference(self, logp_B2: Tensor) -> None:
        """Take over the log-probabilities (chosen, rejected) of all pairs, in that order."""
        ...


def column_key(data: ReferenceData, *, network: str, precision: str) -> str:
    """Name a column by a hash of network, data, template and precision.

    The data counts with its rows, how they are cut, and its tokenizer.
    """
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
    # Asked of the gathering and not of torch, so that one process needs no process group.
    ranks = len(gather(None))
    mine: dict[int, Tensor] = {}
    frozen = make()
    with torch.no_grad(), context():
        for i in range(rank, len(batches), ranks):
            batch = batches[i]
            tokens_BT, doc_BT, labels_BT = (
                x.to(device) for x in (batch.tokens_BT, batch.doc_BT, batch.labels_BT)
            )
            # To the host: all pairs together may be too many for the device.
            mine[i] = label_logp(frozen.net, tokens_BT, doc_BT, labels_BT).sum(dim=1).float().cpu()
    # Its memory is free before training takes its own.
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
        raise UserError(
            f"{file} is damaged ({str(error).splitlines()[0]}): delete it, and it is computed again"
        ) from None
    return logp_B2


def _write(file: Path, logp_B2: Tensor) -> None:
    try:
        with atomic_path(file) as scratch:
            torch.save(logp_B2, scratch)
    except (OSError, RuntimeError) as error:
        raise UserError(f"model.reference_cache: {file} cannot be written: {error}") from None
