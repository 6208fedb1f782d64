"""Formats: each known layout becomes the same messages, and each mistake is named."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    JudgedAnswer,
    Preference,
    Problem,
    Segment,
)
from lit_pretrain.data.chat.formats import ROW_FORMATS, find_format
from lit_pretrain.data.chat.row_reader import expand_record, read_row
from lit_pretrain.data.chat.row_source import RowSource, RowTally, read_source
from lit_pretrain.errors import UserError


def read(
    row: dict[str, Any],
    name: str,
    kind: str = "conversation",
    *,
    fields: Any = None,
    roles: Any = None,
    system: Any = None,
) -> Any:
    return read_row(
        row,
        find_format(name, kind=kind, fields=fields, roles=roles, setting="data"),
        kind=kind,
        system=system,
    )


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("name", "row", "fields"),
    [
        ("messages", {"messages": [user("Hi"), said("Ho")]}, None),
        (
            "messages",
            {"dialogue": {"turns": [user("Hi"), said("Ho")]}},
            {"messages": "dialogue.turns"},
        ),
        (
            "messages",
            {
                "messages": [
                    {"speaker": "user", "text": "Hi"},
                    {"speaker": "assistant", "text": "Ho"},
                ]
            },
            {"role": "speaker", "content": "text"},
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    said("Ho"),
                ]
            },
            None,
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            None,
        ),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}, None),
        ("alpaca", {"instruction": "Hi", "output": "Ho"}, None),
        ("prompt_completion", {"prompt": "Hi", "completion": "Ho"}, None),
        ("prompt_completion", {"prompt": [user("Hi")], "completion": [said("Ho")]}, None),
        ("prompt_completion", {"q": "Hi", "a": "Ho"}, {"prompt": "q", "completion": "a"}),
        ("qa", {"question": "Hi", "answer": "Ho"}, None),
        ("dolly", {"instruction": "Hi", "context": "", "response": "Ho", "category": "qa"}, None),
        ("orca", {"system_prompt": "", "question": "Hi", "response": "Ho", "id": "f.1"}, None),
        ("messages", {"messages": [user("Hi"), {**said("Ho"), "loss_weight": 1.0}]}, None),
        (
            "messages",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "value": "Hi"}],
                        "loss_weight": 0.0,
                    },
                    said("Ho"),
                ]
            },
            None,
        ),
    ],
)
def test_known_layouts_become_the_same_conversation(
    name: str, row: dict[str, Any], fields: Any
) -> None:
    found = read(row, name, fields=fields)
    for message in found.messages:  # of no effect on the user, who is not learned
        if message["role"] == "user":
            message.pop("weight", None)
    assert found == Conversation(messages=(user("Hi"), said("Ho")), prompt=1)


def test_alpaca_joins_its_input_and_keeps_its_history() -> None:
    row = {
        "instruction": "Sum",
        "input": "1 2",
        "output": "3",
        "system": "Be brief.",
        "history": [["Hi", "Ho"]],
    }
    system = {"role": "system", "content": "Be brief."}
    assert read(row, "alpaca").messages == (
        system,
        user("Hi"),
        said("Ho"),
        user("Sum\n\n1 2"),
        said("3"),
    )
    assert read(row, "alpaca").prompt == 4


def test_parts_of_text_are_lines_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            said("Ho"),
        ]
    }
    assert read(row, "messages").messages == (
        {"role": "system", "content": "Be brief."},
        user("a\nb"),
        said("Ho"),
    )


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
AS_JSON = '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("name", "turns", "extra"),
    [
        ("sharegpt", [{"from": "function_call", "value": AS_JSON}], {"tools": '[{"name": "f"}]'}),
        ("sharegpt", [{"from": "function_call", "value": f"[{AS_JSON}]"}], {}),
        ("messages", [{"role": "tool_call", "content": AS_JSON}], {}),  # ms-swift
        (
            "messages",
            [
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "f", "arguments": {"x": 1}},
                }
            ],
            {"functions": [{"name": "f"}]},
        ),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": [CALL]}], {}),
        (
            "messages",
            [{"role": "assistant", "content": [{"type": "tool_call", "value": AS_JSON}]}],
            {},
        ),
    ],
)
def test_calls_in_every_form_become_those_of_openai(
    name: str, turns: list[dict[str, Any]], extra: dict[str, Any]
) -> None:
    if name == "sharegpt":
        before: Any = {"from": "human", "value": "a"}
        after: Any = [{"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}]
        row = {"conversations": [before, *turns, *after], **extra}
    else:
        after = [{"role": "function", "name": "f", "content": "1"}, said("b")]
        row = {"messages": [user("a"), *turns, *after], **extra}
    conversation = read(row, name)
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert conversation.prompt == 3
    wrapped = [{"type": "function", "function": {"name": "f"}}]
    assert conversation.tools == (wrapped if extra else None)


def test_calls_that_follow_each_other_are_one_message() -> None:
    turns = [("human", "a"), ("function_call", AS_JSON), ("function_call", AS_JSON)]
    turns += [("observation", "1"), ("observation", "2"), ("gpt", "b")]
    messages = read(
        {"conversations": [{"from": f, "value": v} for f, v in turns]}, "sharegpt"
    ).messages
    assert messages[1]["tool_calls"] == [CALL, CALL]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "assistant"]


@pytest.mark.parametrize("value", ["look it up", "3", '{"arguments": {}}', "", "[1]"])
def test_a_call_that_is_none_is_refused(value: str) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": value},
            {"from": "gpt", "value": "b"},
        ]
    }
    with pytest.raises(BadRow, match="tool call") as caught:
        read(row, "sharegpt")
    assert (caught.value.reason, caught.value.mistake) == ("tool_calls", True)
    as_text = read(row, "sharegpt", roles={"function_call": "assistant"})
    assert as_text.messages[1]["content"] == value


def test_a_system_message_is_added_only_where_there_is_none() -> None:
    own = {"messages": [{"role": "system", "content": "mine"}, user("Hi"), said("Ho")]}
    assert read(own, "messages", system="given").messages[0]["content"] == "mine"
    added = read({"prompt": "Hi", "completion": "Ho"}, "prompt_completion", system="given")
    assert (added.messages[0]["content"], added.prompt) == ("given", 2)


PAIR = Preference(prompt=(user("Hi"),), chosen=(said("Ho"),), rejected=(said("No"),))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("preference", {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}),
        ("preference", {"prompt": [user("Hi")], "chosen": [said("Ho")], "rejected": [said("No")]}),
        (
            "preference",
            {"chosen": [user("Hi"), said("Ho")], "rejected": [user("Hi"), said("No")]},
        ),  # implicit
        (
            "preference",
            {
                "prompt": [user("Hi")],
                "chosen": [user("Hi"), said("Ho")],
                "rejected": [user("Hi"), said("No")],
            },
        ),  # repeated
        (
            "alpaca_preference",
            {"instruction": "Hi", "input": "", "output": "x", "chosen": "Ho", "rejected": "No"},
        ),
        ("orca_pairs", {"system": "", "question": "Hi", "chosen": "Ho", "rejected": "No"}),
        (
            "openai_preference",
            {
                "input": {"messages": [user("Hi")], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [said("Ho")],
                "non_preferred_output": [said("No")],
            },
        ),
        (
            "sharegpt_preference",
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Ho"},
                "rejected": {"from": "gpt", "value": "No"},
            },
        ),
    ],
)
def test_pairs(name: str, row: dict[str, Any]) -> None:
    assert read(row, name, "preference") == PAIR


def test_an_implicit_prompt_of_texts_ends_at_a_blank_and_is_noted() -> None:
    pair = read(
        {"chosen": "The sky is blue.", "rejected": "The sky is green."}, "preference", "preference"
    )
    assert pair.prompt == (user("The sky is"),)
    assert (pair.chosen, pair.rejected) == ((said(" blue."),), (said(" green."),))
    assert pair.notes == ("prompt_guessed",)
    lists = {"chosen": [user("Hi"), said("Ho")], "rejected": [user("Hi"), said("No")]}
    assert read(lists, "preference", "preference").notes == ()


@pytest.mark.parametrize(
    "mark", ["\n\nHuman: {}\n\nAssistant: {}", "### Human: {}\n### Assistant: {}"]
)
def test_transcripts_are_taken_apart(mark: str) -> None:
    """As hh-rlhf's, whose answers often begin with the same words."""
    row = {"chosen": mark.format("Hi", "Oh, ho"), "rejected": mark.format("Hi", "Oh, no")}
    pair = read(row, "hh", "preference")
    assert pair == Preference(prompt=(user("Hi"),), chosen=(said("Oh, ho"),),
                              rejected=(said("Oh, no"),))  # fmt: skip
    assert pair.notes == ()
    with pytest.raises(BadRow, match="the format hh takes apart"):
        read(row, "preference", "preference")
    assert read({"text": row["chosen"]}, "transcript").messages == (user("Hi"), said("Oh, ho"))
    with pytest.raises(BadRow, match="does not begin with `Human:`"):
        read({"text": "Hi"}, "transcript")


