"""A chat format of the user's own is one file outside the package, named by its dotted path."""

import json
from pathlib import Path

import pytest

from lit_pretrain.chat.messages import Conversation
from lit_pretrain.data.chat.row_source import RowSource, RowTally, read_source, rows_identity
from lit_pretrain.errors import UserError

FORMATS = """
from lit_pretrain.data.chat.formats import RowFormat

TRIPLES = RowFormat(fields={"prompt": "q", "completion": "a", "system": "context"})
OTHER = RowFormat(fields={"prompt": "q", "completion": "b"})
NUMBER = 3
"""


@pytest.fixture(autouse=True)
def formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_formats_for_tests.py").write_text(FORMATS)
    monkeypatch.syspath_prepend(str(tmp_path))


def source(tmp_path: Path, format: str) -> RowSource:
    row = {"q": "2 + 2 =", "a": "4", "b": "four", "context": "Be brief."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return RowSource(path=str(tmp_path / "rows.jsonl"), format=format)


def read(rows: RowSource) -> list[object]:
    splits = read_source(
        "mine", rows, kind="conversation", validation=0.0, test=0.0, on_bad_row="refuse",
        tally=RowTally(),
    )  # fmt: skip
    return [split.row for split in splits]


def test_rows_are_read_by_the_format(tmp_path: Path) -> None:
    (row,) = read(source(tmp_path, "my_formats_for_tests.TRIPLES"))
    assert isinstance(row, Conversation)
    assert [(m["role"], m["content"]) for m in row.messages] == [
        ("system", "Be brief."),
        ("user", "2 + 2 ="),
        ("assistant", "4"),
    ]


def test_its_content_identifies_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import my_formats_for_tests

    rows = {"mine": source(tmp_path, "my_formats_for_tests.TRIPLES")}
    before = rows_identity(rows)
    assert rows_identity(rows) == before
    # What runs of before have recorded, so that they go on.
    assert before["mine"]["own_format"] == {
        "fields": {"prompt": "q", "completion": "a", "system": "context"},
        "optional": ["history", "input", "margin", "ref_chosen_logp", "ref_logp",
                     "ref_rejected_logp", "system", "tools"],
        "roles": {},
        "answer_after": None,
    }  # fmt: skip
    monkeypatch.setattr(my_formats_for_tests, "TRIPLES", my_formats_for_tests.OTHER)
    assert rows_identity(rows) != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_formats.TRIPLES", "there is no module 'no_such_formats'"),
        ("my_formats_for_tests.NOTHING", "module my_formats_for_tests has no 'NOTHING'"),
        ("my_formats_for_tests.NUMBER", "must name a .*RowFormat; found 3"),
    ],
)
def test_a_path_that_names_no_format(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(source(tmp_path, path))
