"""Messages: the one internal form of post-training rows, whatever format they came in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""`role` and `content`, plus what else a template may show (tool_calls, reasoning_content,
name).
"""

MESSAGE_ROLES = ("system", "user", "assistant", "tool")
RESERVED = "\ufdd0\ufdd1\ufdd2"
"""Unicode noncharacters, which no text holds, with which rendering marks its places."""


class BadRow(ValueError):
    """A row that cannot be trained on.

    Args:
        reason: One word for the counters.
        message: What is wrong and what to do.
        mistake: Of the file or its mapping, so that it is refused unless told otherwise; else a
            matter of course, dropped and counted.
    """

    def __init__(self, reason: str, message: str, *, mistake: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.mistake = mistake


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages of which some of the assistant's are learned."""

    messages: tuple[Message, ...]
    prompt: int
    """How many of the messages, from the first, are the prompt; the others are the completion."""
    tools: Any = None
    """Descriptions of tools, passed to the template."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two completions of a prompt, one better than the other."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None
    """By how much the chosen one is better."""
    ref_logp: tuple[float, float] | None = None
    """Log-probabilities of both completions under the reference, nats."""
    tools: Any = None


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer:
    """A completion that was judged by itself."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    ref_logp: float | None = None
    """Log-probability of the completion under the reference, nats."""
    tools: Any = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A prompt with an answer that a reward can check."""

    prompt: tuple[Message, ...]
    answer: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The whole row, for rewards that look at more than the answer."""
    tools: Any = None


TrainingRow = Conversation | Preference | JudgedAnswer | Problem


def joined_text(parts: Sequence[str]) -> str:
    """The text of a content that comes in parts of text, as OpenAI's may; a part a line."""
    return "\n".join(parts)


def learns_from(message: Message) -> bool:
    """Whether a message of the assistant is learned, if those of the assistant are: not with
    OpenAI's `weight: 0`.
    """
    return message.get("weight") != 0


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse messages that no template could mean something by.

    Raises:
        BadRow: A role or content is missing or of the wrong type, a role is unknown, or there are
            two system messages.
    """
    for i, message in enumerate(messages):
        where = f"message {i + 1} of {len(messages)}"
        if "role" not in message or message["role"] is None:
            raise BadRow(
                "missing_role",
                f"{where} has no role; its fields are {', '.join(map(repr, message)) or 'none'}."
                " Name it in `fields`.",
            )
        role, content = message["role"], message.get("content")
        if role not in MESSAGE_ROLES:
            raise BadRow(
                "unknown_role",
                f"{where} has the role {role!r}; known are {', '.join(MESSAGE_ROLES)}. Map it:"
                f" roles: {{{role}: user}}",
            )
        if content is None and "content" not in message and not message.get("tool_calls"):
            raise BadRow(
                "missing_field",
                f"{where} has no content; its fields are {', '.join(map(repr, message))}. Name it"
                " in `fields`.",
            )
        if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
            raise BadRow(
                "not_text",
                f"{where} has a {type(content).__name__} as content; only text can be learned",
            )
        if any(c in (content or "") for c in RESERVED):
            raise BadRow(
                "noncharacter",
                f"{where} holds one of the Unicode noncharacters U+FDD0 to U+FDD2; remove it",
            )
        if message.get("weight") not in (None, 0, 1):
            raise BadRow(
                "weight",
                f"{where} has the weight {message['weight']!r}; it must be 1 (learned) or 0 (not),"
                " or be left out",
            )
    systems = [i for i, message in enumerate(messages) if message["role"] == "system"]
    if len(systems) > 1:
        raise BadRow(
            "two_systems",
            f"messages {systems[0] + 1} and {systems[1] + 1} are both of the system; join them",
        )
    if systems and systems[0] != 0:
        raise BadRow(
            "late_system",
            f"message {systems[0] + 1} is of the system; templates take one at the beginning only",
        )


def check_answer(messages: Sequence[Message], what: str) -> None:
    """Drop a row whose answer says nothing.

    Raises:
        BadRow: There is no assistant message, or the last one is empty.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no_answer", f"{what} holds no message of the assistant", mistake=False)
    if not (answers[-1].get("content") or "").strip() and not answers[-1].get("tool_calls"):
        raise BadRow(
            "empty_answer", f"the last message of the assistant in {what} is empty", mistake=False
        )
