"""Run folders that no training wrote: what import, merge, average and adapter import leave."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.layout import (
    ADAPTER_KEY,
    CHECKPOINTS_FOLDER,
    NET_PREFIX,
    RECORD_KEY,
    SCORE_KEY,
    CheckpointRecord,
    checkpoint_name,
)
from lit_pretrain.checkpoint.lineage import LINEAGE_FILENAME, Lineage, stage_record
from lit_pretrain.checkpoint.weights import AdapterRecord, write_checkpoint
from lit_pretrain.data_lineage import DataRecord
from lit_pretrain.errors import UserError
from lit_pretrain.files import seal_json, write_file
from lit_pretrain.plain_data import dump_config
from lit_pretrain.report.run_folder import (
    CONFIG,
    PROVENANCE,
    ProvenanceFacts,
    provenance,
    read_provenance,
    timestamp,
    write_folder,
)


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """Hold the content of a run folder that other verbs can start from, run and measure."""

    config: Mapping[str, Any]
    """Content of config.yaml."""
    tensors: Mapping[str, Tensor]
    """The network or its adapter, by the names of the network's state dict."""
    step: int
    """Number of the checkpoint."""
    language: ModelTokenizer | None
    """Tokenizer and template; a Hugging Face folder may have none."""
    facts: ProvenanceFacts
    """Content of provenance.json beside versions, revision and command."""
    data: DataRecord | None
    """The data of this stage, for the lineage; None if it is not known."""
    parent: Lineage
    """The stages that led to it."""
    adapter: AdapterRecord | None = None
    """Describes the adapter if `tensors` hold one."""
    score: Tensor | None = None
    """The score head of a reward model."""


def inherited_facts(parent: Path) -> ProvenanceFacts:
    """Read what a run that is made from others without training takes over from its parent.

    Args:
        parent: Folder of the parent run.
    """
    facts = read_provenance(parent)
    return {
        "manifest_hash": facts["manifest_hash"],
        "tokenizer_hash": facts["tokenizer_hash"],
        "data": facts["data"],
        "precision": facts["precision"],
        "parameters": facts["parameters"],
    }


def write_run(
    out: Path, run: RunContent, *, check: Callable[[Path], None] = lambda folder: None
) -> None:
    """Write a run; its folder appears whole or not at all.

    Args:
        out: The folder; it must not exist.
        run: Its content.
        check: Called with the finished folder before it gets its name; an error leaves nothing.

    Raises:
        UserError: The folder exists or cannot be written, or a tensor is not finite.
    """
    # Before anything is written, so that a broken source leaves no folder behind.
    for name, tensor in run.tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} holds numbers that are not finite; {out} is not written")
    recorded = provenance({**run.facts, "started": timestamp()})
    lineage = Lineage.begin(run.language, stage_record(str(out), recorded, run.data), run.parent)

    def fill(folder: Path) -> None:
        write_file(folder / CONFIG, dump_config(run.config))
        if run.language is not None:
            run.language.save(folder)
        write_file(folder / PROVENANCE, seal_json(recorded))
        write_file(folder / LINEAGE_FILENAME, lineage.dump())
        write_checkpoint(_checkpoint(run), folder / CHECKPOINTS_FOLDER / checkpoint_name(run.step))
        check(folder)

    write_folder(out, fill)


def _checkpoint(run: RunContent) -> Mapping[str, object]:
    # No setting has decided these numbers, but whoever goes on from them needs the same tokenizer.
    contract = {} if run.language is None else {"data.tokenizer": run.language.tokenizer.hash}
    state = {NET_PREFIX + name: tensor for name, tensor in run.tensors.items()}
    if run.score is not None:
        state[SCORE_KEY] = run.score
    checkpoint: dict[str, object] = {
        "state_dict": state,
        RECORD_KEY: CheckpointRecord(run.step, contract).stored(),
    }
    if run.adapter is not None:
        checkpoint[ADAPTER_KEY] = run.adapter.stored()
    return checkpoint
