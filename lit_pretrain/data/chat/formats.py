"""Row formats: turn rows of known layouts, or of your own by field names, into messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Any, cast

from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    JudgedAnswer,
    Message,
    Preference,
    Problem,
    ToolDescription,
    TrainingRow,
    check_answer,
    check_messages,
    joined_text,
)
from lit_pretrain.class_path import import_class_path
from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import load_json


def _same(*parts: str) -> dict[str, str]:
    """Name parts whose fields have the same names."""
    return {part: part for part in parts}


_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
_TURNS = {"messages": "messages", "role": "role", "content": "content"}
_SHAREGPT_TURNS = {"messages": "conversations", "role": "from", "content": "value"}
_INSTRUCTION = {"prompt": "instruction", "input": "input"}
_REFERENCE = _same("ref_chosen_logp", "ref_rejected_logp")


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Names the field of a row that holds each part.

    The parts are `messages` (a list of messages, with the names of their `role` and `content`) or
    `prompt` (a text or a list of messages) with `input`; `system`, `tools` and `history`; then
    `completion`, or `chosen` and `rejected` with `margin`, or `completion` and `label`, or
    `answer`; and the columns `ref_logp`, `ref_chosen_logp` and `ref_rejected_logp`.
    """

    fields: Mapping[str, str]
    """Part -> field of the row; a dot descends into an object."""
    optional: frozenset[str] = frozenset(
        {"system", "tools", "input", "history", "margin", *_REFERENCE, "ref_logp"}
    )
    """Parts that a row may lack."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role in the file -> our role; our own names are always understood."""
    answer_after: str | None = None
    """Mark in the completion; the checkable answer is the text after its last occurrence."""

    def kinds(self) -> list[str]:
        """Return the kinds of rows that this format can give."""
        kinds = (
            ["conversation"]
            if self.fields.keys() & {"messages", "completion"} and "label" not in self.fields
            else []
        )
        kinds += ["preference"] if {"chosen", "rejected"} <= self.fields.keys() else []
        kinds += ["verdict"] if "label" in self.fields else []
        kinds += (
            ["problem"]
            if "prompt" in self.fields
            and self.fields.keys() & {"answer", "completion"}
            and "label" not in self.fields
            else []
        )
        return kinds if "preference" not in kinds else ["preference"]


ROW_FORMATS: Mapping[str, RowFormat] = {
    # OpenAI's fine-tuning files and TRL's conversational datasets.
    "messages": RowFormat(
        fields={**_TURNS, **_same("tools", "system")}, roles={"developer": "system"}
    ),
    "sharegpt": RowFormat(
        fields={**_SHAREGPT_TURNS, **_same("tools", "system")}, roles=_SHAREGPT_ROLES
    ),
    "alpaca": RowFormat(
        fields={**_INSTRUCTION, "completion": "output", **_same("system", "history")}
    ),
    "prompt_completion": RowFormat(fields=_same("prompt", "completion", "system", "tools")),
    "qa": RowFormat(fields={"prompt": "question", "completion": "answer", "system": "system"}),
    "gsm8k": RowFormat(fields={"prompt": "question", "completion": "answer"}, answer_after="####"),
    "prompt_answer": RowFormat(fields=_same("prompt", "answer", "system", "tools")),
    # Texts or lists of messages. Without a prompt, it is the common beginning of both answers.
    "preference": RowFormat(
        fields={**_same("prompt", "chosen", "rejected", "margin", "tools"), **_REFERENCE},
        optional=frozenset({"prompt", "margin", "tools", *_REFERENCE}),
    ),
    "alpaca_preference": RowFormat(
        fields={**_INSTRUCTION, **_same("chosen", "rejected", "system"), **_REFERENCE}
    ),
    "sharegpt_preference": RowFormat(
        fields={
            **_SHAREGPT_TURNS,
            **_same("chosen", "rejected", "system", "tools"),
            **_REFERENCE,
        },
        roles=_SHAREGPT_ROLES,
    ),
    "kto": RowFormat(fields=_same("prompt", "completion", "label", "system", "ref_logp")),
    "kto_messages": RowFormat(fields={**_TURNS, **_same("label", "system", "tools", "ref_logp")}),
    "kto_sharegpt": RowFormat(
        fields={**_SHAREGPT_TURNS, **_same("label", "system", "ref_logp")}, roles=_SHAREGPT_ROLES
    ),
}


