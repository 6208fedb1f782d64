"""Row reader: turn a row into messages, or what else its objective learns from, by its format."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any, NamedTuple, cast

from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    JudgedAnswer,
    Message,
    Preference,
    Problem,
    Segment,
    StepwiseAnswer,
    TrainingRow,
    check_answer,
    check_messages,
)
from lit_pretrain.chat.tool_calls import calls_of, tools_of
from lit_pretrain.data.chat.dataset_layouts import (
    LaidOut,
    answered_calls,
    compared_answers,
    exchanged_messages,
    marked_steps,
    ranked_answers,
    rated_steps,
)
from lit_pretrain.data.chat.formats import (
    CALL,
    REFERENCE,
    ROW_FORMATS,
    WITHIN,
    RowFormat,
    has_parts,
)
from lit_pretrain.data.chat.message_fields import (
    read_content,
    read_label,
    read_number,
    read_weight,
)
from lit_pretrain.data.chat.row_checks import (
    OPTIONS,
    ROW_WEIGHTS,
    Parts,
    Row,
    is_implicit,
    notes_on_unread,
    refuse_placeholders,
    refuse_rendered,
    remarks,
    remarks_on_tools,
)
from lit_pretrain.data.chat.transcripts import (
    is_transcript,
    labelled_steps,
    step_verdicts,
    transcript_messages,
    tree_conversations,
    tree_pairs,
)
from lit_pretrain.errors import nearest


def read_row(
    row: Mapping[str, Any],
    format: RowFormat,
    *,
    kind: str,
    system: str | None = None,
    ignore: Collection[str] = (),
    check_unread: bool = True,
    notes: Sequence[str] = (),
) -> TrainingRow:
    """Convert a row of a file to the internal form.

    Args:
        row: The row.
        format: Names its fields.
        kind: conversation, preference, verdict, stepwise or problem.
        system: System message for rows that have none.
        ignore: Fields of the row or of its messages that are meant to be passed over, and marks
            such as <image> that are meant as text.
        check_unread: Whether text and media in fields that nobody reads are a mistake.
        notes: What the user should know of the record that the row comes from.

    Raises:
        BadRow: The row does not fit the format, or holds nothing to learn.
    """
    whole = row
    if ignore:
        row = _without(row, ignore)
    parts = _parts(row, format)
    weights = {name: row[name] for name in ROW_WEIGHTS if row.get(name) is not None}
    learned = read_weight(dict(weights), "the row")
    options = row.get(OPTIONS) or {}
    if not isinstance(options, Mapping):
        raise BadRow(OPTIONS, f"{OPTIONS} is a {type(options).__name__}; it must be an object")
    if check_unread:
        notes = (*notes, *notes_on_unread(row, format, parts, kind=kind, ignore=ignore))
    if not learned:
        raise BadRow("nothing_learned", "the row itself has the weight 0", mistake=False)
    result = _READERS[kind](parts, format, whole)  # rewards may read what is ignored here
    refuse_placeholders(result, ignore)
    refuse_rendered(result, ignore)
    notes = (*notes, *remarks(row, parts, format), *remarks_on_tools(result))
    if options or notes:
        result = replace(result, options=dict(options), notes=notes)
    return result if system is None else result.with_system(system)


class Expanded(NamedTuple):
    """The rows that a record of a file stands for."""

    rows: Sequence[Mapping[str, Any]]
    format: RowFormat
    """Reads these rows."""
    notes: tuple[str, ...] = ()
    """What the user should know of the record, for each of its rows."""


def expand_record(
    record: Mapping[str, Any], format: RowFormat, *, kind: str, ignore: Collection[str] = ()
) -> Expanded:
    """Return the rows that a record of a file stands for, and the format that reads them.

    Most records are one row. A tree of replies is several, and so is an answer in steps where a row
    has one verdict; those of some datasets are brought into the form of a plain format.

    Raises:
        BadRow: The record has not the shape of its format.
    """
    expand = _EXPANSIONS.get((format.shape, kind))
    if expand is None:
        return Expanded([record], format)
    if ignore:
        record = _without(record, ignore)
    parts = _parts(record, format)
    notes = notes_on_unread(record, format, parts, kind=kind, ignore=ignore)
    plain, found = expand(parts)
    shared = {name: record[name] for name in (*ROW_WEIGHTS, OPTIONS) if name in record}
    rows = [{**shared, **row} for row in found.rows]
    return Expanded(rows, ROW_FORMATS[plain], (*notes, *found.notes))


def _verdicts(laid_out: LaidOut) -> LaidOut:
    """Return a verdict on every step of rows of the format `steps`, which may begin alike."""
    verdicts = (verdict for row in laid_out.rows for verdict in step_verdicts(row))
    return LaidOut(list({v["completion"]: v for v in verdicts}.values()), laid_out.notes)


_EXPANSIONS: Mapping[tuple[str, str], Callable[[Parts], tuple[str, LaidOut]]] = {
    ("steps", "verdict"): lambda parts: ("kto", LaidOut(step_verdicts(parts))),
    ("tree", "conversation"): lambda parts: (
        "messages",
        LaidOut([{**row} for row in tree_conversations(parts["prompt"])]),
    ),
    ("tree", "preference"): lambda parts: (
        "preference",
        LaidOut([{**row} for row in tree_pairs(parts["prompt"])]),
    ),
    ("exchanges", "conversation"): lambda parts: ("messages", exchanged_messages(parts)),
    ("calls", "conversation"): lambda parts: ("messages", answered_calls(parts)),
    ("compared", "preference"): lambda parts: ("preference", compared_answers(parts)),
    ("ranked", "preference"): lambda parts: ("preference", ranked_answers(parts)),
    ("rated_steps", "stepwise"): lambda parts: ("steps", rated_steps(parts)),
    ("rated_steps", "verdict"): lambda parts: ("kto", _verdicts(rated_steps(parts))),
    ("marked_steps", "stepwise"): lambda parts: ("steps", marked_steps(parts)),
    ("marked_steps", "verdict"): lambda parts: ("kto", _verdicts(marked_steps(parts))),
}
"""Shape and kind -> the plain format, and the rows of it that a record stands for."""


# ---------------------------------------------------------------------- kinds of rows


def _conversation(parts: Parts, format: RowFormat, row: Row) -> Conversation:
    if "segments" in parts:
        return Conversation(messages=(), prompt=0, segments=_segments(parts["segments"]))
    if format.shape == "text":
        text = parts["text"]
        if not isinstance(text, str):
            raise BadRow("not_text", f"the text is a {type(text).__name__}")
        if not text.strip():
            raise BadRow("empty_text", "the text is empty", mistake=False)
        return Conversation(messages=(), prompt=0, segments=(Segment(text, True, False),))
    if "completion" in parts:
        prompt = _prompt(parts, format)
        completion = _completion(parts["completion"], format, "the completion")
        messages = (*prompt, *_without_prompt(prompt, completion, "the completion"))
        count = len(prompt)
    else:
        messages = _prompt(parts, format)
        count = max(
            (i for i, message in enumerate(messages) if message.get("role") == "assistant"),
            default=len(messages),
        )
    check_messages(messages)
    check_answer(messages, "the row")
    return Conversation(messages=messages, prompt=count, tools=_tools(parts, format))


def _preference(parts: Parts, format: RowFormat, row: Row) -> Preference:
    prompt: tuple[Message, ...]
    if not is_implicit(parts):
        prompt = _prompt(parts, format)
        chosen, rejected = (
            _completion(parts[name], format, name) for name in ("chosen", "rejected")
        )
        prompt, chosen, rejected = _apart(prompt, chosen, rejected)
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
    given = [name for name in REFERENCE if name in parts]
    if len(given) == 1:
        raise BadRow(
            "missing_field",
            f"the row has {given[0]} alone; both reference columns are needed, or none",
        )
    ref = (
        (
            read_number(parts["ref_chosen_logp"], "ref_chosen_logp"),
            read_number(parts["ref_rejected_logp"], "ref_rejected_logp"),
        )
        if given
        else None
    )
    margin = read_number(parts["margin"], "margin") if "margin" in parts else None
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        ref_logp=ref,
        tools=_tools(parts, format),
    )


def _verdict(parts: Parts, format: RowFormat, row: Row) -> JudgedAnswer:
    desirable = read_label(parts["label"], "the label")
    prompt = _prompt(parts, format)
    if "completion" in parts:
        completion = _completion(parts["completion"], format, "the completion")
        completion = _without_prompt(prompt, completion, "the completion")
    else:
        last = max(
            (i for i, message in enumerate(prompt) if message.get("role") == "assistant"),
            default=len(prompt),
        )
        prompt, completion = prompt[:last], prompt[last:]
    check_messages((*prompt, *completion))
    check_answer(completion, "the row")
    ref = read_number(parts["ref_logp"], "ref_logp") if "ref_logp" in parts else None
    return JudgedAnswer(
        prompt=prompt,
        completion=completion,
        desirable=desirable,
        ref_logp=ref,
        tools=_tools(parts, format),
    )


def _stepwise(parts: Parts, format: RowFormat, row: Row) -> StepwiseAnswer:
    steps, labels = labelled_steps(parts)
    prompt = _prompt(parts, format)
    check_messages(prompt)
    if not steps:
        raise BadRow("empty_answer", "the answer has no steps", mistake=False)
    for i, step in enumerate(steps):
        if not step.strip():
            raise BadRow("empty_answer", f"step {i + 1} of {len(steps)} is empty", mistake=False)
    return StepwiseAnswer(
        prompt=prompt,
        steps=tuple(steps),
        right=tuple(
            read_label(label, f"the label of step {i + 1} of {len(labels)}")
            for i, label in enumerate(labels)
        ),
        tools=_tools(parts, format),
    )


def _problem(parts: Parts, format: RowFormat, row: Row) -> Problem:
    prompt = _prompt(parts, format)
    check_messages(prompt)
    if not format.fields.keys() & {"answer", "completion"}:
        return Problem(prompt=prompt, answer="", facts=row, tools=_tools(parts, format))
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
    return Problem(prompt=prompt, answer=text.strip(), facts=row, tools=_tools(parts, format))


_READERS: Mapping[str, Callable[[Parts, RowFormat, Row], TrainingRow]] = {
    "conversation": _conversation,
    "preference": _preference,
    "verdict": _verdict,
    "stepwise": _stepwise,
    "problem": _problem,
}

# ---------------------------------------------------------------------- parts of rows


def _parts(row: Row, format: RowFormat) -> Parts:
    """Collect the parts of a row that are there.

    Raises:
        BadRow: One that the format needs is missing.
    """
    return {
        part: _listed(value) if part in _SPOKEN else value
        for part, name in format.fields.items()
        if (value := _value(row, name, part, format)) is not None
    }


_SPOKEN = ("messages", "prompt", "completion", "chosen", "rejected")
"""Parts that may be lists of messages."""


def _listed(value: Any) -> Any:
    """Return the messages whose JSON text a field holds, as tables store them; else the value."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or nested more deeply than any message
        return value
    there = (
        isinstance(found, list)
        and found
        and all(
            isinstance(message, Mapping) and message.keys() & {"role", "from"} for message in found
        )
    )
    return found if there else value


