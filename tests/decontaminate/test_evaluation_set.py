"""Evaluation sets: fields give the texts that are read, and the hash recognises a set again."""

import pytest

from lit_pretrain.decontaminate.evaluation_set import content_sha256, texts_of
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
