"""Renderer: turn conversations into token ids and a mask of the tokens to learn.

Training, evaluation and chat all render here, so they cannot disagree.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
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
from lit_pretrain.chat.tool_calls import with_arguments
from lit_pretrain.chat.unread_fields import what_is_unread
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
    notes: tuple[str, ...] = ()
    """What the template left out, for the table of rows."""


class _Text(NamedTuple):
    text: str
    spans: list[tuple[int, int]]
    """Begin and end of what is learned, in characters."""
    exact: bool
    """Whether the template marked the spans by `{% generation %}`; otherwise a span may also hold
    text after the stop token.
    """
    raw: bool = False
    """Whether the spans hold all that is learned, with or without a stop token."""
    notes: tuple[str, ...] = ()


_READ = frozenset({"role", "content", "tool_calls", "tool_call_id", "weight", "reasoning_content"})
"""Fields of messages that are read here, or whose loss is looked for by itself."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Names under which templates and rows have the thoughts of the assistant."""
_RESERVED_OPTIONS = frozenset({"messages", "tools", "bos_token", "eos_token",
                               "add_generation_prompt", "strftime_now"})  # fmt: skip


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
        options: Further variables of the template, such as enable_thinking. `date`
            (YYYY-MM-DD) is what `strftime_now` tells.
        after_stop: Learn the white space behind the stop token, too, as far as the template has it
            within its `{% generation %}` block.

    Raises:
        UserError: The template does not fit the tokenizer, or does not show what is learned.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        options: Mapping[str, Any] | None = None,
        after_stop: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.after_stop = after_stop
        self.template = template
        self.options = dict(options or {})
        self.date = _date(self.options.pop("date", None))
        if self.date is None and template.needs_date:
            self.date = datetime.date.today()
        self._appended = ""
        """What the template puts behind a conversation without being asked; it is cut off."""
        spellings = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spellings)))
        self._incomplete = not tokenizer.spells_every_byte
        self._heads: dict[str, npt.NDArray[np.int32]] = {}
        self.stop_ids = frozenset({tokenizer.eos_id, *self._probe()})
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
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolDescription] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> npt.NDArray[np.int32]:
        """Render messages up to where the assistant begins to write.

        Raises:
            BadRow: The template does not take these messages.
        """
        rendering = self._rendering(messages, tools, options or {}, generation_prompt=True)
        return self._encode([rendering.text])[0].ids

    def steps(
        self,
        prompt: Sequence[Message],
        steps: Sequence[str],
        *,
        separator: str,
        tools: Sequence[ToolDescription] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Render a prompt, and behind it what the assistant writes step by step.

        Steps and separators are encoded one by one, so that a step has the same tokens whatever
        follows it. The spelling of a special token in a step is text; the separator may be one.

        Args:
            prompt: The messages before the answer.
            steps: The texts of the steps.
            separator: What follows each of them.
            tools: Descriptions of tools for the template.
            options: Further variables of the template.

        Returns:
            The tokens, of which the last of every step with its separator is marked.

        Raises:
            BadRow: The template does not take the prompt, or the tokenizer cannot spell a step.
        """
        self.check_shown(prompt)
        for step in steps:
            self._refuse_halves(step)
        ids = [self.prompt(prompt, tools=tools, options=options)]
        end = self.tokenizer.encode_spelt([separator])[0].ids
        marks = []
        for step, spelt in zip(
            steps, self.tokenizer.encode_spelt(list(steps), special=False), strict=True
        ):
            if self._incomplete and self._lacks(step, spelt):
                raise _not_spelt()
            ids += [spelt.ids, end]
            marks.append(sum(map(len, ids)) - 1)
        whole = np.concatenate(ids)
        learned = np.zeros(len(whole), dtype=np.bool_)
        learned[marks] = True
        return Rendered(whole, learned)

    def unread_fields(self, messages: Sequence[Message]) -> list[str]:
        """Return a note on each field of messages that the template does not look at."""
        names = {name for message in messages for name in message}
        return [
            f"unread {name} of messages" for name in sorted(names - _READ) if not self._reads(name)
        ]

    def _reads(self, name: str) -> bool:
        return name in self.template.fields or (
            name in _THOUGHTS and any(other in self.template.fields for other in _THOUGHTS)
        )

    def check_shown(self, messages: Sequence[Message]) -> None:
        """Refuse messages of which the template would leave something out.

        Raises:
            BadRow: It has no place for a role, a tool call or a field that holds text.
        """
        for i, message in enumerate(messages):
            if message["role"] in ("system", "tool") and self.template.hides(message["role"]):
                raise BadRow(
                    "role_not_shown",
                    f"message {i + 1} is of the {message['role']}, and the template"
                    f" {self.template.name} leaves such messages out; use another",
                )
            if message.get("tool_calls") and not self.template.shows_calls:
                raise BadRow(
                    "tool_calls",
                    f"the row has tool_calls, which the template {self.template.name} does not"
                    " show; use another, such as qwen",
                )
            if len(message.get("tool_calls") or ()) > 1 and not self.template.shows_every_call:
                raise BadRow(
                    "tool_calls",
                    f"message {i + 1} calls {len(message['tool_calls'])} tools at once, of which"
                    f" the template {self.template.name} shows one; use another, or make a message"
                    " of every call",
                )
            for name, value in message.items():
                if (name not in _READ or name == "reasoning_content") and not self._reads(name):
                    what = what_is_unread(name, value, [message.get("content") or ""])
                    if what in ("text", "media"):
                        raise BadRow(
                            "unread_field",
                            f"message {i + 1} has {name!r}, which the template"
                            f" {self.template.name} does not show"
                            f" ({str(value).strip()[:60]!r}); use a template that does, such as"
                            f" qwen for thoughts, or leave it out by name: ignore: [{name}]",
                        )

    # ------------------------------------------------------------------ text

    def _text(self, conversation: Conversation, train_on: TrainOn) -> _Text | BadRow:
        """Render a conversation to text and find the places of what is learned."""
        try:
            return self._spans(conversation, train_on)
        except BadRow as bad:
            return bad

    def _spans(self, conversation: Conversation, train_on: TrainOn) -> _Text:
        if conversation.segments:
            return self._segments(conversation)
        messages, tools, options = (
            conversation.messages,
            conversation.tools,
            conversation.options,
        )
        self.check_shown(messages)
        whole = self._rendering(messages, tools, options)
        notes = self._left_out(messages, whole.text)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        passed_over = [i for i in answers if not learns_from(messages[i])]
        if passed_over and train_on in ("all", "completion"):
            raise BadRow(
                "weight",
                f"message {passed_over[0] + 1} has the weight 0, for which data.train_on must be"
                " assistant or last",
            )
        if train_on == "all":
            return _Text(whole.text, [(0, len(whole.text))], exact=True, notes=notes)
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
        for i in answers if train_on == "completion" else wanted:
            message = messages[i]
            if (
                (i >= wanted[0])
                and not (message.get("content") or "").strip()
                and not message.get("tool_calls")
            ):
                raise BadRow(
                    "empty_answer",
                    f"message {i + 1} of the assistant is empty, and would teach it to stop at"
                    " once",
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
            spans = [self._difference(conversation, i, whole.text, train_on) for i in wanted]
        if train_on == "completion":
            spans = [(spans[0][0], spans[-1][1])]
        return _Text(whole.text, spans, exact=self.template.marks_generation, notes=notes)

    def _left_out(self, messages: Sequence[Message], text: str) -> tuple[str, ...]:
        """Compare a rendering with what was said, and note thoughts that are not in it.

        Raises:
            BadRow: Other words, or a tool call, are not in it.
        """
        notes: tuple[str, ...] = ()
        for i, message in enumerate(messages):
            thought, _, words = (message.get("content") or "").rpartition("</think>")
            for call in message.get("tool_calls") or ():
                if self._guarded(call["function"]["name"]) not in text:
                    raise BadRow(
                        "tool_calls",
                        f"message {i + 1} calls {call['function']['name']}, which the template"
                        f" {self.template.name} leaves out there; use another",
                    )
            if message["role"] != "tool" and self._guarded(words.strip()) not in text:
                raise BadRow(
                    "text_not_shown",
                    f"the template {self.template.name} leaves the words of message {i + 1} out or"
                    f" changes them ({words.strip()[:60]!r}); use another",
                )
            thoughts = (thought.rpartition("<think>")[2], message.get("reasoning_content") or "")
            if any(self._guarded(part.strip()) not in text for part in thoughts):
                notes = ("thoughts_not_shown",)
        return notes

    def _segments(self, conversation: Conversation) -> _Text:
        """Join pieces of text that need no template."""
        segments = conversation.segments
        document = not any(segment.spells_tokens for segment in segments)
        text = self.tokenizer.bos if document else ""
        spans = []
        for segment in segments:
            begin = len(text)
            text += segment.text if segment.spells_tokens else self._guarded(segment.text)
            if segment.learned and len(text) > begin:
                spans.append((begin, len(text)))
        if document:
            begin, text = spans[-1][0], text + self.tokenizer.eos
            spans[-1] = (begin, len(text))
        self._refuse_halves(text)
        return _Text(text, spans, exact=True, raw=True)

    def _difference(
        self, conversation: Conversation, i: int, whole: str, train_on: TrainOn
    ) -> tuple[int, int]:
        """Find message i in the whole rendering by the difference that it makes."""
        messages, tools, options = conversation.messages, conversation.tools, conversation.options
        before = self._rendering(messages[:i], tools, options, generation_prompt=True).text
        last = i + 1 == len(messages)
        until = whole if last else self._rendering(messages[: i + 1], tools, options).text
        if whole.startswith(before) and whole.startswith(until) and len(before) < len(until):
            return len(before), len(until)
        final = self._final_answer(conversation, whole)
        if last and train_on != "assistant" and final is not None:
            return final
        advice = (
            "" if final is None or train_on != "assistant" else ", or set data.train_on to last"
        )
        raise BadRow(
            "not_a_prefix",
            f"the template {self.template.name} has no {{% generation %}} blocks and renders"
            " earlier turns differently once others follow, or begins an answer otherwise than it"
            f" shows one (message {i + 1} of {len(messages)}), so it cannot be told what is"
            " learned. Take a training template of its family, or enclose what the assistant"
            " writes, its end-of-turn token included, in {% generation %} ... {% endgeneration %}"
            + advice,
        )

    def _final_answer(self, conversation: Conversation, whole: str) -> tuple[int, int] | None:
        """Find the answer that ends a conversation; None if it cannot be told where it begins.

        The header that asks for it may go on otherwise than the answer that was given, as with
        templates that begin every thought. What both have in common is the header then.
        """
        messages, tools, options = conversation.messages, conversation.tools, conversation.options
        if messages[-1]["role"] != "assistant":
            return None
        try:
            asked = self._rendering(messages[:-1], tools, options, generation_prompt=True).text
            before = self._rendering(messages[:-1], tools, options).text
        except BadRow:
            return None
        begin = len(commonprefix([asked, whole]))  # noqa: RUF071  (characters are meant)
        said = self._guarded((messages[-1].get("content") or "").strip())[-40:]
        told = whole.startswith(before) and begin > len(before) and whole.find(said, begin) >= 0
        return (begin, len(whole)) if told else None

    def _rendering(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolDescription] | None,
        options: Mapping[str, Any],
        *,
        generation_prompt: bool = False,
    ) -> Rendering:
        guarded = [
            {key: self._guarded(value) for key, value in self._prepared(message).items()}
            for message in messages
        ]
        wrong = sorted(
            options.keys() - self.template.variables | options.keys() & _RESERVED_OPTIONS
        )
        if wrong:
            raise BadRow(
                "chat_template_kwargs",
                f"the row sets {', '.join(wrong)} for the template, and {self.template.name} has no"
                " such option",
            )
        try:
            rendering = self.template.render(
                guarded, bos=self.tokenizer.bos, eos=self.tokenizer.eos, tools=self._guarded(tools),
                generation_prompt=generation_prompt, options={**self.options, **options},
                date=self.date,
            )  # fmt: skip
        except Refused as error:
            raise BadRow(
                "template", f"the template {self.template.name} does not take it: {error}"
            ) from None
        self._refuse_halves(rendering.text)
        if self._appended and not generation_prompt and rendering.text.endswith(self._appended):
            return rendering._replace(text=rendering.text[: -len(self._appended)])
        return rendering

    def _prepared(self, message: Message) -> Mapping[str, Any]:
        """Give a message the form that the template takes: of tool calls, and names of thoughts."""
        made: dict[str, Any] = dict(message)
        if made.get("tool_calls"):
            made["tool_calls"] = with_arguments(
                made["tool_calls"], as_text=self.template.arguments_as_text
            )
            if made.get("content", "") is None:
                made["content"] = self.template.content_beside_calls
        for name in _THOUGHTS:
            if name in made and name not in self.template.fields:
                other = next((n for n in _THOUGHTS if n in self.template.fields), None)
                if other is not None and other not in made:
                    made[other] = made.pop(name)
        return made

    @staticmethod
    def _refuse_halves(text: str) -> None:
        if not text.isascii() and (half := _HALF.search(text)):
            near = text[max(0, half.start() - 20) : half.start()]
            raise BadRow(
                "half_character",
                f"a text holds {half[0]!r}, half of a character, behind {near!r}; mend the text",
            )

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
        if self._incomplete and self._lacks(text.text, spelt):
            return _not_spelt()
        learned = np.zeros(len(spelt.ids), dtype=np.bool_)
        if text.spans == [(0, len(text.text))] and text.exact:
            learned[:] = True
            return Rendered(spelt.ids, learned, notes=text.notes)
        if text.raw:
            for begin, end in text.spans:
                first = self._first(text.text, spelt, begin)
                learned[first : int(np.searchsorted(spelt.begins, end))] = True
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
            end_of_block = last if self.after_stop and text.exact else 0
            learned[first : max(stop + 1, end_of_block)] = True
        return Rendered(spelt.ids, learned, notes=text.notes)

    def _lacks(self, text: str, spelt: Spelt) -> bool:
        """Tell whether characters of a text are in no token, or in one that says "unknown"."""
        if self.tokenizer.has_unknown(spelt.ids):
            return True
        edges = np.maximum.accumulate(np.concatenate([[0], spelt.ends]))
        begins = np.concatenate([spelt.begins, [len(text)]])
        return any(
            text[edges[i] : begins[i]].strip() for i in np.flatnonzero(begins > edges).tolist()
        )

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

    def _probe(self) -> list[int]:
        """Render a small conversation and return the special tokens that end its answer.

        Raises:
            UserError: It cannot be rendered, or the tokenizer lacks its special tokens.
        """
        messages: tuple[Message, ...] = (
            {"role": "user", "content": "Question"},
            {"role": "assistant", "content": "Answer"},
        )
        self._appended = self._appended_header(messages)
        text = self._text(Conversation(messages=messages, prompt=1), "last")
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
        # Some end an answer with two, such as the end of a turn and of the text.
        ids = rendered.ids[rendered.learned].tolist()
        special = set(self.tokenizer.special_tokens.values())
        stops: list[int] = []
        for index in reversed(ids):
            if index in special:
                stops.append(index)
            elif self.tokenizer.decode([index]).strip():
                break
        return stops

    def _appended_header(self, messages: tuple[Message, ...]) -> str:
        """Return the header of a next message that the template appends without being asked.

        Early templates of Llama 3 do. Learned as a part of the answer it would teach a false stop.

        Raises:
            UserError: What is appended is no header of the assistant, so that it is not known where
                the assistant begins to write.
        """
        try:
            whole = self._rendering(messages, None, {}).text
            asked = self._rendering(messages[:1], None, {}, generation_prompt=True).text
            question = self._rendering(messages[:1], None, {}).text
        except BadRow:
            return ""  # rendering it to learn from says what is wrong
        answer = str(messages[1]["content"])
        behind = whole[whole.rfind(answer) + len(answer) :] if answer in whole else ""
        stop = self._special.search(behind)
        rest = behind[stop.end() :] if stop else ""
        header = rest.strip()
        asking = str(messages[0]["content"])
        starts = (whole[: whole.find(text)].rstrip() for text in (asking, answer) if text in whole)
        if not header or not any(start.endswith(header) for start in starts):
            return ""  # more that ends a turn
        if question != asked or not question.endswith(rest):
            raise UserError(
                f"the template {self.template.name} ends a conversation with {rest!r}, the header"
                " of a next message, without being asked to; write it only"
                " {% if add_generation_prompt %}"
            )
        return rest


def _not_spelt() -> BadRow:
    return BadRow(
        "not_spelt",
        "the tokenizer has no tokens for a part of the row's text, which would be lost; take one"
        " that spells every byte",
    )


def _date(value: Any) -> datetime.date | None:
    """Read the date that templates are to show.

    Raises:
        UserError: It is no date.
    """
    if value is None or isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise UserError(
            f"data.template_options.date={value!r} is no date; write it as 2025-12-31"
        ) from None


def truncate(rendered: Rendered, limit: int, how: Truncation) -> Rendered:
    """Shorten a conversation to at most `limit` tokens.

    Args:
        rendered: The conversation.
        limit: Most tokens.
        how: keep_start drops tokens from the end, keep_end from the beginning; drop refuses.

    Raises:
        BadRow: It is longer and `how` is drop, or no learned token is left.
    """
    ids, learned, cut, notes = rendered
    if len(ids) > limit:
        if how == "drop":
            raise BadRow(
                "too_long", f"{len(ids)} tokens, and data.seq_len allows {limit}", mistake=False
            )
        cut = True
        ids, learned = (
            (ids[:limit], learned[:limit])
            if how == "keep_start"
            else (ids[-limit:], learned[-limit:])
        )
        if not learned[1:].any():
            raise BadRow(
                "prompt_too_long",
                f"no learned token among the {limit} that are kept; raise data.seq_len, or set"
                " data.truncation to keep_end",
                mistake=False,
            )
    elif not learned[1:].any():
        raise BadRow("nothing_learned", "no token of it is learned", mistake=False)
    return Rendered(ids, learned, cut, notes)
