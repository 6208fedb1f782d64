"""Encoded rows: split by content, counted or refused, and compared with evaluation sets."""

import json
import re
from collections import Counter
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
from lit_pretrain.data.chat.encoded_rows import RowDecontamination, as_decontaminate
from lit_pretrain.data.chat.row_source import RowSource, RowTally, row_split_of
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet
from lit_pretrain.errors import UserError

WriteRows = Callable[..., str]
QA = [
    {"question": f"What is {i} + {i % 7}?", "answer": "ha " * (i % 9) + str(i + i % 7)}
    for i in range(120)
]


def load(
    rows: list[dict[str, Any]], write_rows: WriteRows, folder: Path, **options: Any
) -> tuple[ChatData, RowTally]:
    data = ChatData(
        **{
            "path": write_rows(rows),
            "format": "qa",
            "tokenizer": str(folder),
            "seq_len": 128,
            "global_batch_rows": 2,
            **options,
        }
    )
    data.setup("fit")
    return data, next(iter(data.encoded.tallies.values()))


def test_splits_are_fixed_by_what_a_row_says(write_rows: WriteRows, tokenizer_folder: Path) -> None:
    def rows(data: ChatData, split: str) -> set[tuple[int, ...]]:
        return {tuple(item.ids.tolist()) for item in data.encoded.items(split)}

    data, _ = load(QA, write_rows, tokenizer_folder, validation=0.1)
    assert 4 <= len(rows(data, "validation")) <= 30
    assert not rows(data, "validation") & rows(data, "train")
    shuffled = write_rows(
        [dict(reversed(row.items())) for row in QA[::-1]] + [{"question": "new", "answer": "row"}],
        "shuffled.jsonl",
    )
    other = ChatData(
        path=shuffled,
        format="qa",
        tokenizer=str(tokenizer_folder),
        seq_len=128,
        global_batch_rows=8,
        validation=0.1,
        seed=9,
    )
    assert rows(other, "validation") <= rows(data, "validation") | rows(other, "validation") - rows(
        data, "train"
    )
    shares = Counter(row_split_of({"n": i}, validation=0.2, test=0.1) for i in range(5000))
    assert [round(shares[name] / 5000, 1) for name in ("train", "validation", "test")] == [
        0.7,
        0.2,
        0.1,
    ]


def test_a_separate_file_can_be_held_out(write_rows: WriteRows, tokenizer_folder: Path) -> None:
    sources = {
        "qa": RowSource(
            path=write_rows(QA[:50]),
            format="qa",
            validation_path=write_rows(QA[50:60], "held.jsonl"),
        )
    }
    data = ChatData(
        sources=sources, tokenizer=str(tokenizer_folder), seq_len=128, global_batch_rows=4
    )
    assert [len(data.encoded.items(split)) for split in ("train", "validation", "test")] == [
        50,
        10,
        0,
    ]
    with pytest.raises(
        UserError, match=r"no row is held out for the test: raise data.test \(0.0 of 60 rows\)"
    ):
        data.held_out("test")