def test_an_implicit_prompt_keeps_the_last_answers_apart_even_where_they_begin_alike() -> None:
    same = [user("a"), said("b"), user("c")]
    pair = read(
        {"chosen": [*same, said("d")], "rejected": [*same, said("e")]}, "preference", "preference"
    )
    assert pair.prompt == tuple(same)
    longer = read(
        {"chosen": [*same, said("d")], "rejected": [user("a"), said("B")]},
        "preference",
        "preference",
    )
    assert (longer.prompt, longer.rejected) == ((user("a"),), (said("B"),))


def test_columns_of_pairs() -> None:
    row = {
        "prompt": "Hi",
        "chosen": "Ho",
        "rejected": "No",
        "margin": 2,
        "ref_chosen_logp": -3.5,
        "ref_rejected_logp": -4,
    }
    pair = read(row, "preference", "preference")
    assert (pair.margin, pair.ref_logp) == (2.0, (-3.5, -4.0))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("kto", {"prompt": "Hi", "completion": "Ho", "label": True}),
        ("kto", {"prompt": "Hi", "completion": "Ho", "label": 1}),
        ("kto_messages", {"messages": [user("Hi"), said("Ho")], "label": True}),
        (
            "kto_sharegpt",
            {
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
                "label": True,
            },
        ),
    ],
)
def test_verdicts(name: str, row: dict[str, Any]) -> None:
    assert read(row, name, "verdict") == JudgedAnswer(
        prompt=(user("Hi"),), completion=(said("Ho"),), desirable=True
    )


