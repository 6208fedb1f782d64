"""The gate's record: goes through JSON, and finds a set again whatever its file is called."""

import dataclasses
import json

import pytest

from lit_pretrain.decontaminate.decontamination_record import DecontaminationRecord
from lit_pretrain.decontaminate.evaluation_set import content_sha256

ITEMS = [{"q": "one"}, {"q": "two"}]


def record(**changes: object) -> DecontaminationRecord:
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
    return DecontaminationRecord(**{**fields, **changes})


def test_goes_through_json() -> None:
    assert DecontaminationRecord.from_json(
        json.loads(json.dumps(dataclasses.asdict(record(licence="MIT"))))
    ) == record(licence="MIT")


@pytest.mark.parametrize(
    ("action", "hit", "clean"), [("remove", 3, True), ("mark", 0, True), ("mark", 3, False)]
)
def test_marked_hits_are_still_in_the_data(action: str, hit: int, clean: bool) -> None:
    assert record(action=action, documents_hit=hit).clean is clean
