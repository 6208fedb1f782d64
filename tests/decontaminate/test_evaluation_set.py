"""Evaluation sets are read as written, and what decontamination finds is counted and recorded."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.evaluation_set import (
    DecontaminateConfig,
    DecontaminationHit,
    DecontaminationRecord,
    DecontaminationTally,
    EvaluationSet,
    content_sha256,
    decontamination_records,
    texts_of,
)
from lit_pretrain.errors import UserError

RECORDS = [{"question": "What is 2 + 2?", "answer": 1}, {"question": "Caf\u00e9?", "answer": 0}]


def test_another_record_is_another_set() -> None:
    assert content_sha256(RECORDS) != content_sha256(RECORDS[:1])
    assert content_sha256(RECORDS) != content_sha256([*RECORDS, RECORDS[0]])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["question"], ["q"]),
        (["question", "answer"], ["q", "7"]),
        (["question + choices.text"], ["q a", "q b"]),
        (["turns.content", "none"], ["hello", "there"]),
        (["choices.text + choices.text"], ["a a", "a b", "b a", "b b"]),
        (["question", "question"], ["q"]),
        (["question + none"], []),
    ],
)
def test_fields(fields: list[str], expected: list[str]) -> None:
    record = {
        "question": "q",
        "answer": 7,
        "choices": {"text": ["a", "b"]},
        "turns": [{"content": "hello"}, {"content": "there"}],
        "none": None,
    }
    assert texts_of(record, fields, "here") == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["x"], "the field 'x' is missing .it has 'a', 'b'"),
        (["a"], "holds an object"),
        (["b.c"], "missing .str has no"),
    ],
)
def test_a_wrong_field_is_named(fields: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        texts_of({"a": {"c": "x"}, "b": "x"}, fields, "here")


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


HITS = st.builds(
    DecontaminationHit,
    set=st.sampled_from("ab"),
    item=st.integers(1, 30),
    ngrams=st.integers(1, 3),
    excerpt=st.just("x"),
    evaluation=st.just("y"),
)


@given(
    st.lists(st.lists(HITS, max_size=4, unique_by=lambda hit: (hit.set, hit.item)), max_size=30),
    st.randoms(use_true_random=False),
)
def test_tallies_add_up_in_any_order(
    found: list[list[DecontaminationHit]], rng: random.Random
) -> None:
    documents = [(f"f:{n}", hits) for n, hits in enumerate(found)]
    whole = DecontaminationTally()
    for origin, hits in documents:
        whole.add("s", origin, hits)
    rng.shuffle(documents)
    parts = [DecontaminationTally() for _ in range(3)]
    for origin, hits in documents:
        rng.choice(parts).add("s", origin, hits)
    merged = DecontaminationTally()
    for part in parts:
        merged.merge(DecontaminationTally.from_json(json.loads(json.dumps(part.to_json()))))
    assert json.dumps(merged.to_json()) == json.dumps(whole.to_json())
    for name, tally in whole.sets.items():
        assert tally.documents == sum(any(hit.set == name for hit in hits) for hits in found)
        assert sorted(tally.items) == sorted(
            {hit.item for hits in found for hit in hits if hit.set == name}
        )
        assert [example.item for example in tally.examples] == sorted(tally.items)[:10]


@pytest.mark.parametrize("action", ["remove", "mark"])
def test_the_record_of_the_manifest(tmp_path: Path, action: str) -> None:
    long = " ".join(f"word{n}" for n in range(20))
    (tmp_path / "a.jsonl").write_text(
        f'{{"q": "{long}"}}\n{{"q": "too short"}}\n', encoding="utf-8"
    )
    (tmp_path / "b.txt").write_text(
        "a line of text with more than eight words in it\n", encoding="utf-8"
    )
    config = DecontaminateConfig(
        against={
            "b": EvaluationSet(path=str(tmp_path / "b.txt"), licence="MIT"),
            "a": EvaluationSet(path=str(tmp_path / "a.jsonl"), fields=["q"]),
        },
        action=action,
    )
    index, tally = DecontaminationIndex.build(config), DecontaminationTally()
    for n in range(3):
        tally.add("s", f"f:{n}", index.check(f"{n} {long}"))
    first, second = decontamination_records(index, tally, config)
    assert (
        first.name,
        first.items,
        first.unchecked_items,
        first.documents_hit,
        first.items_hit,
        first.action,
    ) == ("a", 2, 1, 3, 1, action)
    assert (second.name, second.items, second.documents_hit, second.licence, second.clean) == (
        "b",
        1,
        0,
        "MIT",
        True,
    )
    assert first.clean is (action == "remove")
    assert json.loads(json.dumps(dataclasses.asdict(first)))["ngram"] == 13
    (example,) = tally.sets["a"].examples
    assert (example.item, example.origin, example.ngrams) == (1, "f:0", 8)
    assert example.document.startswith("0 [word0 word1")
    assert example.evaluation.startswith("[word0 word1")