def test_gsm8k_answers_stand_after_the_mark_without_commas() -> None:
    row = {"question": "How many?", "answer": "It is 3*500=<<3*500=1500>>1500\n#### 1,500"}
    assert read(row, "gsm8k", "problem") == Problem(
        prompt=(user("How many?"),), answer="1500", facts=row
    )
    assert read(row, "gsm8k").messages[1]["content"] == row["answer"]
    with pytest.raises(BadRow, match="####") as caught:
        read({**row, "answer": "1500"}, "gsm8k", "problem")
    assert (caught.value.reason, caught.value.mistake) == ("no_mark", True)


@pytest.mark.parametrize(
    ("reason", "mistake", "name", "row"),
    [
        ("empty_answer", False, "alpaca", {"instruction": "Hi", "output": "  "}),
        ("empty_answer", False, "messages", {"messages": [user("Hi"), said("")]}),
        ("empty_prompt", False, "prompt_completion", {"prompt": " ", "completion": "Ho"}),
        ("no_answer", False, "messages", {"messages": [user("Hi")]}),
        ("no_answer", False, "messages", {"messages": []}),
        ("missing_role", True, "messages", {"messages": [{"content": "Hi"}, said("Ho")]}),
        (
            "two_systems",
            True,
            "messages",
            {"messages": [{"role": "system", "content": "x"}] * 2 + [user("Hi"), said("Ho")]},
        ),
        (
            "two_systems",
            True,
            "messages",
            {
                "system": "y",
                "messages": [{"role": "system", "content": "x"}, user("Hi"), said("Ho")],
            },
        ),
        (
            "late_system",
            True,
            "messages",
            {"messages": [user("Hi"), {"role": "system", "content": "x"}, said("Ho")]},
        ),
        (
            "unknown_role",
            True,
            "messages",
            {"messages": [{"role": "bot", "content": "Hi"}, said("Ho")]},
        ),
        (
            "missing_field",
            True,
            "messages",
            {"messages": [{"role": "user", "value": "Hi"}, said("Ho")]},
        ),
        ("missing_field", True, "alpaca", {"instruction": "Hi"}),
        ("missing_field", True, "messages", {"messages": None}),
        ("not_text", True, "messages", {"messages": "Hi"}),
        (
            "not_text",
            True,
            "messages",
            {"messages": [user("Hi"), {"role": "assistant", "content": [{"type": "text"}]}]},
        ),
        (
            "not_text",
            True,
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
                    said("Ho"),
                ]
            },
        ),
        ("weight", True, "messages", {"messages": [user("Hi"), {**said("Ho"), "weight": 0.5}]}),
        ("not_text", True, "prompt_completion", {"prompt": 3, "completion": "Ho"}),
        ("noncharacter", True, "messages", {"messages": [user("Hi \ufdd1"), said("Ho")]}),
        ("tools", True, "messages", {"messages": [user("Hi"), said("Ho")], "tools": "{"}),
    ],
)
def test_bad_conversations(reason: str, mistake: bool, name: str, row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        read(row, name)
    assert (caught.value.reason, caught.value.mistake) == (reason, mistake)


@pytest.mark.parametrize(
    ("reason", "mistake", "row"),
    [
        ("same_answers", False, {"prompt": "Hi", "chosen": "Ho", "rejected": "Ho"}),
        ("empty_answer", False, {"prompt": "Hi", "chosen": "Ho", "rejected": ""}),
        ("empty_prompt", False, {"chosen": "Ho", "rejected": "No"}),
        ("missing_field", True, {"prompt": "Hi", "chosen": "Ho"}),
        (
            "missing_field",
            True,
            {"prompt": "Hi", "chosen": "Ho", "rejected": "No", "ref_chosen_logp": -1.0},
        ),
        ("not_a_number", True, {"prompt": "Hi", "chosen": "Ho", "rejected": "No", "margin": "big"}),
    ],
)
def test_bad_pairs(reason: str, mistake: bool, row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        read(row, "preference", "preference")
    assert (caught.value.reason, caught.value.mistake) == (reason, mistake)


@pytest.mark.parametrize("label", ["true", "yes", 2, 0.5, [True]])
def test_a_label_typo(label: Any) -> None:
    with pytest.raises(BadRow, match="must be true or false") as caught:
        read({"prompt": "Hi", "completion": "Ho", "label": label}, "kto", "verdict")
    assert caught.value.mistake


def test_messages_name_what_would_help() -> None:
    with pytest.raises(
        BadRow, match=r"it has 'conversations'; its fields are those of the format sharegpt"
    ):
        read({"conversations": []}, "messages")
    with pytest.raises(BadRow, match=r"'bot'; known are .* roles: \{bot: user\}"):
        read({"messages": [{"role": "bot", "content": "x"}]}, "messages")
    assert (
        read(
            {"messages": [{"role": "bot", "content": "x"}, said("y")]},
            "messages",
            roles={"bot": "user"},
        ).messages[0]["role"]
        == "user"
    )


def test_null_is_not_called_missing() -> None:
    with pytest.raises(
        BadRow, match="the field 'output' \\(completion\\) of the row is null"
    ) as caught:
        read({"instruction": "Hi", "output": None}, "alpaca")
    assert caught.value.reason == "missing_field"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "sharegtp"},
            r"data.format='sharegtp' is unknown. Did you mean 'sharegpt'\? For a conversation",
        ),
        ({"name": "kto"}, r"data.format='kto' gives a verdict, here a conversation is wanted"),
        (
            {"name": "alpaca", "fields": {"answer": "x"}},
            r"data.fields names answer; the parts of 'alpaca' are prompt",
        ),
        ({"name": "messages", "roles": {"bot": "robot"}}, "data.roles maps to robot"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_format(
            **{"kind": "conversation", "fields": None, "roles": None, "setting": "data", **options}
        )


def test_every_format_is_of_some_kind() -> None:
    assert all(format.kinds() for format in ROW_FORMATS.values())


# ---------------------------------------------------------------------- trees, steps and segments


def node(role: str, text: str, *replies: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **fields}


TREE = {
    "message_tree_id": "1",
    "prompt": node(
        "prompter",
        "Hi",
        node("assistant", "No", rank=1),
        node("assistant", "Ho", node("prompter", "So?", node("assistant", "Yes")), rank=0),
        node("assistant", "gone", rank=2, deleted=True),
        node("assistant", "unranked"),
    ),
}


def test_trees_give_the_best_path_and_pairs_of_best_and_worst() -> None:
    format = ROW_FORMATS["oasst_tree"]
    (row,), plain, _ = expand_record(TREE, format, kind="conversation")
    assert read_row(row, plain, kind="conversation") == Conversation(
        messages=(user("Hi"), said("Ho"), user("So?"), said("Yes")), prompt=3
    )
    rows, plain, _ = expand_record(TREE, format, kind="preference")
    assert [read_row(row, plain, kind="preference") for row in rows] == [PAIR]
    answers = (node("assistant", "a", rank=0), node("assistant", "b", rank="1"))
    for prompt in (
        3, node("robot", "x"), {"text": "x"}, {"text": "x", "role": ["prompter"]},
        node("prompter", "Hi", *answers),
    ):  # fmt: skip
        with pytest.raises(BadRow, match="tree"):
            expand_record({"prompt": prompt}, format, kind="conversation")


def test_steps_are_verdicts_up_to_the_first_that_is_wrong() -> None:
    row = {"prompt": "Hi", "completions": ["a", "b", "c"], "labels": [True, False, False]}
    rows, plain, _ = expand_record(row, ROW_FORMATS["steps"], kind="verdict")
    read_ = [read_row(row, plain, kind="verdict") for row in rows]
    assert [(r.completion[0]["content"], r.desirable) for r in read_] == [
        ("a", True),
        ("a\nb", False),
    ]
    with pytest.raises(BadRow, match="lists of one length"):
        expand_record({**row, "labels": [True]}, ROW_FORMATS["steps"], kind="verdict")
    with pytest.raises(BadRow, match="lists of one length"):
        expand_record({**row, "completions": "abc"}, ROW_FORMATS["steps"], kind="verdict")


def test_rows_of_a_tree_or_of_steps_keep_what_their_record_says_of_them() -> None:
    steps = {"prompt": "Hi", "completions": ["a"], "labels": [True], "system": "Be brief."}
    extra: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    for record, name, kind in ((steps, "steps", "verdict"), (TREE, "oasst_tree", "preference")):
        (row,), plain, _ = expand_record({**record, **extra}, ROW_FORMATS[name], kind=kind)
        assert read_row(row, plain, kind=kind).options == {"enable_thinking": False}
        (row,), plain, _ = expand_record({**record, "train": False}, ROW_FORMATS[name], kind=kind)
        with pytest.raises(BadRow, match="the row itself has the weight 0"):
            read_row(row, plain, kind=kind)
    (row,), plain, _ = expand_record(steps, ROW_FORMATS["steps"], kind="verdict")
    assert read_row(row, plain, kind="verdict").spoken() == (
        {"role": "system", "content": "Be brief."}, user("Hi"), said("a")
    )  # fmt: skip
    nested = find_format("steps", kind="verdict", fields={"prompt": "task.text"}, roles=None,
                         setting="data")  # fmt: skip
    moved = {"task": {"text": "Hi"}, **{k: v for k, v in steps.items() if k != "prompt"}}
    assert expand_record(moved, nested, kind="verdict").rows == [row]


def test_labels_of_a_record_are_noted_on_each_of_its_rows(
    write_rows: Callable[..., str],
) -> None:
    """Also those of a tree's messages, of which nothing is lost without a word."""
    tree = {**TREE, "source": "made", "prompt": {**TREE["prompt"], "lang": "en"}}
    steps = {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False], "id": 7}
    of_tree = {"unread source": 1, "unread message_tree_id": 1}
    for record, name, kind, noted in (
        (tree, "oasst_tree", "conversation", of_tree),
        (tree, "oasst_tree", "preference", of_tree),
        (steps, "steps", "verdict", {"unread id": 2}),
        (steps, "steps", "stepwise", {"unread id": 1}),
    ):
        rows = list(
            read_source(
                "mine", RowSource(path=write_rows([record]), format=name), kind=kind,
                validation=0.0, test=0.0, on_bad_row="refuse", tally=RowTally(),
            )
        )  # fmt: skip
        found = Counter(note for read in rows for note in read.row.notes)
        assert found == noted
        if name == "oasst_tree":
            assert dict(rows[0].row.spoken()[0])["lang"] == "en"


def test_segments_and_texts_need_no_template() -> None:
    pieces = [{"label": False, "text": "<s>Hi "}, {"label": True, "text": "Ho</s>"}]
    assert read({"segments": pieces}, "input_output").segments == (
        Segment("<s>Hi ", False),
        Segment("Ho</s>", True),
    )
    assert read({"text": "A story."}, "text").segments == (Segment("A story.", True, False),)
    for bad in ([{"text": "a"}], [{"label": 1, "text": "a"}], "a"):
        with pytest.raises(BadRow):
            read({"segments": bad}, "input_output")
    with pytest.raises(BadRow, match="no segment has label: true"):
        read({"segments": pieces[:1]}, "input_output")


def test_prompts_alone_are_problems() -> None:
    assert read({"prompt": "Hi", "seed": 3}, "prompt", "problem").answer == ""
