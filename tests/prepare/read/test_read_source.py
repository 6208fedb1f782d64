"""Threshold: a run stops with reasons where too much of a source is bad, and not before."""

from collections import Counter

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.read.read_source import ReadCounts, check_bad
from lit_pretrain.prepare.read.reader import BadRecord

EXAMPLES = {
    "not_json": BadRecord("a.jsonl:7", "not_json", "not JSON: Expecting value", "<html>"),
    "missing_field": BadRecord(
        "a.jsonl:2", "missing_field", "no field 'text'; it has 'content'", "{}"
    ),
    "damaged_file": BadRecord(
        "b.jsonl.gz", "damaged_file", "the file ends too early", unread_bytes=500
    ),
}


def counts(**bad: int) -> ReadCounts:
    return ReadCounts(input_bytes=10_000, records=1000, bad=Counter(bad), empty=Counter(empty=900))


def test_few_are_let_through() -> None:
    check_bad("web", counts(), {}, 0.0)
    check_bad("web", counts(not_json=10), EXAMPLES, 0.01)
    check_bad("web", counts(not_json=1000), EXAMPLES, 1.0)
    check_bad("web", ReadCounts(), {}, 0.0)


def test_too_many_are_listed_with_their_cures() -> None:
    with pytest.raises(UserError) as caught:
        check_bad("web", counts(not_json=4, missing_field=7), EXAMPLES, 0.01)
    assert str(caught.value).splitlines() == [
        (
            "sources.web: 11 of 1,000 records (1.10%) could not be used, more than"
            " max_bad_fraction=0.01 allows:"
        ),
        "  7 missing_field, the first in a.jsonl:2: no field 'text'; it has 'content' | '{}'",
        "  4 not_json, the first in a.jsonl:7: not JSON: Expecting value | '<html>'",
        (
            "What to do: missing_field: set the source's `fields`; not_json: each line must hold"
            " one JSON object; or raise max_bad_fraction."
        ),
    ]


def test_unread_bytes_count_as_a_part_of_the_input() -> None:
    found = counts(damaged_file=1)
    found.unread_bytes = 101
    with pytest.raises(
        UserError,
        match=r"1 of 1,000 records \(0\.10%\) and 101 of 10,000 input bytes could not be used",
    ):
        check_bad("web", found, EXAMPLES, 0.01)
    check_bad("web", found, EXAMPLES, 0.02)
    with pytest.raises(UserError, match="not_json"):
        check_bad("web", counts(not_json=1), EXAMPLES, 0.0)
