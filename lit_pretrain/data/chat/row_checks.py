"""Row checks: refuse or note what a row holds that nobody reads, or that makes it doubtful."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from lit_pretrain.chat.messages import (
    MESSAGE_ROLES,
    BadRow,
    Conversation,
    TrainingRow,
)
from lit_pretrain.chat.unread_fields import (
    PLACEHOLDER,
    strings_of,
    template_mark,
    what_is_unread,
)
from lit_pretrain.data.chat.formats import REFERENCE, ROW_FORMATS, WITHIN, RowFormat, has_parts

Row = Mapping[str, Any]
"""A row as its file holds it: any JSON object."""
Parts = Mapping[str, Any]
"""The parts of a row by name, not yet checked."""
OPTIONS = "chat_template_kwargs"
ROW_WEIGHTS = ("weight", "loss_weight", "train")
"""Fields of a row that any format may have."""


def notes_on_unread(
    row: Row, format: RowFormat, parts: Parts, *, kind: str, ignore: Collection[str]
) -> tuple[str, ...]:
    """Return notes on the fields that nobody reads.

    Raises:
        BadRow: One of them holds text or media.
    """
    speakers = {*MESSAGE_ROLES, *format.roles}
    read = [
        text
        for part, value in parts.items()
        if part not in WITHIN
        for text in strings_of(value)
        if text not in speakers
    ]
    paths = set(format.fields.values()) | set(ROW_WEIGHTS) | {OPTIONS}
    notes = []
    for name, value in _leftover(row, paths):
        _refuse_structure(name, value, format, kind)
        what = what_is_unread(
            name.rsplit(".", 1)[-1], value, read, all_text=kind != "problem", speakers=speakers
        )
        if what == "nothing":
            continue
        if name in format.unused or what == "label":
            notes.append(f"unread {name}")
            continue
        drop = f"leave the field out by name with ignore: [{name.rsplit('.', 1)[-1]}]"
        if what == "media":
            raise BadRow(
                "media",
                f"the row's field {name!r} holds pictures, sound or film, and only text can be"
                f" learned; {drop}, or leave such rows out",
            )
        others = [
            other
            for other, f in ROW_FORMATS.items()
            if kind in f.kinds()
            and name in f.fields.values()
            and has_parts(row, f)
            and (f.shape != "tree" or isinstance(value, Mapping))
        ]
        free = sorted(
            part
            for part in format.fields.keys() - parts.keys() - WITHIN
            if part not in REFERENCE and part != "ref_logp"
        )
        raise BadRow(
            "unread_field",
            f"the row's field {name!r} holds text that nobody reads"
            f" ({' '.join(strings_of(value))[:60]!r}). "
            + (f"The format {' or '.join(others)} reads it; or " if others else "")
            + (f"name its part in `fields` ({', '.join(free)}); or " if free else "")
            + drop,
        )
    return tuple(notes)


_THREAD = frozenset({"role", "from", "speaker", "parent_id", "parent_message_id"})
"""Fields that say that a row is one message of a thread."""
_VERDICT = re.compile(
    r"label|(?:is_)?(?:accepted|approved|correct|desirable|good|passed|preferred|safe|success"
    r"|thumbs_up|valid)"
)
"""Fields that say whether an answer is a good one."""


def _refuse_structure(name: str, value: Any, format: RowFormat, kind: str) -> None:
    """Refuse a field that says that the row is not what the format takes it for.

    Raises:
        BadRow: The row is one message of a thread, or its answer is a bad one.
    """
    if format.shape == "text" and name in _THREAD and value is not None:
        raise BadRow(
            "unread_field",
            f"the row's field {name!r} ({value!r}) says that its text is one message of a thread,"
            " and it would be learned as a document of its own. Write every thread as a row with"
            f" messages; or leave the field out by name with ignore: [{name}]",
        )
    no = value is False or (name == "label" and value == 0 and isinstance(value, int))
    if kind == "conversation" and format.shape == "plain" and no and _VERDICT.fullmatch(name):
        raise BadRow(
            "judged_bad",
            f"the row's field {name!r} is {value!r}: its answer is a bad one, which would be"
            " imitated. KTOData learns from good and bad answers; or leave such rows out (with"
            f" data.on_bad_row drop), or the field by name with ignore: [{name}]",
        )


def _leftover(row: Row, paths: Collection[str], before: str = "") -> list[tuple[str, Any]]:
    """Return the fields that no path names, with the names of the objects that they are in."""
    left: list[tuple[str, Any]] = []
    for key, value in row.items():
        name = f"{before}{key}"
        if name in paths:
            continue
        if isinstance(value, Mapping) and any(path.startswith(f"{name}.") for path in paths):
            left += _leftover(value, paths, f"{name}.")
        else:
            left.append((name, value))
    return left


def refuse_placeholders(row: TrainingRow, ignore: Collection[str]) -> None:
    """Refuse texts in which a picture, a sound or a film should stand.

    Raises:
        BadRow: A message to the assistant holds such a mark.
    """
    for message in row.spoken():
        if message["role"] == "assistant":  # which may well write HTML
            continue
        for mark in PLACEHOLDER.findall(message.get("content") or ""):
            if mark not in ignore:
                raise BadRow(
                    "media",
                    f"a message of the {message['role']} holds {mark!r}, in whose place a picture,"
                    " sound or film belongs, and only text can be learned; leave such rows out, or"
                    f" say that it is text: ignore: ['{mark}']",
                )


def refuse_rendered(row: TrainingRow, ignore: Collection[str]) -> None:
    """Refuse texts that a chat template has written already.

    Raises:
        BadRow: A text begins or ends with the mark of a turn.
    """
    texts = [m.get("content") or "" for m in row.spoken() if m["role"] != "tool"]
    if isinstance(row, Conversation):
        texts += [segment.text for segment in row.segments if not segment.spells_tokens]
    for text in texts:
        mark = template_mark(text)
        if mark is not None and mark not in ignore:
            raise BadRow(
                "rendered",
                f"a text holds {mark!r}, the mark of a turn, as if a chat template had written it"
                f" ({text.strip()[:40]!r}): the spelling of the mark would be learned as text, and"
                " all turns as one. Give the messages without it; or, as pieces of text that spell"
                f" tokens, the format input_output; or say that it is text: ignore: ['{mark}']",
            )


# ---------------------------------------------------------------------- remarks


def is_implicit(parts: Parts) -> bool:
    """Tell whether the prompt of a pair is what both answers begin with."""
    return "chosen" in parts and not parts.keys() & {"prompt", "messages"}


_SCORE = re.compile(
    r"chosen_(?:\w+_)?(?:score|rating|reward)|(?:score|rating|reward)_(?:of_)?chosen"
)
"""Names of the score of the better answer, with underscores."""
_CALL_AS_TEXT = re.compile(r"<tool_call>|<function=|<\|tool_call|\[TOOL_CALLS\]")
"""What a call begins with that is written as text already."""


def remarks(row: Row, parts: Parts, format: RowFormat) -> list[str]:
    """Return notes on what a row says that makes it doubtful."""
    notes = []
    if is_implicit(parts) and format.shape == "plain" and isinstance(parts["chosen"], str):
        notes.append("prompt_guessed")
    named = {name.replace("-", "_"): value for name, value in row.items()}
    for name, chosen in named.items():
        rejected = named.get(name.replace("chosen", "rejected"))
        if _SCORE.fullmatch(name) and all(isinstance(v, int | float) for v in (chosen, rejected)):
            notes += ["chosen_scored_lower"] if chosen < rejected else []
    prompt = parts.get("prompt")
    answers = [parts[name] for name in ("completion", "chosen", "rejected") if name in parts]
    if isinstance(prompt, str) and len(prompt.strip()) >= 16 and answers:
        begins = [isinstance(a, str) and a.strip().startswith(prompt.strip()) for a in answers]
        notes += ["answer_repeats_prompt"] if all(begins) else []
    return notes


def remarks_on_tools(row: TrainingRow) -> list[str]:
    """Return notes on tools and calls that the text of messages holds as well."""
    spoken = row.spoken()
    notes = []
    names = [tool.get("function", tool).get("name") for tool in row.tools or ()]
    system = spoken[0].get("content") or "" if spoken and spoken[0]["role"] == "system" else ""
    if names and all(isinstance(name, str) and f'"{name}"' in system for name in names):
        notes.append("tools_in_system")
    written = (m.get("content") or "" for m in spoken if m["role"] == "assistant")
    if any(_CALL_AS_TEXT.search(text) for text in written):
        notes.append("calls_as_text")
    return notes