def test_files_of_every_kind_give_the_same_rows(
    tmp_path: Path, write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    import gzip
    import json

    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "rows.json").write_text(json.dumps(QA))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(Path(write_rows(QA)).read_bytes()))
    pyarrow.parquet.write_table(pa.Table.from_pylist(QA), tmp_path / "rows.parquet")
    found = []
    for name in ("rows.jsonl", "rows.json", "packed.jsonl.gz", "rows.parquet"):
        data = ChatData(
            path=str(tmp_path / name),
            format="qa",
            tokenizer=str(tokenizer_folder),
            seq_len=128,
            global_batch_rows=2,
        )
        found.append([item.ids.tolist() for item in data.encoded.items("train")])
    assert all(rows == found[0] for rows in found)
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"rows.csv cannot be read: its name must end in .jsonl"):
        ChatData(
            path=str(tmp_path / "rows.csv"), tokenizer=str(tokenizer_folder), global_batch_rows=2
        ).setup("fit")
    (tmp_path / "torn.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question"')
    with pytest.raises(UserError, match=r"torn.jsonl, row 2: is not JSON"):
        ChatData(
            path=str(tmp_path / "torn.jsonl"),
            format="qa",
            tokenizer=str(tokenizer_folder),
            global_batch_rows=2,
        ).setup("fit")


def test_rows_without_anything_to_learn_are_counted(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    rows = [
        {"question": "a" * 200, "answer": "b"},
        {"question": "a", "answer": ""},
        {"question": "a", "answer": "b " * 200},
        *QA[:20],
    ]
    for truncation, dropped, noted in (
        ("keep_start", {"empty_answer": 1, "prompt_too_long": 1}, {"truncated": 1}),
        ("keep_end", {"empty_answer": 1}, {"truncated": 2}),
        ("drop", {"empty_answer": 1, "too_long": 2}, {}),
    ):
        data, tally = load(rows, write_rows, tokenizer_folder, truncation=truncation)
        assert (tally.read, dict(tally.dropped), dict(tally.noted)) == (
            23,
            dropped,
            noted,
        ), truncation
        total = sum(dropped.values())
        assert data.encoded.lines()[0].startswith(
            f"rows: 23 rows, {23 - total} used, dropped {total} (empty_answer 1"
        )


def test_mistakes_are_refused_by_row_or_counted(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    rows = [*QA[:20], {"question": "a"}, {"question": 3, "answer": "b"}]
    with pytest.raises(
        UserError, match=r"rows.jsonl, row 21: the row has no field 'answer'.*data.on_bad_row drop"
    ) as caught:
        load(rows, write_rows, tokenizer_folder)
    assert "it has 'question'" in str(caught.value)
    _, tally = load(rows, write_rows, tokenizer_folder, on_bad_row="drop")
    assert dict(tally.dropped) == {"missing_field": 1, "not_text": 1}


def test_rows_that_cannot_be_read_are_refused_by_row_or_counted(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    path = Path(write_rows(QA[:20]))
    with path.open("ab") as file:
        file.write(b'{"question": "caf\xe9", "answer": "b"}\n{"question": \n')
    options = {"path": str(path), "format": "qa", "tokenizer": str(tokenizer_folder)}
    with pytest.raises(
        UserError,
        match=r"rows.jsonl, row 21: is not UTF-8: .* byte 0xe9.*on_bad_row drop",
    ):
        ChatData(**options).setup("fit")
    data = ChatData(**options, on_bad_row="drop")
    data.setup("fit")
    dropped = next(iter(data.encoded.tallies.values())).dropped
    assert dict(dropped) == {"undecodable": 1, "not_json": 1}


def test_what_no_row_can_be_read_from_is_named(
    tmp_path: Path, write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    for path, said in (
        (str(tmp_path), f"{tmp_path} is a folder; name one file for each source"),
        (str(tmp_path / "no.jsonl"), "does not exist (relative paths start at"),
        (write_rows([], "rows.csv"), "write each row as a JSON object on a line of its own"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            ChatData(path=path, format="qa", tokenizer=str(tokenizer_folder)).check_files()
    with pytest.raises(
        UserError, match=r"Set `format`, or name it in `fields`: {completion: anwser}"
    ):
        load([{"question": "q", "anwser": "a"}], write_rows, tokenizer_folder)


def test_a_file_of_which_no_row_is_left_is_refused(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"no row is left to train on:\n"
            r"  rows: 5 rows, 0 used, dropped 5 \(prompt_too_long 5\)\n"
            r"  .*rows.jsonl, row 1: no learned token .*; raise data.seq_len, or set"
        ),
    ):
        load(
            [{"question": "a" * 200 + str(i), "answer": "b"} for i in range(5)],
            write_rows,
            tokenizer_folder,
        )


def test_tools_that_a_template_does_not_show_are_noted(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": str(i)},
                {"role": "assistant", "content": "b"},
            ],
            "tools": [{"name": "f"}],
        }
        for i in range(9)
    ]
    _, tally = load(rows, write_rows, tokenizer_folder, format="messages", template="llama3")
    assert tally.noted["tools_not_shown"] == 9
    _, tally = load(
        rows, write_rows, tokenizer_folder, format="messages", template="qwen", seq_len=512
    )
    assert not tally.noted


ITEM = (
    "Natalia sold clips to forty eight of her friends in April and then half as many again in May"
)
ANSWER = (
    "She sold twenty four clips in May, so seventy two clips altogether in April and in May of that"
    " year"
)


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
    for checked in (marks, removes):
        (record,) = checked.records()
        assert (record.items, record.unchecked_items, record.documents_hit, record.items_hit) == (
            2,
            1,
            int(holds),
            int(holds),
        )
        assert record.clean is (checked is removes or not holds)
    assert row.text()


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
    origins = {origin for part in removed.encoded.splits.values() for origin in part[0].origins}
    assert not origins & {f"{common['path']}, row 8", f"{common['path']}, row 9"}
    assert (
        "decontaminated against clips: rows with an item 2 (removed), items found 1 of 2, too short"
        " to be looked for 1" in removed.exposure(1)
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
