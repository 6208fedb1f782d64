"""Decontamination: what a score is worth, given what the network's whole line of descent was
trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord

DecontaminationVerdict = Literal["clean", "contaminated", "undeclared"]


class Status(NamedTuple):
    """Whether an evaluation set is among the training data."""

    verdict: DecontaminationVerdict
    """clean: all data of all stages was held against the set, and no hit is left. contaminated:
    hits were found and kept. undeclared: some of the data never was, or is not known.
    """
    reason: str
    """Why."""


def status_of(content_hashes: frozenset[str], stages: Sequence[Mapping[str, Any]]) -> Status:
    """The status of an evaluation set for a network.

    Args:
        content_hashes: sha256 of the set's records (`data.evaluation_set.content_sha256`), of its
            file and as the harness reads them.
        stages: The network's lineage.
    """
    open_, kept, clean = [], [], []
    for stage in stages:
        data = stage.get("data")
        if data is None:
            open_.append(f"what {stage['name']} was trained on is not known")
        elif data["sources"]:
            record = next(
                (
                    r
                    for r in map(DecontaminationRecord.from_json, data["gate"])
                    if r.content_sha256 in content_hashes
                ),
                None,
            )
            if record is None:
                open_.append(f"{data['where']} was never held against it")
            elif not record.clean:
                kept.append(
                    f"{data['where']} holds {record.items_hit:,} of its {record.items:,} items"
                    f" ({record.documents_hit:,} documents)"
                )
            else:
                rest = (
                    f", {record.unchecked_items:,} of {record.items:,} items too short to be"
                    " looked for"
                    if record.unchecked_items
                    else ""
                )
                clean.append(f"{data['where']} was held against it as {record.name}{rest}")
    if kept:
        return Status("contaminated", "; ".join(kept + open_))
    if open_ or not clean:
        return Status("undeclared", "; ".join(open_) or "no data is recorded")
    return Status("clean", "; ".join(clean))
