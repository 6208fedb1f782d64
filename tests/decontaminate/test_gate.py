"""The gate's record: goes through JSON, and finds a set again whatever its file is called."""

import dataclasses
import json
from pathlib import Path

import pytest

from lit_pretrain.decontaminate.evaluation_set import GateRecord, content_sha256, declared

ITEMS = [{"q": "one"}, {"q": "two"}]


def record(**changes: object) -> GateRecord:
    fields = {
        "name": "made",
        "file_sha256": "0" * 64,
        "content_sha256": content_sha256(ITEMS),
        "fields": ("q",),
        "items": 2,
        "unchecked_items": 0,
        "ngram": 13,
        "min_words": 8,
        "action": "remove",
        "documents_hit": 1,
        "items_hit": 1,
    }
    return GateRecord(**{**fields, **changes})


def test_goes_through_json() -> None:
    assert GateRecord.from_json(
        json.loads(json.dumps(dataclasses.asdict(record(licence="MIT"))))
    ) == record(licence="MIT")


def test_a_declared_set_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "renamed.jsonl").write_text('{"q": "two"}\n\n{"q": "one"}\n', encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"q": "two"}\n{"q": "three"}\n', encoding="utf-8")
    assert declared([record(content_sha256="?"), record()], tmp_path / "renamed.jsonl") == record()
    assert declared([record()], tmp_path / "other.jsonl") is None
    assert declared([], tmp_path / "renamed.jsonl") is None


@pytest.mark.parametrize(
    ("action", "hit", "clean"), [("remove", 3, True), ("mark", 0, True), ("mark", 3, False)]
)
def test_marked_hits_are_still_in_the_data(action: str, hit: int, clean: bool) -> None:
    assert record(action=action, documents_hit=hit).clean is clean
