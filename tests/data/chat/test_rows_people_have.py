"""Layouts of well-known datasets, in invented rows: each is read as it is meant, or named."""

import json
import re
from datetime import date
from typing import Any

import pytest

from lit_pretrain.chat.messages import BadRow, JudgedAnswer, StepwiseAnswer, TrainingRow
from lit_pretrain.chat.template import TEMPLATE_PRESETS, Refused, find_template
from lit_pretrain.chat.unread_fields import template_mark
from lit_pretrain.data.chat.detection import detect_format
from lit_pretrain.data.chat.formats import ROW_FORMATS, find_format
from lit_pretrain.data.chat.row_reader import expand_record, read_row
from lit_pretrain.errors import UserError

Row = dict[str, Any]
USER, SAID = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Curled up."}
BAD = {"role": "assistant", "content": "Standing up."}
ASKED = "How do foxes sleep at night?"

READ: dict[str, tuple[str, Row, str, set[str]]] = {  # kind, row, its format, what is noted
    "UltraFeedback": (
        "preference",
        {"prompt": "How?", "prompt_id": "a", "chosen": [USER, SAID], "rejected": [USER, BAD],
         "messages": [USER, SAID], "score_chosen": 8.5, "score_rejected": 6.0},
        "preference", {"unread messages", "unread score_chosen"},
    ),
    "a tie that went the other way": (
        "preference",
        {"prompt": "How?", "chosen": "Curled up.", "rejected": "Standing up.",
         "chosen_score": 4.0, "rejected_score": 5.0},
        "preference", {"chosen_scored_lower"},
    ),
    "a tie in the columns of UltraFeedback, cleaned": (
        "preference",
        {"prompt": "How?", "chosen": [USER, SAID], "rejected": [USER, BAD],
         "chosen-rating": 4.0, "rejected-rating": 5.0},
        "preference", {"chosen_scored_lower"},
    ),
    "tools that the system lists already": (
        "conversation",
        {"messages": [{"role": "system", "content": '<tools>{"name": "look"}</tools>'}, USER,
                      {"role": "assistant", "content": '<tool_call>{"name": "look"}</tool_call>'}],
         "tools": [{"type": "function", "function": {"name": "look"}}]},
        "messages", {"tools_in_system", "calls_as_text"},
    ),
    "Capybara": (
        "conversation",
        {"source": "x", "conversation": [{"input": "How?", "output": "Curled up.", "n": 1},
                                         {"input": "And wolves?", "output": None}]},
        "capybara", {"unread source", "unread n"},
    ),
    "UltraFeedback, raw": (
        "preference",
        {"instruction": "How?", "models": ["a"], "correct_answers": ["None"],
         "completions": [{"response": "Lying.", "overall_score": 6, "critique": "Not quite so."},
                         {"response": "Standing up.", "overall_score": 2.5},
                         {"response": "Curled up.", "overall_score": 9},
                         {"response": "No idea.", "overall_score": None}]},
        "ultrafeedback", {"unread models", "unread correct_answers", "unread critique"},
    ),
    "Nectar": (
        "preference",
        {"prompt": "\n\nHuman: How?\n\nAssistant: ", "turns": 1,
         "answers": [{"answer": "Lying.", "rank": 2.0}, {"answer": "Curled up.", "rank": 1.0},
                     {"answer": "Standing up.", "rank": 3.0, "model": "a"}]},
        "nectar", {"unread turns", "unread model"},
    ),
    "HelpSteer 3": (
        "preference",
        {"context": [USER], "response1": "Standing up.", "response2": "Curled up.",
         "overall_preference": 2, "individual_preference": [{"reasoning": "It is so."}]},
        "helpsteer3", {"unread individual_preference"},
    ),
    "NuminaMath 1.5": (
        "problem", {"problem": "1+1?", "solution": "It is 2.", "answer": "2"},
        "problem_answer", {"unread solution"},
    ),
    "answers that begin with the question": (
        "preference",
        {"prompt": ASKED, "chosen": f"{ASKED} Curled up.", "rejected": f"{ASKED} Standing."},
        "preference", {"answer_repeats_prompt"},
    ),
    "Tulu 3": (
        "conversation", {"id": "a", "messages": [USER, SAID], "source": "x/flan"},
        "messages", {"unread id", "unread source"},
    ),
    "UltraChat": (
        "conversation", {"prompt": "How?", "prompt_id": "a", "messages": [USER, SAID]},
        "messages", {"unread prompt"},
    ),
    "NuminaMath": (
        "conversation", {"problem": "How?", "solution": "Curled up.", "messages": [USER, SAID]},
        "messages", {"unread problem", "unread solution"},
    ),
    "SlimOrca": (
        "conversation",
        {"conversations": [{"from": "human", "value": "How?", "weight": 0.0},
                           {"from": "gpt", "value": "Curled up.", "weight": 1.0}]},
        "sharegpt", set(),
    ),
    "APIGen": (
        "conversation",
        {"conversations": [{"from": "human", "value": "How?"},
                           {"from": "function_call", "value": '{"name": "look", "arguments": {}}'},
                           {"from": "observation", "value": "41.9 N"},
                           {"from": "gpt", "value": "There."}],
         "tools": '[{"name": "look", "parameters": {}}]', "system": "Be brief."},
        "sharegpt", set(),
    ),
    "messages as JSON text, as tables have them": (
        "conversation",
        {"messages": '[{"role": "user", "content": "How?"},'
                     ' {"role": "assistant", "content": "Curled up."}]'},
        "messages", set(),
    ),
    "a prompt as JSON text": (
        "preference",
        {"prompt": '[{"role": "user", "content": "How?"}]', "chosen": "Curled up.",
         "rejected": "Standing."},
        "preference", set(),
    ),
    "an answer that is JSON": (
        "conversation", {"prompt": "List it.", "completion": '[{"a": 1}]'},
        "prompt_completion", set(),
    ),
    "choices that the question lists": (
        "problem",
        {"question": "Where? A den, B sea.", "choices": ["den", "sea"], "answer": "A"},
        "qa", {"unread choices"},
    ),
    "whole conversations beside their last question": (
        "preference",
        {"prompt": "And wolves?",
         "chosen": [USER, SAID, {"role": "user", "content": "And wolves?"}, SAID],
         "rejected": [USER, SAID, {"role": "user", "content": "And wolves?"}, BAD]},
        "preference", set(),
    ),
    "a completion that repeats its prompt": (
        "verdict", {"prompt": [USER], "completion": [USER, SAID], "label": True}, "kto", set(),
    ),
    "a label that says yes": (
        "conversation", {"prompt": "How?", "completion": "Curled up.", "label": True},
        "prompt_completion", {"unread label"},
    ),
    "a class of documents": (
        "conversation", {"text": "A film about a fox.", "label": 0}, "text", {"unread label"},
    ),
    "HTML that ends with </s>": (
        "conversation", {"prompt": "How?", "completion": "<s>No</s> yes, <s>no</s>"},
        "prompt_completion", set(),
    ),
}  # fmt: skip


