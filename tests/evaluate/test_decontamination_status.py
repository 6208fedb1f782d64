"""Decontamination: a score is clean only if all that the network ever read was held against its
set.
"""

import dataclasses
from typing import Any

import pytest

from lit_pretrain.decontaminate.evaluation_set import DecontaminationRecord
from lit_pretrain.evaluate.harness import decontamination_status

RECORD = DecontaminationRecord(
    name="piqa", file_sha256="f", content_sha256="c", fields=("query",), items=100,
    unchecked_items=0, ngram=13, min_words=8,
    action="remove", documents_hit=3, items_hit=2,
)  # fmt: skip


def stage(*gate: DecontaminationRecord, name: str = "run", **data: Any) -> dict[str, Any]:
    facts = {
        "where": "data/x",
        "hash": "h",
        "sources": {"a": {}},
        "gate": [dataclasses.asdict(record) for record in gate],
        **data,
    }
    return {"name": name, "data": facts}


NOTHING = {"name": "merged", "data": {"where": None, "hash": None, "sources": {}, "gate": []}}
UNKNOWN = {"name": "models/llama", "data": None}
MARKED = dataclasses.replace(RECORD, action="mark")


@pytest.mark.parametrize(
    ("stages", "verdict", "reason"),
    [
        ([stage(RECORD)], "clean", "data/x was decontaminated against it as piqa"),
        ([NOTHING, stage(RECORD)], "clean", "data/x"),
        (
            [stage(dataclasses.replace(RECORD, unchecked_items=7))],
            "clean",
            "7 of 100 items too short to be looked for",
        ),
        ([stage(dataclasses.replace(MARKED, documents_hit=0, items_hit=0))], "clean", "data/x"),
        ([stage(MARKED)], "contaminated", "data/x holds 2 of its 100 items (3 documents)"),
        ([stage(), stage(MARKED)], "contaminated", "never decontaminated against it"),
        (
            [stage(dataclasses.replace(RECORD, content_sha256="another"))],
            "undeclared",
            "data/x was never decontaminated against it",
        ),
        (
            [stage(where="rows.jsonl"), stage(RECORD)],
            "undeclared",
            "rows.jsonl was never decontaminated against it",
        ),
        ([stage(RECORD), UNKNOWN], "undeclared", "what models/llama was trained on is not known"),
        ([NOTHING], "undeclared", "no data is recorded"),
        ([], "undeclared", "no data is recorded"),
    ],
)
def test_status(stages: list[dict[str, Any]], verdict: str, reason: str) -> None:
    found = decontamination_status(frozenset({"c", "as the harness reads it"}), stages)
    assert found.verdict == verdict
    assert reason in found.reason
