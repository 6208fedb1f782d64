"""Unread fields: what nobody reads is named, and refused where it holds text or media."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.chat.messages import BadRow, TrainingRow
from lit_pretrain.chat.unread_fields import PROMPT_FIELDS
from lit_pretrain.data import ChatData, PreferenceData
from lit_pretrain.data.chat.formats import ROW_FORMATS, find_format
from lit_pretrain.data.chat.row_reader import read_row
from lit_pretrain.data.chat.row_source import without_padding
from lit_pretrain.errors import UserError

MESSAGES = [
    {"role": "user", "content": "What is a fjord?"},
    {"role": "assistant", "content": "A drowned valley."},
]
TEXT = "Where do whales sleep at night?"
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("conversation", {"messages": MESSAGES}),
    "alpaca": ("conversation", {"instruction": "What is a fjord?", "output": "A valley."}),
    "preference": ("preference", {"prompt": "A fjord?", "chosen": "A valley", "rejected": "No"}),
    "kto": ("verdict", {"prompt": "A fjord?", "completion": "A valley", "label": True}),
    "prompt_answer": ("problem", {"prompt": "Two and two?", "answer": "4"}),
}


def read(name: str, row: dict[str, Any], ignore: tuple[str, ...] = ()) -> TrainingRow:
    kind = BASES[name][0]
    format = find_format(name, kind=kind, fields=None, roles=None, setting="data")
    return read_row(row, format, kind=kind, ignore=ignore)


@pytest.mark.parametrize("name", BASES)
def test_no_field_that_may_hold_a_part_of_the_prompt_is_passed_over(name: str) -> None:
    row = BASES[name][1]
    reads = {path.split(".")[0] for path in ROW_FORMATS[name].fields.values()}
    for field in sorted(PROMPT_FIELDS - reads):
        with pytest.raises(BadRow, match=rf"field '{field}' holds text that nobody reads") as bad:
            read(name, {**row, field: "Aye."})
        assert (bad.value.reason, bad.value.mistake) == ("unread_field", True)
        assert f"ignore: [{field}]" in str(bad.value)
        found, plain = read(name, {**row, field: "Aye."}, (field,)), read(name, row)
        assert (found.spoken(), found.notes) == (plain.spoken(), plain.notes)


@pytest.mark.parametrize("field", ["images", "audios", "videos", "image", "speech"])
@pytest.mark.parametrize("name", BASES)
def test_media_are_refused_by_name(name: str, field: str) -> None:
    row = BASES[name][1]
    for value in (["a.png"], "a.png", [{"bytes": b"x", "path": None}]):
        with pytest.raises(BadRow, match=f"field '{field}' holds pictures, sound or film"):
            read(name, {**row, field: value})
    with pytest.raises(BadRow, match="'scan' holds pictures"):
        read(name, {**row, "scan": {"bytes": b"x", "path": "a.png"}})
    for nothing in (None, [], "", [None]):
        assert read(name, {**row, field: nothing}).notes == ()


@pytest.mark.parametrize("mark", ["<image>", "<audio>", "<video>", "<|image_pad|>"])
def test_marks_for_media_are_refused_where_the_assistant_is_spoken_to(mark: str) -> None:
    row = {"messages": [{**MESSAGES[0], "content": f"{mark} What is it?"}, MESSAGES[1]]}
    with pytest.raises(BadRow, match="in whose place a picture") as bad:
        read("messages", row)
    assert bad.value.reason == "media"
    assert read("messages", row, (mark,)).text().startswith(mark)
    html = {"messages": [MESSAGES[0], {"role": "assistant", "content": f"{mark} is a tag."}]}
    assert "is a tag" in read("messages", html).text()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a 17"), ("source", "Flan 2021"), ("category", "closed qa"), ("score_chosen", 7.5),
        ("dataset_name", "ultra chat"), ("createdAt", "2024-01-01 12:00:00"), ("turns", 3),
        ("ok", True), ("meta", {"licence": "CC BY 4.0"}), ("code2", "x"), ("prompt_id", "9f 3a"),
    ],
)  # fmt: skip
def test_labels_are_counted(field: str, value: Any) -> None:
    assert read("messages", {"messages": MESSAGES, field: value}).notes == (f"unread {field}",)


@pytest.mark.parametrize("field", ["remark", "title", "story", "docstring", "反馈"])
def test_text_under_any_name_is_refused_but_for_rewards(field: str) -> None:
    for value in (TEXT, [TEXT], {"en": TEXT}, "鯨は夜にどこで眠るのですか"):
        with pytest.raises(BadRow, match="nobody reads"):
            read("messages", {"messages": MESSAGES, field: value})
    if field not in PROMPT_FIELDS:  # the row goes to the reward as it is
        notes = read("prompt_answer", {**BASES["prompt_answer"][1], field: TEXT}).notes
        assert notes == (f"unread {field}",)


def test_what_repeats_the_row_is_no_loss() -> None:
    whole = f"### Instruction:\n{MESSAGES[0]['content']}\n### Response:\n{MESSAGES[1]['content']}"
    row = {"messages": MESSAGES, "prompt": MESSAGES[0]["content"], "text": whole}
    assert read("messages", row).notes == ("unread prompt", "unread text")


def test_the_error_names_the_format_that_reads_the_field() -> None:
    row = {"question": "Is it so?", "chosen": "It is indeed.", "rejected": "It is not."}
    with pytest.raises(BadRow, match="The format orca_pairs reads it"):
        read("preference", row)


@pytest.mark.parametrize("mark", [{"train": False}, {"loss_weight": 0}, {"weight": 0},
                                  {"loss": False}, {"training": False}])  # fmt: skip
def test_marks_that_exclude_a_message_are_honoured(mark: dict[str, Any]) -> None:
    talk = [*MESSAGES, MESSAGES[0], MESSAGES[1]]
    row = read("messages", {"messages": [talk[0], {**talk[1], **mark}, *talk[2:]]})
    assert [message.get("weight") for message in row.spoken()] == [None, 0, None, None]
    (name, _), = mark.items()  # fmt: skip
    for value in (2, "no", 0.5):
        with pytest.raises(BadRow, match=f"has the {name} {value!r}") as bad:
            read("messages", {"messages": [talk[0], {**talk[1], name: value}]})
        assert bad.value.reason == "weight"
    with pytest.raises(BadRow, match="train_detail"):
        read("messages", {"messages": [talk[0], {**talk[1], "train_detail": [{"train": False}]}]})
    with pytest.raises(BadRow, match="is of the user and has train"):
        read("messages", {"messages": [{**talk[0], "train": True}, talk[1]]})


def test_a_row_of_weight_0_is_dropped_and_options_are_read() -> None:
    for name in ("weight", "loss_weight", "train"):
        with pytest.raises(BadRow, match="weight 0") as bad:
            read("messages", {"messages": MESSAGES, name: 0})
        assert (bad.value.reason, bad.value.mistake) == ("nothing_learned", False)
    options = {"enable_thinking": False}
    row = read("messages", {"messages": MESSAGES, "chat_template_kwargs": options})
    assert (row.options, row.notes) == (options, ())


def test_padding_of_arrow_goes_at_every_depth(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def talk(arguments: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        tool = {"type": "function", "function": {"name": "f", "parameters": properties}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"messages": [{"role": "user", "content": "x"}, answer], "tools": [tool]}

    rows = [
        talk({"city": "Rome"}, {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}),
        talk({"zone": {"hours": 2}}, {"zone": {"type": "object"}, "date": {"type": "string"}}),
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    padded = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert "'zone': None" in str(padded)
    for row in padded:
        row["messages"][0].pop("tool_calls")
    stripped = [without_padding(row) for row in padded]
    for row in stripped:
        row["messages"] = [m for m in row["messages"]]
    assert stripped == rows


def test_the_run_names_what_nobody_read(
    write_rows: Callable[..., str], tokenizer_folder: Path
) -> None:
    common: dict[str, Any] = {"tokenizer": str(tokenizer_folder), "global_batch_rows": 2}
    talks = [{"messages": [{"role": "user", "content": f"{i}", "ts": 3}, MESSAGES[1]], "id": i}
             for i in range(30)]  # fmt: skip
    data = ChatData(path=write_rows(talks), **common)
    assert "unread id 30, unread ts of messages 30" in data.exposure(1)
    thoughts = [{"messages": [MESSAGES[0], {**MESSAGES[1], "reasoning_content": "Hm, well."}]}] * 9
    path = write_rows(thoughts, "thoughts.jsonl")
    with pytest.raises(UserError, match=r"'reasoning_content', which the template llama3 does not"):
        ChatData(path=path, template="llama3", **common).setup("fit")
    shown = ChatData(path=path, template="qwen", **common).encoded.items("train")[0]
    tokenizer = data.tokenizer
    assert "<think>\nHm, well.\n</think>\n\nA drowned" in tokenizer.decode(shown.ids.tolist())
    dropped = ChatData(path=path, template="llama3", ignore=["reasoning_content"], **common)
    assert "Hm, well" not in tokenizer.decode(dropped.encoded.items("train")[0].ids.tolist())


def test_pairs_that_are_equal_after_the_cut_are_dropped(
    write_rows: Callable[..., str], tokenizer_folder: Path
) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "same " * 40 + "a", "rejected": "same " * 40 + "b"}
            for i in range(9)]  # fmt: skip
    rows += [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(9)]
    data = PreferenceData(path=write_rows(rows), format="preference", seq_len=64, validation=0.0,
                          tokenizer=str(tokenizer_folder))  # fmt: skip
    assert dict(data.encoded.tallies["rows"].dropped) == {"same_answers": 9}