def find_format(
    name: str,
    *,
    kind: str,
    fields: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
    setting: str,
) -> RowFormat:
    """Find a format by name and apply a user's own field and role names.

    Args:
        name: One of `ROW_FORMATS`, or the dotted path of a `RowFormat`.
        kind: conversation, preference, verdict or problem.
        fields: Part -> field, in place of the format's own.
        roles: Role in the file -> our role, in place of the format's own.
        setting: Name of the source's setting, for messages.

    Raises:
        UserError: The name or a part is unknown, or the format gives rows of another kind.
    """
    fitting = [other for other, format in ROW_FORMATS.items() if kind in format.kinds()]
    if name in ROW_FORMATS:
        format = ROW_FORMATS[name]
    elif "." in name:
        format = load_format(name, setting)
    else:
        raise UserError(
            f"{setting}.format={name!r} is unknown; for a {kind} there are {', '.join(fitting)}, or"
            " the dotted path of a RowFormat of yours"
        )
    if kind not in format.kinds():
        raise UserError(
            f"{setting}.format={name!r} gives a {' or a '.join(format.kinds())}, here a {kind} is"
            f" wanted: {', '.join(fitting)}"
        )
    unknown = sorted((fields or {}).keys() - format.fields.keys())
    if unknown:
        raise UserError(
            f"{setting}.fields names {', '.join(unknown)}; the parts of {name!r} are"
            f" {', '.join(format.fields)}"
        )
    wrong = sorted(set((roles or {}).values()) - {"system", "user", "assistant", "tool"})
    if wrong:
        raise UserError(
            f"{setting}.roles maps to {', '.join(wrong)}; roles are system, user, assistant, tool"
        )
    return replace(
        format, fields={**format.fields, **(fields or {})}, roles={**format.roles, **(roles or {})}
    )


def load_format(path: str, setting: str) -> RowFormat:
    """Load a format of the user's own: a `RowFormat` in a module of theirs.

    Args:
        path: Its dotted path, such as my_formats.TRIPLES.
        setting: The setting, for messages.

    Raises:
        UserError: There is no such module or name, or it is no RowFormat.
    """
    found = import_class_path(path, f"{setting}.format")
    if not isinstance(found, RowFormat):
        raise UserError(
            f"{setting}.format={path!r} must name a lit_pretrain.data.chat.formats.RowFormat; found"
            f" {found!r}"
        )
    return found


def read_row(
    row: Mapping[str, Any], format: RowFormat, *, kind: str, system: str | None = None
) -> TrainingRow:
    """Convert a row of a file to the internal form.

    Args:
        row: The row.
        format: Names its fields.
        kind: conversation, preference, verdict or problem.
        system: System message for rows that have none.

    Raises:
        BadRow: The row does not fit the format, or holds nothing to learn.
    """
    parts = {
        part: value
        for part, name in format.fields.items()
        if (value := _value(row, name, part, format)) is not None
    }
    result = _READERS[kind](parts, format, row)
    return result if system is None else result.with_system(system)


# ---------------------------------------------------------------------- kinds of rows

Row = Mapping[str, Any]
"""A row as its file holds it: any JSON object."""
Parts = Mapping[str, Any]
"""The parts of a row by name, not yet checked."""


def _conversation(parts: Parts, format: RowFormat, row: Row) -> Conversation:
    if "completion" in parts:
        prompt = _prompt(parts, format)
        messages = (*prompt, *_completion(parts["completion"], format, "the completion"))
        count = len(prompt)
    else:
        messages = _prompt(parts, format)
        count = max(
            (i for i, message in enumerate(messages) if message.get("role") == "assistant"),
            default=len(messages),
        )
    check_messages(messages)
    check_answer(messages, "the row")
    return Conversation(messages=messages, prompt=count, tools=_tools(parts))