def _value(row: Row, name: str, part: str, format: RowFormat) -> Any:
    """Return the value of a field; None if an optional field is missing."""
    if part in WITHIN:
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
        fits = [other for other, f in ROW_FORMATS.items() if has_parts(row, f)]
        hint = f"; its fields are those of the format {' or '.join(fits)}" if fits else ""
        near = [] if fits else nearest(name, map(str, row))
        named = f": {{{part}: {near[0]}}}" if near else ""
        raise BadRow(
            "missing_field",
            f"the row has no field {name!r} ({part}); it has {found}{hint}. Set `format`, or name"
            f" it in `fields`{named}.",
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
        messages = parts["messages"]
        if format.shape == "transcript":
            messages = transcript_messages(messages, format.fields["messages"])
        return (*before, *_messages(messages, format, format.fields["messages"]))
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
    joins = False  # the message before is a call that came alone, and another joins it
    for i, message in enumerate(value):
        where = f"message {i + 1} of {len(value)}"
        # If the format's own names are missing, as in a prompt that is a list of messages, the
        # names of TRL and OpenAI (`role`, `content`) stay as they are.
        mine: dict[str, Any] = {
            key: item
            for key, item in message.items()
            if key not in (role_field, content_field) and item is not None
        }
        role = message.get(role_field, mine.get("role"))
        role = format.roles.get(role, role) if isinstance(role, str) else role
        if role is not None or role_field in message:
            mine["role"] = role
        if content_field in message:
            mine["content"] = message[content_field]
        if "content" in mine:
            mine.update(read_content(mine.pop("content"), where))
        if not read_weight(mine, where, mine.get("role")):
            mine["weight"] = 0
        called = mine.pop("function_call", None)
        if role == CALL:
            called = mine.pop("content", None)
            if called is None:
                called = mine.get("tool_calls")
            mine.update(role="assistant", content=None)
        if called or role == CALL:
            mine["tool_calls"] = calls_of(called, where)
        elif mine.get("tool_calls"):
            mine["tool_calls"] = _calls(mine["tool_calls"], where)
        if role == CALL and joins:
            previous = cast(dict[str, Any], messages[-1])
            previous["tool_calls"] = [*previous["tool_calls"], *mine["tool_calls"]]
        else:
            messages.append(cast(Message, mine))  # `check_messages` verifies it
        joins = role == CALL
    return tuple(messages)


def _calls(value: Any, where: str) -> Any:
    """Return calls as they are if they have OpenAI's form, which templates may show in full."""
    there = isinstance(value, Sequence) and all(
        isinstance(call, Mapping)
        and isinstance(call.get("function"), Mapping)
        and isinstance(call["function"].get("name"), str)
        for call in value
    )
    return value if there else calls_of(value, where)


def _implicit(chosen: Any, rejected: Any, format: RowFormat) -> tuple[tuple[Message, ...], ...]:
    """Split two whole conversations into their common prompt and the two answers."""
    if format.shape == "transcript":
        chosen, rejected = (
            transcript_messages(text, name)
            for text, name in ((chosen, "chosen"), (rejected, "rejected"))
        )
    if isinstance(chosen, str) and isinstance(rejected, str):
        if is_transcript(chosen) and is_transcript(rejected):
            raise BadRow(
                "transcript",
                "chosen and rejected are transcripts with `Human:` and `Assistant:`, which the"
                " format hh takes apart",
            )
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
    return _split(_completion(chosen, format, "chosen"), _completion(rejected, format, "rejected"))


def _split(a: tuple[Message, ...], b: tuple[Message, ...]) -> tuple[tuple[Message, ...], ...]:
    """Split two lists of messages into what both begin with and two answers."""
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


def _apart(
    prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], ...]:
    """Move what both answers begin with into the prompt, which some datasets repeat there.

    Raises:
        BadRow: An answer begins with other words of the user.
    """
    answers = [_tail(prompt, answer) for answer in (chosen, rejected)]
    if all(answer and answer[0].get("role") in ("system", "user") for answer in answers):
        # Whole conversations, of which the prompt is the last question, say.
        shared, chosen, rejected = _split(*answers)
        said = [_words(message) for message in shared]
        if shared and all(
            _words(message) in said for message in prompt if message.get("role") != "system"
        ):
            system = prompt[:1] if prompt and prompt[0].get("role") == "system" else ()
            has_system = shared[0].get("role") == "system"
            return (*(() if has_system else system), *shared), chosen, rejected
    for answer, name in zip(answers, ("chosen", "rejected"), strict=True):
        _without_prompt(prompt, answer, name)
    shared, chosen, rejected = _split(*answers)
    return (*prompt, *shared), chosen, rejected