def read(row: Row, kind: str, *, ignore: tuple[str, ...] = ()) -> tuple[str, list[TrainingRow]]:
    name = detect_format([row], kind=kind, fields=None, roles=None, ignore=ignore, setting="data")
    format = find_format(name, kind=kind, fields=None, roles=None, setting="data")
    expanded = expand_record(row, format, kind=kind, ignore=ignore)
    return name, [
        read_row(part, expanded.format, kind=kind, ignore=ignore, notes=expanded.notes)
        for part in expanded.rows
    ]


@pytest.mark.parametrize("name", READ)
def test_a_layout_is_read_as_it_is_meant(name: str) -> None:
    kind, row, format, noted = READ[name]
    found, rows = read(row, kind)
    assert found == format
    assert noted <= {note for row in rows for note in row.notes}
    if name.endswith(("JSON text", "tables have them")):
        assert rows[0].spoken()[0] == USER


def test_pairs_of_answers_are_the_best_and_the_worst() -> None:
    for name in ("UltraFeedback, raw", "Nectar", "HelpSteer 3"):
        (pair,) = read(READ[name][1], "preference")[1]
        assert pair.spoken() == (USER, SAID, BAD), name


def test_records_with_nothing_to_prefer_are_left_out() -> None:
    alike = [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}, {"answer": "c", "rank": None}]
    for name, row in (
        ("nectar", {"prompt": "How?", "answers": alike}),
        ("nectar", {"prompt": "How?", "answers": []}),
        ("helpsteer3", {**READ["HelpSteer 3"][1], "overall_preference": 0}),
    ):
        with pytest.raises(BadRow) as bad:
            expand_record(row, ROW_FORMATS[name], kind="preference")
        assert (bad.value.reason, bad.value.mistake) == ("tie", False)


