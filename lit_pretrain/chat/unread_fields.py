"""Unread fields: tell text and media, whose loss changes what a row teaches, from mere labels.

A field that nobody reads is named before training. Most such fields are labels (an id, a source, a
score) and are counted. One that holds text or media is a mistake, because the row then teaches
something else than its author meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

Unread = Literal["nothing", "label", "text", "media"]
"""What an unread field holds."""

_MEDIA = frozenset(
    """audio audio_path audio_url audios clip clips image image_path image_url image_urls images img
    imgs frames media photo photos picture pictures pixel_values pixels speech video video_path
    video_url videos wav waveform""".split()
)
PROMPT_FIELDS = frozenset(
    """article background candidates chat_history choices context conversation conversations
    demonstrations dialog dialogue docs document documents evidence examples few_shot
    functions hint hints history input input_text inputs instruction instructions messages
    options paragraph passage passages persona preamble previous prompt prompts queries
    query question question_text questions scenario starter_code story subject system
    system_message system_prompt task_description tools user user_input user_prompt
    utterance""".split()
)
"""Names of fields that hold a part of what is asked."""
_CHOICE = re.compile(r"[A-E]|(?:option|choice)_?[A-Ea-e]|(?:option|choice|ending|sol)_?\d")
"""Names of fields that hold one of several answers to choose from."""
_CHOICES = frozenset({"candidates", "choices", "options"})
_ANSWER_FIELDS = frozenset(
    """answer answers chain_of_thought chosen code completion completions cot explanation
    explanations final_answer gold output outputs rationale reasoning reasoning_content rejected
    reply response responses solution solutions steps target targets text think thinking thought
    thoughts""".split()
)
_LABEL = re.compile(
    r"(?:^|_)(?:annotators?|authors?|categor(?:y|ies)|classes|created|dataset|dates?|difficulty"
    r"|domains?|filename|generators?|hash|id|ids|idx|index|keywords?|labels?|lang|language|level"
    r"|licen[cs]e|links?|meta|metadata|models?|origin|provider|quality|ratings?|scores?|skills?"
    r"|sources?|split|status|subset|tags?|task|tasks|time|timestamp|topics?|type|types|updated|ur[il]"
    r"|ur[il]s|uuid|uid|version)(?:$|_)"
)
_ROLES = ("role", "from")
_TEXT = re.compile(r"\S\s+\S|[^\x00-\u024f]{8,}")
"""Two words; or a stretch of a script that may be written without blanks."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def what_is_unread(
    name: str,
    value: Any,
    read: Sequence[str],
    *,
    all_text: bool = True,
    speakers: Collection[str] = (),
) -> Unread:
    """Tell what a field holds that nobody reads.

    Args:
        name: The field.
        value: Its value.
        read: The texts that were read from the row. What repeats them is not lost: a part of one,
            or all of them written once more.
        all_text: Whether text under any name counts; otherwise that under names of prompts alone,
            where rewards may read the other fields.
        speakers: Names of roles, which say nothing.
    """
    choice = _CHOICE.fullmatch(name) is not None
    name = _CAMEL.sub("_", name).lower()
    texts = strings_of(value)
    if not texts and _empty(value):
        return "nothing"
    if name in _MEDIA or _is_media(value):
        return "media"
    lost = [text for text in texts if text not in speakers and not _repeats(text.strip(), read)]
    choice = choice or name in _CHOICES
    if choice:  # which the question may list, however short they are
        lost = [text for text in lost if not any(text.strip() in other for other in read)]
    if choice or name in PROMPT_FIELDS or (all_text and name in _ANSWER_FIELDS):
        return "text" if lost else "label"
    if all_text and lost and is_talk(value):
        return "text"
    if all_text and not _LABEL.search(name) and any(_TEXT.search(text) for text in lost):
        return "text"
    return "label"


def is_talk(value: Any, *roles: str) -> bool:
    """Tell whether a value is a list of messages.

    Args:
        value: The value.
        roles: Names of the field that says who speaks; without any, role or from.
    """
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) > 0
        and all(
            isinstance(message, Mapping) and any(role in message for role in roles or _ROLES)
            for message in value
        )
    )


def _repeats(text: str, read: Sequence[str]) -> bool:
    """Tell whether a text says nothing that is not in the texts that were read."""
    if len(text) < 16:  # a short text is within many others by chance
        return any(text == other.strip() for other in read)
    return any(text in other for other in read) or (
        bool(read) and all(other.strip() in text for other in read)
    )


def strings_of(value: Any) -> list[str]:
    """Return all texts within a value that are not blank."""
    return [text for text in _strings(value) if text.strip()]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for item in value:
            yield from _strings(item)


def _empty(value: Any) -> bool:
    """Tell whether a value says nothing: null, or text and lists without content."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(_empty, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return all(map(_empty, value))
    return value is None


def _is_media(value: Any) -> bool:
    """Tell whether a value is a file in bytes, as `datasets` stores pictures and sounds."""
    if isinstance(value, bytes):
        return True
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or {"array", "sampling_rate"} <= value.keys()
    return isinstance(value, Sequence) and not isinstance(value, str) and any(map(_is_media, value))


PLACEHOLDER = re.compile(
    r"<(?:image|video|audio|speech|start_of_image|image_soft_token|audio_soft_token|img)>"
    r"|<\|(?:image|video|audio|image_pad|video_pad|vision_start|audio_bos|AUDIO|image_1)\|>"
    r"|\[IMG\]"
)
"""What stands for a picture, a film or a sound within a text."""

_BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<BOS_TOKEN>|<\|begin_of_text\|>|<\|startoftext\|>|<\|endoftext\|>"
    r"|<｜begin▁of▁sentence｜>|\[gMASK\]<sop>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|<\|start\|>|<\|start_of_role\|>"
    r"|<\|START_OF_TURN_TOKEN\|>|<\|(?:system|user|assistant|developer)\|>|<｜User｜>|<\|im_(?:system|user)\|>"
    r"|\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\])"
)
"""What a conversation begins with that a chat template has written."""
_END = re.compile(
    r"(<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>|<\|endoftext\|>|<end_of_turn>|<turn\|>"
    r"|<\|end\|>|<\|return\|>|<\|call\|>|<\|END_OF_TURN_TOKEN\|>|<｜end▁of▁sentence｜>|<eos>|</s>)\s*\Z"
)
"""What an answer ends with that a chat template has written."""


def template_mark(text: str) -> str | None:
    """Find the mark at the beginning or end of a text that a chat template has written.

    `</s>` is none where it closes an HTML element.
    """
    if (begin := _BEGIN.match(text)) is not None:
        return begin[1]
    end = _END.search(text, max(0, len(text) - 40))
    if end is None or (end[1] == "</s>" and "<s>" in text):
        return None
    return end[1]
