"""Layouts: turn records of well-known datasets into rows of the plain formats.

Each function takes the parts of a record by name, not yet checked, and returns rows of `messages`,
`preference` or `steps`, with notes on what it passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_pretrain.chat.messages import BadRow
from lit_pretrain.chat.tool_calls import calls_of, tools_of
from lit_pretrain.data.chat.message_fields import read_number
from lit_pretrain.data.chat.transcripts import is_transcript, transcript_messages

_Row = dict[str, Any]
STEP_MARK = "ки"
"""What follows every step in Math-Shepherd; its labels have + or - in its place."""
_FIRST_STEP = "Step 1:"


class LaidOut(NamedTuple):
    """The rows that a record stands for."""

    rows: list[_Row]
    notes: tuple[str, ...] = ()
    """Fields of the objects in the record that nobody reads."""


def exchanged_messages(parts: Mapping[str, Any]) -> LaidOut:
    """Read turns without roles: texts by turns, as in LIMA, or pairs, as in Capybara.

    Raises:
        BadRow: They are neither.
    """
    turns = _list(parts["messages"], "the conversation")
    asked, said = parts.get("question", "input"), parts.get("reply", "output")
    messages: list[_Row] = []
    unread: set[str] = set()
    for i, turn in enumerate(turns):
        if isinstance(turn, Mapping) and asked in turn and said in turn:
            texts = [turn[asked], turn[said]]
            unread |= turn.keys() - {asked, said}
        elif isinstance(turn, str):
            texts = [turn]
        else:
            raise BadRow(
                "not_text",
                f"turn {i + 1} of {len(turns)} is neither a text nor an object with {asked!r} and"
                f" {said!r}: {str(turn)[:60]!r}",
            )
        for text in texts:
            role = "assistant" if len(messages) % 2 else "user"
            messages.append({"role": role, "content": text})
    if messages and messages[-1]["content"] is None:  # a pair that has no answer yet
        messages.pop()
    return LaidOut([{"messages": messages}], _noted(unread))


def answered_calls(parts: Mapping[str, Any]) -> LaidOut:
    """Read a question that is answered by tool calls alone, as in xLAM.

    Raises:
        BadRow: The calls or the tools are none, or there are no calls.
    """
    calls = calls_of(parts["calls"], "the answer")
    if not calls:
        raise BadRow("empty_answer", "the answer calls no tool", mistake=False)
    messages: list[_Row] = [
        {"role": "user", "content": parts["prompt"]},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    if parts.get("system"):
        messages.insert(0, {"role": "system", "content": parts["system"]})
    return LaidOut([{"messages": messages, "tools": tools_of(parts["tools"], bare=True)}])


def compared_answers(parts: Mapping[str, Any]) -> LaidOut:
    """Read two answers with a number that says which is better, as in HelpSteer 3.

    A negative number prefers the first, a positive one the second.

    Raises:
        BadRow: The number is none, or prefers neither.
    """
    preferred = read_number(parts["preferred"], "the preference")
    if preferred == 0:
        raise BadRow("tie", "neither answer is preferred", mistake=False)
    chosen, rejected = parts["first"], parts["second"]
    if preferred > 0:
        chosen, rejected = rejected, chosen
    return LaidOut([{"prompt": _asked(parts), "chosen": chosen, "rejected": rejected}])


def ranked_answers(parts: Mapping[str, Any]) -> LaidOut:
    """Read answers with a rank or a score each, as in Nectar and UltraFeedback: the best and worst.

    Answers without one do not count. Of equals the first is taken.

    Raises:
        BadRow: They are no answers, or no two of them differ in their rank or score.
    """
    field = parts.get("reply_rank") or parts["reply_score"]
    sign = -1 if "reply_rank" in parts else 1
    answers = _list(parts["answers"], "the answers")
    valued: list[tuple[float, str]] = []
    unread: set[str] = set()
    for i, answer in enumerate(answers):
        where = f"answer {i + 1} of {len(answers)}"
        text = answer.get(parts["reply"]) if isinstance(answer, Mapping) else None
        if not isinstance(text, str):
            raise BadRow("not_text", f"{where} has no text {parts['reply']!r}")
        if field not in answer:
            raise BadRow("missing_field", f"{where} has no {field!r}; name it in `fields`")
        unread |= answer.keys() - {parts["reply"], field}
        if answer[field] is not None:
            valued.append((sign * read_number(answer[field], f"{field} of {where}"), text))
    best, worst = (pick(valued, key=lambda pair: pair[0], default=(0.0, "")) for pick in (max, min))
    if best[0] == worst[0]:
        raise BadRow("tie", f"no two answers differ in their {field}", mistake=False)
    row = {"prompt": _asked(parts), "chosen": best[1], "rejected": worst[1]}
    return LaidOut([row], _noted(unread))


def rated_steps(parts: Mapping[str, Any]) -> LaidOut:
    """Read alternatives for every step, each with a rating, as in PRM800K.

    Every alternative that was not taken ends an answer of its own, and the ones that were taken
    make another. A step is right if its rating is 1, as in TRL's reading of the dataset. An answer
    ends before a step without a rating.

    Raises:
        BadRow: The row holds no such steps.
    """
    answers: list[tuple[list[str], list[bool]]] = []
    texts: list[str] = []
    labels: list[bool] = []
    steps = _list(parts["steps"], "the steps")
    for i, step in enumerate(steps):
        where = f"step {i + 1} of {len(steps)}"
        if not isinstance(step, Mapping) or "completions" not in step:
            raise BadRow("steps", f"{where} has no completions: {str(step)[:60]!r}")
        completions = _list(step["completions"] or (), f"the completions of {where}")
        tries = [_rated(each, where) for each in completions]
        taken = step.get("chosen_completion")
        if taken is not None and not (type(taken) is int and 0 <= taken < len(tries)):
            raise BadRow("steps", f"{where} has the chosen_completion {taken!r}, and none has it")
        for k, (text, right) in enumerate(tries):
            if k != taken and right is not None:
                answers.append(([*texts, text], [*labels, right]))
        if taken is not None:
            text, right = tries[taken]
        elif step.get("human_completion") is not None:
            text, right = _rated(step["human_completion"], where)[0], True
        else:
            break
        if right is None:
            break
        texts.append(text)
        labels.append(right)
    if texts:
        answers.append((texts, labels))
    if not answers:
        raise BadRow("empty_answer", "no step of the answer has a rating", mistake=False)
    prompt = parts["prompt"]
    return LaidOut(
        [{"prompt": prompt, "completions": steps, "labels": right} for steps, right in answers]
    )


def _rated(completion: Any, where: str) -> tuple[str, bool | None]:
    if not isinstance(completion, Mapping) or not isinstance(completion.get("text"), str):
        raise BadRow("steps", f"a completion of {where} has no text")
    rating = completion.get("rating")
    if rating not in (None, -1, 0, 1):
        raise BadRow("label", f"a completion of {where} has the rating {rating!r}, not -1, 0 or 1")
    return completion["text"], None if rating is None else rating == 1


def marked_steps(parts: Mapping[str, Any]) -> LaidOut:
    """Read a solution in which a mark follows every step, as in Math-Shepherd.

    The question is what stands before `Step 1:`. The labels repeat the text with + or - in place of
    every mark.

    Raises:
        BadRow: Text and labels do not fit each other, or there is no first step.
    """
    text, verdicts = parts["marked"], parts["verdicts"]
    if not isinstance(text, str) or not isinstance(verdicts, str) or STEP_MARK not in text:
        raise BadRow("steps", f"the row has no text with the mark {STEP_MARK!r} behind every step")
    *steps, rest = text.split(STEP_MARK)
    labels = []
    place = 0
    for step in steps:
        end = place + len(step)
        if verdicts[place:end] != step or verdicts[end : end + 1] not in ("+", "-"):
            raise BadRow(
                "steps",
                f"the labels do not repeat the text with + or - in place of {STEP_MARK!r}:"
                f" {verdicts[place : end + 1][-40:]!r}",
            )
        labels.append(verdicts[end] == "+")
        place = end + 1
    # A few questions have a mark of their own, whose verdict is on no step.
    before = next((i for i, step in enumerate(steps) if _FIRST_STEP in step), None)
    if before is None or rest.strip():
        what = f"no {_FIRST_STEP!r}" if before is None else f"{rest.strip()[:40]!r} behind its end"
        raise BadRow("steps", f"the text of the row has {what}")
    question, first = steps[before].split(_FIRST_STEP, 1)
    question = "".join([*steps[:before], question]).strip()
    completions = [(_FIRST_STEP + first).strip(), *(s.strip() for s in steps[before + 1 :])]
    return LaidOut([{"prompt": question, "completions": completions, "labels": labels[before:]}])


def _asked(parts: Mapping[str, Any]) -> Any:
    """Return the prompt; a transcript as messages, without the header of the answer behind it."""
    prompt = parts["prompt"]
    if not isinstance(prompt, str) or not is_transcript(prompt):
        return prompt
    messages = transcript_messages(prompt, "the prompt")
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages


def _list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("not_text", f"{what} is a {type(value).__name__}; it must be a list")
    return value


def _noted(unread: set[str]) -> tuple[str, ...]:
    return tuple(f"unread {name}" for name in sorted(unread))
