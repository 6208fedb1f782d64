"""Rows that hold an item of an evaluation set are left out or counted, whatever kind of row it
is and wherever in it the item stands.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    JudgedAnswer,
    Message,
    Preference,
    Problem,
    TrainingRow,
)
from lit_pretrain.data import ChatData, PreferenceData
from lit_pretrain.data.chat.encoded_rows import RowDecontamination, as_decontaminate, text_of
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet
from lit_pretrain.errors import UserError

ITEM = (
    "Natalia sold clips to forty eight of her friends in April and then half as many again in May"
)
ANSWER = (
    "She sold twenty four clips in May, so seventy two clips altogether in April and in May of that"
    " year"
)
WriteRows = Callable[..., str]


def user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def assistant(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    path = tmp_path / "eval.jsonl"
    path.write_text(
        json.dumps({"q": ITEM, "a": ANSWER}) + "\n" + json.dumps({"q": "2 + 2", "a": "4"}) + "\n"
    )
    return str(path)


def config(path: str, **options: Any) -> DecontaminateConfig:
    return DecontaminateConfig(
        against={"clips": EvaluationSet(path=path, fields=["q", "a"])}, **options
    )


ROWS: list[tuple[TrainingRow, bool]] = [
    (Conversation(messages=(*user(f"Solve. {ITEM.upper()}!"), *assistant("72")), prompt=1), True),
    (Conversation(messages=(*user("Tell me of Natalia."), *assistant(ANSWER)), prompt=1), True),
    (
        Conversation(
            messages=(*user("Natalia sold clips to her friends."), *assistant("How many?")),
            prompt=1,
        ),
        False,
    ),
    (
        Conversation(
            messages=(*user("hello"), {"role": "assistant", "content": None, "tool_calls": []}),
            prompt=1,
        ),
        False,
    ),
    (Preference(prompt=user("q"), chosen=assistant("no"), rejected=assistant(ANSWER)), True),
    (Preference(prompt=user("q"), chosen=assistant(ANSWER), rejected=assistant("no")), True),
    (Preference(prompt=user(ITEM), chosen=assistant("a"), rejected=assistant("b")), True),
    (JudgedAnswer(prompt=user("q"), completion=assistant(ANSWER), desirable=False), True),
    (JudgedAnswer(prompt=user("q"), completion=assistant("4"), desirable=True), False),
    (Problem(prompt=user(ITEM), answer="72"), True),
    (Problem(prompt=user("q"), answer=ANSWER), True),
    (Problem(prompt=user("What is 2 + 2"), answer="4"), False),  # too short to be told from chance
]


@pytest.mark.parametrize(("row", "holds"), ROWS)
def test_an_item_is_found_in_every_part_of_every_kind_of_row(
    evaluation: str, row: TrainingRow, holds: bool
) -> None:
    marks, removes = (
        RowDecontamination(config(evaluation, action="mark")),
        RowDecontamination(config(evaluation)),
    )
    assert marks.check("s", "rows.jsonl, row 1", row) is holds
    if holds:
        with pytest.raises(BadRow, match="the row holds an item of clips: ") as caught:
            removes.check("s", "rows.jsonl, row 1", row)
        assert (caught.value.reason, caught.value.mistake) == ("contaminated", False)
    else:
        assert removes.check("s", "rows.jsonl, row 1", row) is False
    for gate in (marks, removes):
        (record,) = gate.records()
        assert (record.items, record.unchecked_items, record.documents_hit, record.items_hit) == (
            2,
            1,
            int(holds),
            int(holds),
        )
        assert record.clean is (gate is removes or not holds)
    assert text_of(row)


def test_rows_with_an_item_are_dropped_and_counted(
    evaluation: str, write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(30)]
    rows[7:7] = [{"question": ITEM, "answer": "72"}, {"question": "Natalia?", "answer": ANSWER}]
    common = {
        "path": write_rows(rows),
        "format": "qa",
        "tokenizer": str(tokenizer_folder),
        "seq_len": 256,
        "global_batch_rows": 2,
    }
    plain = ChatData(**common)
    removed, marked = (
        ChatData(**common, decontaminate=config(evaluation, action=action))
        for action in ("remove", "mark")
    )
    for data in (plain, removed, marked):
        data.setup("fit")
    kept = [
        sum(len(part[0].items) for part in data.encoded.splits.values())
        for data in (plain, removed, marked)
    ]
    assert kept == [32, 30, 32]
    assert dict(removed.encoded.tallies["rows"].dropped) == {"contaminated": 2}
    assert dict(marked.encoded.tallies["rows"].noted) == {"contaminated": 2}
    wheres = {where for part in removed.encoded.splits.values() for where in part[0].wheres}
    assert not wheres & {f"{common['path']}, row 8", f"{common['path']}, row 9"}
    assert (
        "held against clips: rows with an item 2 (removed), items found 1 of 2, too short to be"
        " looked for 1" in removed.exposure(1)
    )
    assert (
        len({data.manifest_hash for data in (plain, removed, marked)}) == 3
    )  # the numbers of a run depend on it


def test_pairs_go_through_it_too(
    evaluation: str, write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": "no"} for i in range(20)]
    rows.append({"prompt": "Natalia?", "chosen": "no", "rejected": ANSWER})
    data = PreferenceData(
        path=write_rows(rows), format="preference", tokenizer=str(tokenizer_folder), seq_len=256,
        global_batch_rows=2, validation=0.2,
        decontaminate={"against": {"clips": {"path": evaluation, "fields": ["q", "a"]}}},
    )  # fmt: skip
    data.setup("fit")
    assert dict(data.encoded.tallies["rows"].dropped) == {"contaminated": 1}


def test_settings_that_cannot_be(
    evaluation: str, write_rows: WriteRows, tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"data.decontaminate: .*'feilds'"):
        as_decontaminate({"against": {"clips": {"path": evaluation, "feilds": ["q"]}}})
    data = ChatData(
        path=write_rows([{"question": "a", "answer": "b"}]), format="qa",
        tokenizer=str(tokenizer_folder), global_batch_rows=2,
        decontaminate=config(str(tmp_path / "absent.jsonl")),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"the evaluation set .*absent.jsonl does not exist"):
        data.setup("fit")
