"""Messages and rows: the internal form of post-training data, whatever format it came in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypedDict


class FunctionCall(TypedDict):
    """The function that a tool call names."""

    name: str
    arguments: Mapping[str, Any] | str
    """Its arguments, or the JSON text of them."""


class ToolCall(TypedDict, total=False):
    """A call of a tool by the assistant, in OpenAI's form."""

    id: str
    type: str
    function: FunctionCall


class _Spoken(TypedDict):
    role: str


class Message(_Spoken, total=False):
    """One message of a conversation. Templates also see any other field that a row's message has.

    Rows come from anywhere, so these types hold only after `check_messages`.
    """

    content: str | None
    """The text; None or absent only beside tool calls."""
    name: str
    tool_calls: Sequence[ToolCall]
    tool_call_id: str
    reasoning_content: str
    weight: int | None
    """0 excludes a message of the assistant from training, as in OpenAI's files."""


ToolDescription = Mapping[str, Any]
"""A JSON schema that describes a tool; only the template looks into it."""

MESSAGE_ROLES = ("system", "user", "assistant", "tool")
RESERVED = "\ufdd0\ufdd1\ufdd2"
"""Unicode noncharacters that rendering uses as marks; no interchanged text may hold them."""


class BadRow(ValueError):
    """A row that cannot be trained on.

    Args:
        reason: One word, under which dropped rows are counted.
        message: What is wrong and what to do.
        mistake: Whether the file or its field mapping is wrong. A mistake stops the run unless the
            config says otherwise; any other bad row, such as an empty answer, is always dropped and
            counted.
    """

    def __init__(self, reason: str, message: str, *, mistake: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.mistake = mistake


@dataclass(frozen=True, kw_only=True)
class TrainingRow(ABC):
    """A row of post-training data, of some kind."""

    tools: Sequence[ToolDescription] | None = None
    """Descriptions of tools for the template."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template for this row, over those of the config."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What the user should know of the reading, such as the names of fields that nobody read."""

    @abstractmethod
    def spoken(self) -> tuple[Message, ...]:
        """Return all messages of the row, those of both answers of a pair."""

    def text(self) -> str:
        """Join the text of everything that the row says, to look for evaluation items in it."""
        return _joined(self.spoken())

    @abstractmethod
    def with_system(self, system: str) -> TrainingRow:
        """Return the row with a system message, unless it has one."""


class Segment(NamedTuple):
    """A piece of a text that is learned or not, as axolotl's `input_output` gives it."""

    text: str
    learned: bool
    spells_tokens: bool = True
    """Whether the spelling of a special token within it is that token."""


@dataclass(frozen=True, kw_only=True)
class Conversation(TrainingRow):
    """Messages, of which some that the assistant wrote are learned."""

    messages: tuple[Message, ...]
    prompt: int
    """Number of leading messages that form the prompt; the others form the completion."""
    segments: tuple[Segment, ...] = ()
    """Text that no template touches, in place of messages."""

    def spoken(self) -> tuple[Message, ...]:
        """Return the messages."""
        return self.messages

    def text(self) -> str:
        """Join the text of all messages, or of the segments."""
        return _joined(self.messages) + "".join(segment.text for segment in self.segments)

    def with_system(self, system: str) -> Conversation:
        """Return the row with a system message, which becomes part of the prompt."""
        if self.segments:
            return self
        messages = _begin_with_system(self.messages, system)
        added = len(messages) - len(self.messages)
        return replace(self, messages=messages, prompt=self.prompt + added)


@dataclass(frozen=True, kw_only=True)
class _PromptedRow(TrainingRow):
    """A row whose prompt is a field of its own."""

    prompt: tuple[Message, ...]

    def with_system(self, system: str) -> TrainingRow:
        """Return the row with a system message at the beginning of its prompt."""
        return replace(self, prompt=_begin_with_system(self.prompt, system))


@dataclass(frozen=True, kw_only=True)
class Preference(_PromptedRow):
    """Two completions of one prompt, of which one is better."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None
    """How much better the chosen one is."""
    ref_logp: tuple[float, float] | None = None
    """Log-probabilities of both completions under the reference, nats."""

    def spoken(self) -> tuple[Message, ...]:
        """Return the messages of the prompt and of both completions."""
        return (*self.prompt, *self.chosen, *self.rejected)


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer(_PromptedRow):
    """A completion with a verdict of its own."""

    completion: tuple[Message, ...]
    desirable: bool
    ref_logp: float | None = None
    """Log-probability of the completion under the reference, nats."""

    def spoken(self) -> tuple[Message, ...]:
        """Return the messages of prompt and completion."""
        return (*self.prompt, *self.completion)


@dataclass(frozen=True, kw_only=True)
class StepwiseAnswer(_PromptedRow):
    """An answer in steps, of each of which it is known whether it is right."""

    steps: tuple[str, ...]
    right: tuple[bool, ...]

    def spoken(self) -> tuple[Message, ...]:
        """Return the messages of the prompt, and the steps as one message."""
        return (*self.prompt, {"role": "assistant", "content": joined_text(self.steps)})


@dataclass(frozen=True, kw_only=True)
class Problem(_PromptedRow):
    """A prompt with an answer against which a reward checks completions."""

    answer: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The whole row, for rewards that need more than the answer."""

    def spoken(self) -> tuple[Message, ...]:
        """Return the messages of the prompt."""
        return self.prompt

    def text(self) -> str:
        """Join the text of prompt and answer."""
        return "\n".join([_joined(self.prompt), self.answer])


def _joined(messages: Sequence[Message]) -> str:
    return "\n".join(text for message in messages if (text := message.get("content")))


def _begin_with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    if messages and messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system}, *messages)


def joined_text(parts: Sequence[str]) -> str:
    """Join a content given in parts of text, as OpenAI allows, one part a line."""
    return "\n".join(parts)


def learns_from(message: Message) -> bool:
    """Tell whether training may learn from a message: not if it has OpenAI's `weight: 0`."""
    return message.get("weight") != 0


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse messages that no template could render sensibly.

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
    """Refuse a row without an answer to learn.

    Raises:
        BadRow: The assistant has no message, or its last one is empty.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no_answer", f"{what} holds no message of the assistant", mistake=False)
    if not (answers[-1].get("content") or "").strip() and not answers[-1].get("tool_calls"):
        raise BadRow(
            "empty_answer", f"the last message of the assistant in {what} is empty", mistake=False
        )