CALLS = '[{"name": "look", "arguments": {"place": "Rome"}}, {"name": "stop", "arguments": {}}]'
TOOL = {"name": "look", "parameters": {"place": {"type": "str"}}}


def test_calls_of_xlam_are_calls_of_the_assistant() -> None:
    for calls in (CALLS, json.loads(CALLS)):
        row = {"query": "Where?", "answers": calls, "tools": json.dumps([TOOL]), "id": 1}
        name, (found,) = read(row, "conversation")
        question, answer = found.spoken()
        assert (name, question["content"], answer["content"]) == ("xlam", "Where?", None)
        made = [call["function"] for call in answer["tool_calls"]]
        assert made == json.loads(CALLS)
        assert found.tools == [{"type": "function", "function": TOOL}]
    with pytest.raises(BadRow, match="calls no tool"):
        expand_record({**row, "answers": "[]"}, ROW_FORMATS["xlam"], kind="conversation")


def test_turns_without_roles_go_by_turns() -> None:
    (found,) = read(READ["Capybara"][1], "conversation")[1]
    assert found.spoken() == (USER, SAID, {"role": "user", "content": "And wolves?"})
    name, (found,) = read({"conversations": ["How?", "Curled up."]}, "conversation")
    assert (name, found.spoken()) == ("lima", (USER, SAID))


def step(chosen: int | None, *rated: tuple[str, int | None], human: str | None = None) -> Row:
    written = None if human is None else {"text": human, "rating": None}
    return {"completions": [{"text": text, "rating": rating} for text, rating in rated],
            "chosen_completion": chosen, "human_completion": written}  # fmt: skip


def test_steps_of_prm800k_are_those_of_trl() -> None:
    """An alternative is taken or ends an answer; a neutral rating is not right."""
    steps = [
        step(0, ("a", 1), ("b", -1)),
        step(None, ("c", -1), human="d"),
        step(1, ("e", None), ("f", 0)),
        step(0, ("g", None)),
        step(0, ("h", 1)),
    ]
    row = {"question": {"problem": "1+1?", "ground_truth_solution": "It is two."},
           "label": {"steps": steps, "finish_reason": "solution"}, "labeler": "x"}  # fmt: skip
    name, found = read(row, "stepwise")
    assert name == "prm800k"
    assert [(f.steps, f.right) for f in found if isinstance(f, StepwiseAnswer)] == [
        (("b",), (False,)),
        (("a", "c"), (True, False)),
        (("a", "d", "f"), (True, True, False)),
    ]
    assert "unread question.ground_truth_solution" in found[0].notes
    verdicts = read(row, "verdict")[1]
    assert [
        (f.completion[0]["content"], f.desirable) for f in verdicts if isinstance(f, JudgedAnswer)
    ] == [("b", False), ("a", True), ("a\nc", False), ("a\nd", True), ("a\nd\nf", False)]


def test_steps_of_math_shepherd_are_told_from_their_question() -> None:
    text = "1+1? ки Step 1: One more. ки\nStep 2: Three. ки"
    row = {"input": text, "label": "1+1? + Step 1: One more. +\nStep 2: Three. -", "task": "GSM8K"}
    for record in (row, {"input": text.replace("? ки", "?"),
                         "label": str(row["label"]).replace("? +", "?")}):  # fmt: skip
        name, (found,) = read(record, "stepwise")
        assert name == "math_shepherd"
        assert isinstance(found, StepwiseAnswer)
        assert found.prompt == ({"role": "user", "content": "1+1?"},)
        assert found.steps == ("Step 1: One more.", "Step 2: Three.")
        assert found.right == (True, False)


