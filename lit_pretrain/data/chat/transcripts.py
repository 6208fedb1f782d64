"""Transcripts and trees: conversations that a file holds as one text, or as replies to replies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from lit_pretrain.chat.messages import BadRow

_MARKS = (
    # Anthropic's hh-rlhf: an empty line before every speaker.
    re.compile(r"(?:\A\s*|\n\n)(Human|User|Assistant|System): ?"),
    # Guanaco and Vicuna: `### Human:`, with or without a line feed before it.
    re.compile(r"\s*### ?(Human|User|Assistant|System): ?"),
)
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}


def is_transcript(text: str) -> bool:
    """Tell whether a text begins with a speaker's mark, and has another further on."""
    return any((begin := mark.match(text)) and mark.search(text, begin.end()) for mark in _MARKS)


def transcript_messages(text: Any, what: str) -> list[dict[str, str]]:
    """Take a transcript apart.

    Args:
        text: The transcript.
        what: Names it, for messages.

    Raises:
        BadRow: It does not begin with a speaker's mark.
    """
    mark = next((m for m in _MARKS if isinstance(text, str) and m.match(text)), None)
    if mark is None:
        raise BadRow(
            "transcript",
            f"{what} does not begin with `Human:` or `### Human:`, as a transcript does"
            + (f": {text[:60]!r}" if isinstance(text, str) else ""),
        )
    pieces = mark.split(text)  # what stands before the first mark, then speaker and text by turns
    return [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


_SPEAKERS = {"prompter": "user", "assistant": "assistant"}
RawMessage: TypeAlias = Mapping[str, Any]
"""A message with role and content, and fields of its own that `check_messages` has yet to see."""


class ConversationFields(TypedDict):
    """A conversation as a row of the format `messages` holds it."""

    messages: list[RawMessage]


class PairFields(TypedDict):
    """A pair as a row of the format `preference` holds it."""

    prompt: list[RawMessage]
    chosen: list[RawMessage]
    rejected: list[RawMessage]


_READ_OF_NODES = frozenset({"role", "text", "rank", "deleted", "replies"})
"""Fields of a tree's messages that are read here; the others stay with the message."""


def tree_conversations(root: Any) -> list[ConversationFields]:
    """Return the conversation that follows the best reply everywhere in an OpenAssistant tree.

    Args:
        root: Its first message, with the replies.

    Raises:
        BadRow: It is no such tree.
    """
    node: Mapping[str, Any] | None = _node(root)
    messages: list[RawMessage] = []
    while node is not None:
        messages.append(_message(node))
        replies = _ranked(node)
        node = replies[0] if replies else None
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return [{"messages": messages}]


def tree_pairs(root: Any) -> list[PairFields]:
    """Return the best and the worst answer to every question of an OpenAssistant tree.

    Only ranked answers count.

    Args:
        root: Its first message, with the replies.

    Raises:
        BadRow: It is no such tree.
    """
    return list(_pairs(_node(root), ()))


def _pairs(node: Mapping[str, Any], before: tuple[RawMessage, ...]) -> Iterator[PairFields]:
    spoken = (*before, _message(node))
    replies = _ranked(node)
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    if spoken[-1]["role"] == "user" and len(ranked) > 1:
        yield {
            "prompt": list(spoken),
            "chosen": [_message(ranked[0])],
            "rejected": [_message(ranked[-1])],
        }
    for reply in replies:
        yield from _pairs(reply, spoken)


def _node(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise BadRow("tree", "the row holds no tree: its messages need a text, a role and replies")
    return value


def _message(node: Mapping[str, Any]) -> RawMessage:
    role = node.get("role")
    if not isinstance(role, str) or role not in _SPEAKERS:
        raise BadRow(
            "tree", f"a message of the tree has the role {role!r}; it must be prompter or assistant"
        )
    others = {name: value for name, value in node.items() if name not in _READ_OF_NODES}
    return {**others, "role": _SPEAKERS[role], "content": node["text"]}


def _ranked(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the replies that were not deleted, the best first and those without a rank last."""
    replies = node.get("replies") or []
    if not isinstance(replies, Sequence) or isinstance(replies, str):
        raise BadRow("tree", f"the replies are a {type(replies).__name__}; they must be a list")
    kept = [reply for reply in map(_node, replies) if not reply.get("deleted")]
    for rank in (reply["rank"] for reply in kept if reply.get("rank") is not None):
        if not isinstance(rank, int | float):
            raise BadRow(
                "tree", f"a message of the tree has the rank {rank!r}; it must be a number"
            )
    return sorted(kept, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def labelled_steps(parts: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Any]]:
    """Return the steps of an answer and the label of each, not yet looked into.

    Args:
        parts: The parts of a row of TRL's stepwise supervision.

    Raises:
        BadRow: Steps and labels are no lists of one length.
    """
    steps, labels = parts["completions"], parts["labels"]
    if (
        not isinstance(steps, Sequence)
        or isinstance(steps, str)
        or not isinstance(labels, Sequence)
        or isinstance(labels, str)
        or len(steps) != len(labels)
        or not all(isinstance(step, str) for step in steps)
    ):
        raise BadRow(
            "steps", "completions and labels must be lists of one length: a label for every step"
        )
    return steps, labels


def step_verdicts(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a verdict on every step of an answer, up to the first that is wrong.

    Args:
        parts: The parts of a row of TRL's stepwise supervision.

    Raises:
        BadRow: Steps and labels are no lists of one length.
    """
    steps, labels = labelled_steps(parts)
    asked = {part: parts[part] for part in ("prompt", "system") if part in parts}
    verdicts = []
    for i, label in enumerate(labels):
        verdicts.append({**asked, "completion": "\n".join(steps[: i + 1]), "label": label})
        if not label:
            break
    return verdicts
