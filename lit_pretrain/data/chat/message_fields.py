"""Fields of rows and messages: content in parts, labels, numbers, marks that exclude a message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from lit_pretrain.chat.messages import BadRow, joined_text
from lit_pretrain.chat.tool_calls import calls_of


class ContentFields(TypedDict, total=False):
    """The fields of a message that its content stands for, as far as it has them."""

    content: Any
    """Not checked yet, unless it stood in parts."""
    reasoning_content: str
    tool_calls: list[Any]


_WEIGHTS = ("weight", "loss_weight", "loss", "train", "training")
"""OpenAI's and Together's, LLaMA-Factory's, ms-swift's, axolotl's."""
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THOUGHT_PARTS = ("reasoning", "thinking")


def read_weight(fields: dict[str, Any], where: str, role: Any = None) -> bool:
    """Take the marks out of the fields of a message, and tell whether it is learned.

    Args:
        fields: The fields; the marks are removed.
        where: Names the message, or the row whose fields these are.
        role: Who speaks.

    Raises:
        BadRow: A mark is neither yes nor no, or wants somebody else than the assistant learned.
    """
    if fields.get("train_detail"):
        raise BadRow(
            "weight",
            f"{where} has train_detail, which marks parts of a message; only whole messages can be"
            " left out: split it, or leave the mark out with ignore: [train_detail]",
        )
    given = {name: fields.pop(name) for name in _WEIGHTS if fields.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRow(
                "weight",
                f"{where} has the {name} {value!r}; it must be 1 or true (learned) or 0 or false"
                f" (not). If it is something else, ignore: [{name}]",
            )
        if value and name != "weight" and role in ("system", "user", "tool"):
            raise BadRow(
                "weight",
                f"{where} is of the {role} and has {name}: {value!r}; only messages of the"
                f" assistant can be learned one by one. Leave the mark out with ignore: [{name}]",
            )
    return all(given.values())


def read_label(value: Any, where: str) -> bool:
    """Read a verdict.

    Args:
        value: The label.
        where: Names it, such as "the label".

    Raises:
        BadRow: It is neither true or false nor 1 or 0.
    """
    if not isinstance(value, int) or value not in (0, 1):
        raise BadRow("label", f"{where} is {value!r}; it must be true or false (or 1 or 0)")
    return bool(value)


def read_content(content: Any, where: str) -> ContentFields:
    """Return the fields of a message that its content stands for.

    A content in parts is taken if all of them are text, thoughts or tool calls; the texts stand on
    a line each.

    Raises:
        BadRow: A part is of another type.
    """
    if not isinstance(content, Sequence) or isinstance(content, (str, bytes)) or not content:
        return {"content": content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for part in content:
        type_ = part.get("type") if isinstance(part, Mapping) else None
        if type_ == "tool_call":
            calls += calls_of(part.get("value", part.get("tool_call", part)), where)
            continue
        names = ("text", "value", type_)
        text = (
            next((part[name] for name in names if isinstance(part.get(name), str)), None)
            if type_ in (*_TEXT_PARTS, *_THOUGHT_PARTS)
            else None
        )
        if text is None:
            raise BadRow(
                "not_text",
                f"{where} holds a part "
                + (f"of the type {type_!r}" if type_ else f"that is a {type(part).__name__}")
                + "; only text can be learned",
            )
        (thoughts if type_ in _THOUGHT_PARTS else texts).append(text)
    fields: ContentFields = {"content": joined_text(texts) if texts or not calls else None}
    if thoughts:
        fields["reasoning_content"] = joined_text(thoughts)
    if calls:
        fields["tool_calls"] = calls
    return fields


def read_number(value: Any, what: str) -> float:
    """Read a number of a row.

    Raises:
        BadRow: It is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("not_a_number", f"{what} is {value!r}; it must be a finite number")
    return float(value)