RENDERED = "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
REFUSED: dict[str, tuple[str, Row, str, str]] = {  # kind, row, the message, what lets it pass
    "UltraFeedback for fine-tuning": (
        "conversation",
        {"prompt": "How?", "chosen": [USER, SAID], "rejected": [USER, BAD],
         "messages": [USER, SAID]},
        "PreferenceData takes them, as preference", "rejected",
    ),
    "a text that ChatML has written": (
        "conversation", {"text": RENDERED + "Curled up.<|im_end|>"},
        "holds '<|im_start|>', the mark of a turn", "<|im_start|>",
    ),
    "a text that Mistral's template has written": (
        "conversation", {"text": "<s>[INST] How? [/INST] Curled up. </s>"},
        "'[INST]', the mark", "[INST]",
    ),
    "a prompt that a template has written": (
        "preference", {"prompt": RENDERED, "chosen": "Curled up.", "rejected": "Standing."},
        "'<|im_start|>', the mark", "<|im_start|>",
    ),
    "an answer with its stop": (
        "conversation", {"instruction": "How?", "output": "Curled up.<|endoftext|>"},
        "'<|endoftext|>', the mark", "<|endoftext|>",
    ),
    "an answer of Llama 2": (
        "verdict", {"prompt": "How?", "completion": "Curled up. </s>\n", "label": True},
        "'</s>', the mark", "</s>",
    ),
    "a prompt for reinforcement learning": (
        "problem", {"prompt": "<|start_header_id|>user<|end_header_id|>\n\nHow?", "answer": "up"},
        "'<|start_header_id|>', the mark", "<|start_header_id|>",
    ),
    "steps behind a prompt that a template has written": (
        "stepwise", {"prompt": RENDERED, "completions": ["a"], "labels": [True]},
        "'<|im_start|>', the mark", "<|im_start|>",
    ),
    "OpenAssistant's messages, one a row": (
        "conversation", {"message_id": "b", "parent_id": "a", "text": "Curled up.",
                         "role": "assistant", "lang": "en"},
        "'parent_id' ('a') says that its text is one message of a thread", "",
    ),
    "bad answers of KTO": (
        "conversation", {"prompt": "How?", "completion": "Standing.", "label": False},
        "its answer is a bad one, which would be imitated", "label",
    ),
    "bad answers of KTO, as numbers": (
        "conversation", {"messages": [USER, BAD], "label": 0},
        "its answer is a bad one", "label",
    ),
    "answers that failed": (
        "conversation", {"question": "How?", "answer": "Standing.", "is_correct": False},
        "'is_correct' is False", "is_correct",
    ),
    "conversations that do not hold their prompt": (
        "preference",
        {"prompt": "And wolves?", "chosen": [USER, SAID], "rejected": [USER, BAD]},
        "chosen begins with a message of the user ('How?')", "",
    ),
    "a completion with another question": (
        "conversation",
        {"prompt": [{"role": "user", "content": "And wolves?"}], "completion": [USER, SAID]},
        "the completion begins with a message of the user", "",
    ),
    "choices that nobody shows": (
        "problem", {"question": "Where do they sleep?", "choices": ["den", "sea"], "answer": "A"},
        "'choices' holds text that nobody reads", "choices",
    ),
    "choices by letters": (
        "problem", {"question": "Where?", "A": "den", "B": "sea", "answer": "A"},
        "'A' holds text that nobody reads", "",
    ),
    "code that the task begins with": (
        "problem", {"prompt": "Write it.", "starter_code": "def f():", "answer": "1"},
        "'starter_code' holds text", "starter_code",
    ),
    "WildChat": (
        "conversation", {"conversation": [USER, SAID], "model": "x"},
        "Perhaps format: messages, fields: {messages: conversation}.", "",
    ),
    "MedicalO1": (
        "conversation", {"Question": "How?", "Complex_CoT": "Let me see.", "Response": "So."},
        "Perhaps format: prompt_completion, fields: {prompt: Question, completion: Response}.", "",
    ),
    "MATH for reinforcement learning": (
        "problem", {"problem": "1+1?", "solution": "It is 2."},
        "ChatData takes them, as problem_solution", "",
    ),
    "ratings beside an answer": (
        "conversation", {"prompt": "How?", "response": "Curled up.", "helpfulness": 3},
        "Perhaps format: prompt_completion, fields: {prompt: prompt, completion: response}.", "",
    ),
    "a trajectory before short answers": (
        "preference", {"trajectory": [{"from": "user", "value": "1+1?"}], "chosen": "It is 2.",
                       "rejected": "It is 3."},
        "'trajectory' holds text that nobody reads", "",
    ),
    "LIMA's texts with an object among them": (
        "conversation", {"conversations": ["How?", {"text": "Curled up."}]},
        "turn 2 of 2 is neither a text nor an object with 'input' and 'output'", "",
    ),
    "answers without the field of their rank": (
        "preference", {"prompt": "How?", "answers": [{"answer": "Curled up."}]},
        "answer 1 of 1 has no 'rank'", "",
    ),
    "a preference in words": (
        "preference", {"context": [USER], "response1": "a b", "response2": "c d",
                       "overall_preference": "first"},
        "the preference is 'first'; it must be a finite number", "",
    ),
    "labels of another text": (
        "stepwise", {"input": "1+1? Step 1: two ки", "label": "1+1? Step 1: too +"},
        "the labels do not repeat the text", "",
    ),
    "marks without a first step": (
        "stepwise", {"input": "1+1? two ки", "label": "1+1? two +"},
        "has no 'Step 1:'", "",
    ),
    "a step that nobody took": (
        "stepwise", {"question": {"problem": "1+1?"}, "label": {"steps": [
            {"completions": [{"text": "a", "rating": 1}], "chosen_completion": 3}]}},
        "step 1 of 1 has the chosen_completion 3, and none has it", "",
    ),
    "completions that are a number": (
        "stepwise", {"question": {"problem": "1+1?"}, "label": {"steps": [{"completions": 3}]}},
        "must be a list", "",
    ),
    "a rating that is none": (
        "stepwise", {"question": {"problem": "1+1?"}, "label": {"steps": [
            {"completions": [{"text": "a", "rating": 7}], "chosen_completion": 0}]}},
        "has the rating 7, not -1, 0 or 1", "",
    ),
    "calls that are none": (
        "conversation", {"query": "How?", "tools": "[]", "answers": "[look()]"},
        "the answer is a tool call, and is not JSON", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_teach_something_else_is_named(name: str) -> None:
    kind, row, message, allows = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        read(row, kind)
    if allows:
        more = ("chosen", "prompt") if "UltraFeedback" in name else ()
        _, rows = read(row, kind, ignore=(allows, *more))
        assert len(rows) == 1
        facts = getattr(rows[0], "facts", {})  # rewards may read what is ignored
        assert not facts or facts == row


def test_what_both_answers_share_is_their_prompt() -> None:
    again = {"role": "user", "content": "And wolves?"}
    for name, system in (("", ()), ("Be brief.", ({"role": "system", "content": "Be brief."},))):
        row = {"chosen": [USER, SAID, again, SAID], "rejected": [USER, SAID, again, BAD]}
        for prompt in ([USER], [*system, USER], [*system, USER, SAID, again], [again], "How?"):
            pair = read({"prompt": prompt, **row}, "preference")[1][0]
            own = system if isinstance(prompt, list) and prompt[0]["role"] == "system" else ()
            assert pair.spoken() == (*own, USER, SAID, again, SAID, BAD), (name, prompt)


def test_what_our_templates_write_is_told_from_text() -> None:
    for file in TEMPLATE_PRESETS.glob("*.jinja"):
        template = find_template(file.stem, ".")
        if file.stem != "plain":
            for talk in ([USER, SAID], [{"role": "system", "content": "Be brief."}, USER, SAID]):
                try:
                    text = template.render(talk, bos="<s>", eos="", date=date(2025, 12, 31)).text
                except Refused:  # no system, for Gemma
                    assert len(talk) == 3
                    continue
                assert template_mark(text.removeprefix("<s>")), (file.stem, text)


def test_marks_in_the_middle_and_of_tools_are_text() -> None:
    assert template_mark("What does <|im_end|> mean?") is None
    assert template_mark("It ends with </s> here.") is None
    assert template_mark(" <s> [INST] Hi") == "[INST]"
    page = {"role": "tool", "content": "<|im_start|>user"}
    calls = {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "look", "arguments": {}}}]}  # fmt: skip
    _, rows = read({"messages": [USER, calls, page, SAID]}, "conversation")
    assert rows[0].spoken()[2]["content"] == "<|im_start|>user"
    format = find_format("input_output", kind="conversation", fields=None, roles=None, setting="")
    row = {"segments": [{"label": True, "text": RENDERED}]}
    assert read_row(row, format, kind="conversation")
    with pytest.raises(BadRow, match="the mark of a turn"):
        read_row(
            {"prompt": "How?", "completion": "Up<|eot_id|>"},
            find_format("prompt_completion", kind="conversation", fields=None, roles=None,
                        setting="data"),
            kind="conversation", check_unread=False,
        )  # fmt: skip