def _words(message: Message) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def _tail(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return an answer without the prompt, if it repeats it, with its system message or not."""
    for begin in (prompt, prompt[1:] if prompt and prompt[0].get("role") == "system" else ()):
        if begin and len(answer) > len(begin) and answer[: len(begin)] == begin:
            return answer[len(begin) :]
    return answer


def _without_prompt(
    prompt: tuple[Message, ...], answer: tuple[Message, ...], what: str
) -> tuple[Message, ...]:
    """Return an answer without the prompt that it may repeat.

    Raises:
        BadRow: It begins with other words of the user, which stand twice then, or were learned.
    """
    answer = _tail(prompt, answer)
    if answer and answer[0].get("role") in ("system", "user"):
        raise BadRow(
            "prompt_in_answer",
            f"{what} begins with a message of the {answer[0].get('role')}"
            f" ({_words(answer[0])[:40]!r}), which the prompt does not end with; give the prompt"
            " or whole conversations, not parts of both",
        )
    return answer


def _segments(value: Any) -> tuple[Segment, ...]:
    """Read axolotl's `input_output`: pieces of text with `label: true` where they are learned."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("not_text", f"the segments are a {type(value).__name__}; they must be a list")
    segments = []
    for i, segment in enumerate(value):
        where = f"segment {i + 1} of {len(value)}"
        if not isinstance(segment, Mapping) or not isinstance(segment.get("text"), str):
            raise BadRow("not_text", f"{where} must be an object with a text and a label")
        if not isinstance(segment.get("label"), bool):
            raise BadRow(
                "label", f"{where} has the label {segment.get('label')!r}; it must be true or false"
            )
        segments.append(Segment(segment["text"], segment["label"]))
    if not any(segment.learned and segment.text for segment in segments):
        raise BadRow("nothing_learned", "no segment has label: true", mistake=False)
    return tuple(segments)


def _tools(parts: Parts, format: RowFormat) -> Any:
    if parts.get("functions"):
        if parts.get("tools"):
            raise BadRow("tools", "the row has both functions and tools; keep one of them")
        return tools_of(parts["functions"], bare=True)
    return tools_of(parts.get("tools"), bare=format.fields.get("role") == "from")


def _without(value: Any, names: Collection[str]) -> Any:
    """Leave fields out of a row and of all messages in it."""
    if isinstance(value, Mapping):
        return {
            key: _without(item, names) if key not in _NOT_MESSAGES else item
            for key, item in value.items()
            if key not in names
        }
    if isinstance(value, (list, tuple)):
        return [_without(item, names) for item in value]
    return value


_NOT_MESSAGES = ("tools", "functions", "tool_calls", "function_call", OPTIONS)
"""Objects whose keys are data."""