def _preference(parts: Parts, format: RowFormat, row: Row) -> Preference:
    prompt: tuple[Message, ...]
    if parts.keys() & {"prompt", "messages"}:
        prompt = _prompt(parts, format)
        chosen, rejected = (
            _completion(parts[name], format, name) for name in ("chosen", "rejected")
        )
        # Some datasets repeat the prompt at the beginning of both answers.
        if len(prompt) and all(
            len(answer) > len(prompt) and answer[: len(prompt)] == prompt
            for answer in (chosen, rejected)
        ):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        prompt, chosen, rejected = _implicit(parts["chosen"], parts["rejected"], format)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        check_messages((*prompt, *answer))
        check_answer(answer, name)
    if not prompt:
        raise BadRow(
            "empty_prompt",
            "the answers have no prompt in common, and there is no other",
            mistake=False,
        )
    if chosen == rejected:
        raise BadRow("same_answers", "chosen and rejected are the same", mistake=False)
    given = [name for name in _REFERENCE if name in parts]
    if len(given) == 1:
        raise BadRow(
            "missing_field",
            f"the row has {given[0]} alone; both reference columns are needed, or none",
        )
    ref = (
        (
            _number(parts["ref_chosen_logp"], "ref_chosen_logp"),
            _number(parts["ref_rejected_logp"], "ref_rejected_logp"),
        )
        if given
        else None
    )
    margin = _number(parts["margin"], "margin") if "margin" in parts else None
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        ref_logp=ref,
        tools=_tools(parts),
    )


def _verdict(parts: Parts, format: RowFormat, row: Row) -> JudgedAnswer:
    label = parts["label"]
    if not isinstance(label, bool) and not (isinstance(label, int) and label in (0, 1)):
        raise BadRow("label", f"the label is {label!r}; it must be true or false (or 1 or 0)")
    prompt = _prompt(parts, format)
    if "completion" in parts:
        completion = _completion(parts["completion"], format, "the completion")
    else:
        last = max(
            (i for i, message in enumerate(prompt) if message.get("role") == "assistant"),
            default=len(prompt),
        )
        prompt, completion = prompt[:last], prompt[last:]
    check_messages((*prompt, *completion))
    check_answer(completion, "the row")
    ref = _number(parts["ref_logp"], "ref_logp") if "ref_logp" in parts else None
    return JudgedAnswer(
        prompt=prompt,
        completion=completion,
        desirable=bool(label),
        ref_logp=ref,
        tools=_tools(parts),
    )


def _problem(parts: Parts, format: RowFormat, row: Row) -> Problem:
    prompt = _prompt(parts, format)
    check_messages(prompt)
    answer = parts["answer"] if "answer" in parts else parts["completion"]
    if not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
        raise BadRow(
            "not_text", f"the answer is a {type(answer).__name__}; it must be text or a number"
        )
    text = str(answer)
    if format.answer_after is not None:
        if format.answer_after not in text:
            raise BadRow(
                "no_mark",
                f"the answer holds no {format.answer_after!r}, after which the checkable answer"
                " stands",
            )
        text = text.rsplit(format.answer_after, 1)[1].replace(",", "")
    if not text.strip():
        raise BadRow("empty_answer", "the answer is empty", mistake=False)
    return Problem(prompt=prompt, answer=text.strip(), facts=row, tools=_tools(parts))


_READERS: Mapping[str, Callable[[Parts, RowFormat, Row], TrainingRow]] = {
    "conversation": _conversation,
    "preference": _preference,
    "verdict": _verdict,
    "problem": _problem,
}

# ---------------------------------------------------------------------- parts of rows


def _value(row: Row, name: str, part: str, format: RowFormat) -> Any:
    """Return the value of a field; None if an optional field is missing."""
    if part in ("role", "content"):
        return name
    value: Any = row
    there = True
    for piece in name.split("."):
        there = isinstance(value, Mapping) and piece in value
        if not there:
            value = None
            break
        value = value[piece]
    if value is None and part not in format.optional and there:
        raise BadRow("missing_field", f"the field {name!r} ({part}) of the row is null")
    if value is None and part not in format.optional:
        found = ", ".join(map(repr, row)) or "none"
        fits = [
            other
            for other, f in ROW_FORMATS.items()
            if all(
                n in row for p, n in f.fields.items() if p not in {*f.optional, "role", "content"}
            )
        ]
        hint = f"; its fields are those of the format {' or '.join(fits)}" if fits else ""
        raise BadRow(
            "missing_field",
            f"the row has no field {name!r} ({part}); it has {found}{hint}. Set `format`, or name"
            " it in `fields`.",
        )
    return value


