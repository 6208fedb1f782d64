"""Decontamination: whether a score is clean, given all data that the network was trained on."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lit_pretrain.checkpoint.lineage import StageRecord
from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord

DecontaminationVerdict = Literal["clean", "contaminated", "undeclared"]


class Status(NamedTuple):
    """Whether an evaluation set is among the training data."""

    verdict: DecontaminationVerdict
    """clean: the data of every stage was compared with the set, and no hit is left. contaminated:
    hits were found and kept. undeclared: some data was never compared with it, or is not known.
    """
    reason: str
    """The stages that decide the verdict, in words."""


def status_of(content_hashes: frozenset[str], stages: Sequence[StageRecord]) -> Status:
    """Judge an evaluation set for a network.

    Args:
        content_hashes: sha256 of the set's records (`evaluation_set.content_sha256`), as they lie
            in its file and as the harness reads them.
        stages: The network's lineage.
    """
    undeclared, contaminated, clean = [], [], []
    for stage in stages:
        data = stage["data"]
        if data is None:
            undeclared.append(f"what {stage['name']} was trained on is not known")
            continue
        if not data["sources"]:
            continue  # merge and export read no data
        records = [DecontaminationRecord.from_json(raw) for raw in data["gate"]]
        record = next((r for r in records if r.content_sha256 in content_hashes), None)
        if record is None:
            undeclared.append(f"{data['where']} was never held against it")
        elif not record.clean:
            contaminated.append(
                f"{data['where']} holds {record.items_hit:,} of its {record.items:,} items"
                f" ({record.documents_hit:,} documents)"
            )
        else:
            rest = (
                f", {record.unchecked_items:,} of {record.items:,} items too short to be looked for"
                if record.unchecked_items
                else ""
            )
            clean.append(f"{data['where']} was held against it as {record.name}{rest}")
    if contaminated:
        return Status("contaminated", "; ".join(contaminated + undeclared))
    if undeclared or not clean:
        return Status("undeclared", "; ".join(undeclared) or "no data is recorded")
    return Status("clean", "; ".join(clean))
