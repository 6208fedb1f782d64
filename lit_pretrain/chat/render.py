"""Renderer: turn conversations into token ids and a mask of the tokens to learn.

Training, evaluation and chat all render here, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_pretrain.chat.messages import (
    BadRow,
    Conversation,
    Message,
    ToolDescription,
    learns_from,
)
from lit_pretrain.chat.template import ChatTemplate, Refused, Rendering
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Spelt, Tokenizer

TrainOn = Literal["assistant", "last", "all", "completion"]
Truncation = Literal["keep_start", "keep_end", "drop"]
GUARD = "\ufdd0"
"""Breaks the spelling of a special token that a row's own text holds while the row is rendered.
A row's text is data, so `<|im_end|>` in it must not become the token.
"""
_LOOKS_SPECIAL = re.compile(r"<\|[a-zA-Z0-9_]+\|>")
_HALF = re.compile("[\ud800-\udfff]")
"""Lone surrogates: JSON can spell them, UTF-8 cannot."""
_BATCH = 1024
"""Conversations encoded in one call, which `tokenizers` spreads over its threads."""


class Rendered(NamedTuple):
    """A conversation as tokens."""

    ids: npt.NDArray[np.int32]
    """Token ids of the whole conversation."""
    learned: npt.NDArray[np.bool_]
    """Whether training learns to predict each token."""
    cut: bool = False
    """Whether the conversation was truncated."""


class _Text(NamedTuple):
    text: str
    spans: list[tuple[int, int]]
    """Begin and end of what is learned, in characters."""
    exact: bool
    """Whether the template marked the spans by `{% generation %}`; otherwise a span may also hold
    text after the stop token.
    """


class Renderer:
    """Turns conversations into tokens.

    The renderer finds what is learned in one of two ways. If the template has `{% generation %}`
    blocks, they mark it. Otherwise an answer is a difference: the messages before it, rendered up
    to where the assistant begins to write, must be a prefix of the whole rendering, and the answer
    is what the whole adds up to the end of that message. A template that rewrites earlier turns
    allows neither and is refused.

    The token that ends an answer is learned too, because a model that never learns to stop talks
    on. It is the special token that a span ends with or that follows it directly; white space after
    it (the line feed of ChatML) is not learned.

    A conversation is encoded as a whole. Where the text before an answer, encoded alone, gives
    other tokens than the whole has there, the answer begins at the first token that differs.

    Args:
        tokenizer: Encodes the text.
        template: Writes the text.
        options: Further variables of the template, such as enable_thinking.

    Raises:
        UserError: The template does not fit the tokenizer, or does not show what is learned.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.options = dict(options or {})
        spellings = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spellings)))
        self._heads: dict[str, npt.NDArray[np.int32]] = {}
        self.stop_ids = frozenset({tokenizer.eos_id, self._probe()})
        """Ids that end an answer: the template's own end of turn and the end of a document."""

    def render(
        self, conversations: Sequence[Conversation], *, train_on: TrainOn = "assistant"
    ) -> list[Rendered | BadRow]:
        """Render conversations; in place of one that cannot be used, return the reason.

        Args:
            conversations: What to render.
            train_on: What is learned. assistant: every message of the assistant. last: its last
                message. completion: everything after the prompt, including messages of others. all:
                every token.
        """
        results: list[Rendered | BadRow] = []
        for first in range(0, len(conversations), _BATCH):
            texts = [
                self._text(conversation, train_on)
                for conversation in conversations[first : first + _BATCH]
            ]
            good = [text for text in texts if isinstance(text, _Text)]
            encoded = iter(self._encode([text.text for text in good]))
            results += [
                text if isinstance(text, BadRow) else self._mask(text, next(encoded))
                for text in texts
            ]
        return results

    def prompt(
        self, messages: Sequence[Message], *, tools: Sequence[ToolDescription] | None = None
    ) -> npt.NDArray[np.int32]:
        """Render messages up to where the assistant begins to write.

        Raises:
            BadRow: The template does not take these messages.
        """
        return self._encode([self._rendering(messages, tools, generation_prompt=True).text])[0].ids

    # ------------------------------------------------------------------ text

    def _text(self, conversation: Conversation, train_on: TrainOn) -> _Text | BadRow:
        """Render a conversation to text and find the places of what is learned."""
        try:
            return self._spans(conversation, train_on)
        except BadRow as bad:
            return bad

    def _spans(self, conversation: Conversation, train_on: TrainOn) -> _Text:
        messages, tools = conversation.messages, conversation.tools
        if any(message.get("tool_calls") for message in messages) and not self.template.shows_calls:
            raise BadRow(
                "tool_calls",
                f"the row has tool_calls, which the template {self.template.name} does not show;"
                " use another, such as qwen",
            )
        whole = self._rendering(messages, tools)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        passed_over = [i for i in answers if not learns_from(messages[i])]
        if passed_over and train_on in ("all", "completion"):
            raise BadRow(
                "weight",
                f"message {passed_over[0] + 1} has the weight 0, for which data.train_on must be"
                " assistant or last",
            )
        if train_on == "all":
            return _Text(whole.text, [(0, len(whole.text))], exact=True)
        first = sum(i < conversation.prompt for i in answers)
        if train_on == "last":
            wanted = answers[-1:]
        elif train_on == "completion":
            wanted = [answers[first], answers[-1]] if first < len(answers) else []
        else:
            wanted = answers
        if not wanted:
            raise BadRow(
                "no_answer", "the completion holds no message of the assistant", mistake=False
            )
        wanted = [i for i in wanted if i not in passed_over]
        if not wanted:
            raise BadRow(
                "nothing_learned",
                "no message that would be learned has a weight other than 0",
                mistake=False,
            )
        if self.template.marks_generation:
            if len(whole.spans) != len(answers):
                raise BadRow(
                    "spans",
                    f"the template {self.template.name} has {{% generation %}} blocks, but enclosed"
                    f" {len(whole.spans)} parts where the assistant has {len(answers)} messages;"
                    " correct the template",
                )
            spans = [whole.spans[answers.index(i)] for i in wanted]
        else:
            spans = [self._difference(messages, tools, i, whole.text) for i in wanted]
        if train_on == "completion":
            spans = [(spans[0][0], spans[-1][1])]
        return _Text(whole.text, spans, exact=self.template.marks_generation)

    def _difference(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolDescription] | None,
        i: int,
        whole: str,
    ) -> tuple[int, int]:
        """Find message i in the whole rendering by the difference that it makes."""
        before = self._rendering(messages[:i], tools, generation_prompt=True).text
        until = whole if i + 1 == len(messages) else self._rendering(messages[: i + 1], tools).text
        if not whole.startswith(before) or not whole.startswith(until) or len(before) >= len(until):
            raise BadRow(
                "not_a_prefix",
                f"the template {self.template.name} has no {{% generation %}} blocks and renders"
                f" earlier turns differently once others follow (message {i + 1} of"
                f" {len(messages)}), so it cannot be told what is learned. Enclose what the"
                " assistant writes, its end-of-turn token included, in {% generation %} ... {%"
                " endgeneration %}, or set data.train_on to last",
            )
        return len(before), len(until)

    def _rendering(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolDescription] | None,
        *,
        generation_prompt: bool = False,
    ) -> Rendering:
        guarded = [
            {key: self._guarded(value) for key, value in message.items()} for message in messages
        ]
        try:
            rendering = self.template.render(
                guarded, bos=self.tokenizer.bos, eos=self.tokenizer.eos, tools=self._guarded(tools),
                generation_prompt=generation_prompt,
                options=self.options,
            )  # fmt: skip
        except Refused as error:
            raise BadRow(
                "template", f"the template {self.template.name} does not take it: {error}"
            ) from None
        if not rendering.text.isascii() and (half := _HALF.search(rendering.text)):
            near = rendering.text[max(0, half.start() - 20) : half.start()]
            raise BadRow(
                "half_character",
                f"a text holds {half[0]!r}, half of a character, behind {near!r}; mend the text",
            )
        return rendering

    def _guarded(self, value: Any) -> Any:
        """Break the spelling of special tokens in all texts of a value."""
        if isinstance(value, str):
            return self._special.sub(lambda match: match[0][0] + GUARD + match[0][1:], value)
        if isinstance(value, Mapping):
            return {key: self._guarded(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._guarded(item) for item in value]
        return value

    # ------------------------------------------------------------------ tokens

    def _encode(self, texts: Sequence[str]) -> list[Spelt]:
        """Encode rendered texts; guarded spellings become plain text."""
        return [
            self._unguarded(text, spelt) if GUARD in text else spelt
            for text, spelt in zip(texts, self.tokenizer.encode_spelt(texts), strict=True)
        ]

    def _unguarded(self, text: str, spelt: Spelt) -> Spelt:
        """Encode again, without guards, each stretch between special tokens that holds one."""
        cuts = np.flatnonzero(spelt.special).tolist()
        parts: list[Spelt] = []
        for before, after in zip([-1, *cuts], [*cuts, len(spelt.ids)], strict=True):
            begin = int(spelt.ends[before]) if before >= 0 else 0
            end = int(spelt.begins[after]) if after < len(spelt.ids) else len(text)
            piece = text[begin:end]
            if GUARD in piece:
                # An empty stretch of characters has no last one to map.
                place = np.array(
                    [begin + i for i, character in enumerate(piece) if character != GUARD],
                    dtype=np.int64,
                )
                again = self.tokenizer.encode_spelt([piece.replace(GUARD, "")], special=False)[0]
                parts.append(
                    Spelt(
                        again.ids,
                        place[again.begins],
                        place[np.maximum(again.ends - 1, 0)] + 1,
                        np.zeros(len(again.ids), np.bool_),
                    )
                )
            else:
                parts.append(spelt.part(before + 1, after))
            parts.append(spelt.part(after, after + 1))
        return Spelt(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _mask(self, text: _Text, spelt: Spelt) -> Rendered | BadRow:
        """Mark which tokens of a text are learned."""
        learned = np.zeros(len(spelt.ids), dtype=np.bool_)
        if text.spans == [(0, len(text.text))] and text.exact:
            learned[:] = True
            return Rendered(spelt.ids, learned)
        for begin, end in text.spans:
            first = self._first(text.text, spelt, begin)
            last = int(np.searchsorted(spelt.begins, end))  # the token after the last
            stop = self._stop(text, spelt, first, last, end)
            if stop is None:
                return BadRow(
                    "no_stop",
                    f"the template {self.template.name} ends an answer with no special token, so"
                    " that a model could not learn to stop:"
                    f" {text.text[max(begin, end - 40) : end]!r}",
                )
            learned[first : stop + 1] = True
        return Rendered(spelt.ids, learned)

    @staticmethod
    def _stop(text: _Text, spelt: Spelt, first: int, last: int, end: int) -> int | None:
        """Find the token that ends the answer in tokens `first` to `last - 1`."""
        special = np.flatnonzero(spelt.special[first:last])
        if len(special):
            stop = first + int(special[-1])
            if not text.text[int(spelt.ends[stop]) : end].strip():
                return stop
        if text.exact and last < len(spelt.ids) and spelt.special[last]:
            return last
        return None

    def _first(self, text: str, spelt: Spelt, begin: int) -> int:
        """Find the first token of a span that begins at a character.

        It is where the tokens of the whole begin to differ from those of the text before the span.
        """
        until = int(np.searchsorted(spelt.ends, begin, side="right"))  # tokens that end before it
        special = np.flatnonzero(spelt.special[:until])
        start = int(special[-1]) + 1 if len(special) else 0
        if self.tokenizer.backend != "tiktoken":
            start = 0  # other backends may encode the beginning of a text specially
        head = text[int(spelt.ends[start - 1]) if start else 0 : begin]
        alone = self._heads.get(head)
        if alone is None:
            alone = self._encode([head])[0].ids
            if len(head) < 64 and len(self._heads) < 4096:
                self._heads[head] = alone
        whole = spelt.ids[start : start + len(alone)]
        differs = np.flatnonzero(whole != alone[: len(whole)])
        return start + (int(differs[0]) if len(differs) else len(whole))

    # ------------------------------------------------------------------ the template itself

    def _probe(self) -> int:
        """Render a small conversation and return the token that ends its answer.

        Raises:
            UserError: It cannot be rendered, or the tokenizer lacks its special tokens.
        """
        messages: tuple[Message, ...] = (
            {"role": "user", "content": "Question"},
            {"role": "assistant", "content": "Answer"},
        )
        text = self._text(Conversation(messages=messages, prompt=1), "assistant")
        if isinstance(text, BadRow):
            raise UserError(f"the chat template cannot be used: {text}")
        unknown = sorted(
            set(_LOOKS_SPECIAL.findall(text.text)) - self.tokenizer.special_tokens.keys()
        )
        if unknown:
            raise UserError(
                f"the template {self.template.name} writes {', '.join(unknown)}, which the"
                " tokenizer does not have as special tokens; choose the template that belongs to"
                " the tokenizer, or plain"
            )
        rendered = self._mask(text, self._encode([text.text])[0])
        if isinstance(rendered, BadRow):
            raise UserError(f"the chat template cannot be used: {rendered}")
        return int(rendered.ids[np.flatnonzero(rendered.learned)[-1]])


def truncate(rendered: Rendered, limit: int, how: Truncation) -> Rendered:
    """Shorten a conversation to at most `limit` tokens.

    Args:
        rendered: The conversation.
        limit: Most tokens.
        how: keep_start drops tokens from the end, keep_end from the beginning; drop refuses.

    Raises:
        BadRow: It is longer and `how` is drop, or no learned token is left.
    """
    ids, learned, cut = rendered
    if len(ids) > limit:
        if how == "drop":
            raise BadRow("too_long", f"{len(ids)} tokens, {limit} allowed", mistake=False)
        cut = True
        ids, learned = (
            (ids[:limit], learned[:limit])
            if how == "keep_start"
            else (ids[-limit:], learned[-limit:])
        )
        if not learned[1:].any():
            raise BadRow(
                "prompt_too_long",
                f"no learned token among the {limit} that are kept",
                mistake=False,
            )
    elif not learned[1:].any():
        raise BadRow("nothing_learned", "no token of it is learned", mistake=False)
    return Rendered(ids, learned, cut)
