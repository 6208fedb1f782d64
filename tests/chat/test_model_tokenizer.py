"""The record of a language: every field that differs is named with both values, and can be
accepted by name.
"""

import pytest

from lit_pretrain.chat.model_tokenizer import MODEL_TOKENIZER_FIELDS, check_model_tokenizer
from lit_pretrain.errors import UserError

RECORD = {
    "tokenizer": "aa",
    "vocabulary": 512,
    "bos_id": 0,
    "eos_id": 1,
    "template": None,
    "stop_ids": [1, 3],
}
OTHER = {
    "tokenizer": "bb",
    "vocabulary": 513,
    "bos_id": 2,
    "eos_id": 3,
    "template": "cc",
    "stop_ids": [1],
}


def test_the_record_has_every_field() -> None:
    assert RECORD.keys() == OTHER.keys() == MODEL_TOKENIZER_FIELDS.keys()


@pytest.mark.parametrize("field", MODEL_TOKENIZER_FIELDS)
def test_a_field_that_differs_is_named_with_both_values(field: str) -> None:
    found = {**RECORD, field: OTHER[field]}
    check_model_tokenizer(RECORD, dict(RECORD), owner="the parent", other="the data")
    with pytest.raises(UserError) as caught:
        check_model_tokenizer(
            RECORD, found, owner="the parent", other="the data", mend="Prepare it again."
        )
    said = str(caught.value)
    assert said.startswith("the data does not fit the parent:\n")
    assert (
        f"  {field} ({MODEL_TOKENIZER_FIELDS[field]}): expected {RECORD[field]}, found"
        f" {OTHER[field]}" in said
    )
    assert "Prepare it again." in said
    assert said.endswith(f"--accept '[{field}]'")
    assert all(f"\n  {name} " not in said for name in MODEL_TOKENIZER_FIELDS if name != field)
    check_model_tokenizer(RECORD, found, owner="the parent", other="the data", accept=[field])


def test_all_are_named_at_once_and_only_what_both_have_is_compared() -> None:
    with pytest.raises(
        UserError, match=r"--accept '\[tokenizer, vocabulary, bos_id, eos_id, template, stop_ids\]'"
    ):
        check_model_tokenizer(RECORD, OTHER, owner="a", other="b")
    check_model_tokenizer(RECORD, {"eos_id": 1}, owner="a", other="b")
    check_model_tokenizer({}, OTHER, owner="a", other="b")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"--accept bos: there is no such field; there are tokenizer, "
    ):
        check_model_tokenizer(RECORD, RECORD, owner="a", other="b", accept=["bos"])