def _prompt(parts: Parts, format: RowFormat) -> tuple[Message, ...]:
    """Collect the prompt: system, history, and the messages or the prompt with its input."""
    before: list[Message] = []
    if parts.get("system"):
        before.append({"role": "system", "content": parts["system"]})
    for turn in parts.get("history") or ():
        if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
            raise BadRow("not_text", "the history must be a list of pairs [question, answer]")
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    if "messages" in parts:
        return (*before, *_messages(parts["messages"], format, format.fields["messages"]))
    prompt = parts["prompt"]
    if isinstance(prompt, str):
        extra = parts.get("input")
        if extra is not None and not isinstance(extra, str):
            raise BadRow("not_text", f"the input is a {type(extra).__name__}; it must be text")
        text = f"{prompt}\n\n{extra}" if extra and extra.strip() else prompt
        if not text.strip():
            raise BadRow("empty_prompt", "the prompt is empty", mistake=False)
        return (*before, {"role": "user", "content": text})
    return (*before, *_messages(prompt, format, "the prompt"))


def _completion(value: Any, format: RowFormat, what: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "assistant", "content": value},)
    if isinstance(value, Mapping):  # a single message, as in LLaMA-Factory's pairs
        value = [value]
    return _messages(value, format, what)


def _messages(value: Any, format: RowFormat, what: str) -> tuple[Message, ...]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(message, Mapping) for message in value)
    ):
        raise BadRow(
            "not_text",
            f"{what} is a {type(value).__name__}; it must be a text or a list of messages",
        )
    if not value:
        raise BadRow("no_answer", f"{what} holds no message", mistake=False)
    role_field, content_field = (
        format.fields.get("role", "role"),
        format.fields.get("content", "content"),
    )
    messages: list[Message] = []
    for message in value:
        # If the format's own names are missing, as in a prompt that is a list of messages, the
        # names of TRL and OpenAI (`role`, `content`) stay as they are.
        mine = {
            key: item
            for key, item in message.items()
            if key not in (role_field, content_field) and item is not None
        }
        if role_field in message:
            role = message[role_field]
            mine["role"] = format.roles.get(role, role) if isinstance(role, str) else role
        if content_field in message:
            mine["content"] = _text_of(message[content_field])
        messages.append(cast(Message, mine))  # `check_messages` verifies it
    return tuple(messages)


def _text_of(content: Any) -> Any:
    """Join a content given in parts of text; return anything else unchanged."""
    if isinstance(content, Sequence) and not isinstance(content, str) and content:
        parts = [
            part
            for part in content
            if isinstance(part, Mapping)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
        ]
        if len(parts) == len(content):
            return joined_text([part["text"] for part in parts])
    return content


def _implicit(chosen: Any, rejected: Any, format: RowFormat) -> tuple[tuple[Message, ...], ...]:
    """Split two whole conversations into their common prompt and the two answers."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        same = commonprefix([chosen, rejected])  # noqa: RUF071  (character by character is meant)
        # Cut at the last white space, so that no word is split where two answers begin alike.
        cut = max(same.rfind(" "), same.rfind("\n"))
        if cut <= 0 or not same[:cut].strip():
            return (
                (),
                _completion(chosen, format, "chosen"),
                _completion(rejected, format, "rejected"),
            )
        prompt: tuple[Message, ...] = ({"role": "user", "content": chosen[:cut]},)
        return (
            prompt,
            _completion(chosen[cut:], format, "chosen"),
            _completion(rejected[cut:], format, "rejected"),
        )
    a, b = _completion(chosen, format, "chosen"), _completion(rejected, format, "rejected")
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    # Each answer must begin with a message of the assistant, so the common beginning shrinks until
    # one follows it on both sides.
    while n and (
        n >= min(len(a), len(b))
        or a[n].get("role") != "assistant"
        or b[n].get("role") != "assistant"
    ):
        n -= 1
    return a[:n], a[n:], b[n:]


def _tools(parts: Parts) -> Sequence[ToolDescription] | None:
    tools = parts.get("tools")
    if isinstance(tools, str):
        try:
            tools = load_json(tools) if tools.strip() else None
        except ValueError as error:
            raise BadRow("tools", f"the tools are not JSON: {error}") from None
    return tools or None


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRow("not_a_number", f"{name} is {value!r}; it must be a finite number")
    return float(value)
