"""ChatTemplate: render a conversation to text with Jinja, and mark what the assistant wrote."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from lit_pretrain.chat.bounded_jinja import BoundedSandbox
from lit_pretrain.chat.messages import FunctionCall, Message, ToolCall, ToolDescription
from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import load_json, read_text

TEMPLATE_PRESETS = Path(__file__).parent / "templates"
TEMPLATE_FILENAME = "chat_template.jinja"
"""File of the template beside a tokenizer.json."""
OPEN, CLOSE = "\ufdd1", "\ufdd2"
"""Marks around each `{% generation %}` block within a rendering."""
_ANY_DATE = datetime.date(2024, 7, 26)
"""What `strftime_now` tells in made conversations."""


class Refused(Exception):
    """A template does not take these messages: it said so by `raise_exception`, or Jinja failed."""


class Rendering(NamedTuple):
    """The text of a conversation, with the places of the assistant's parts."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Begin and end of each `{% generation %}` block, in characters."""


class Generation(jinja2.ext.Extension):
    """The block `{% generation %} ... {% endgeneration %}`, around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own form)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Turn the block into a call of `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE


class ChatTemplate:
    """A chat template.

    Templates come with models from anywhere, so they run in a sandbox that can neither change
    objects nor reach the system, and that ends them (`bounded_jinja.py`). As in transformers they
    see `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception`
    and the filter `tojson`.
    The date (`strftime_now`) is defined where one is given, because a rendering must depend on the
    row alone; most templates that show the date have a fixed one to fall back on.

    Args:
        source: The Jinja text.
        name: Where the template came from, for messages.

    Raises:
        UserError: The text is not valid Jinja.
    """

    def __init__(self, source: str, *, name: str) -> None:
        self.source = source
        self.name = name
        environment = self._environment = BoundedSandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = environment.bounded("tojson", _tojson)
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
            names = jinja2.meta.find_undeclared_variables(parsed)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            raise UserError(
                f"the chat template {name} is broken{f' in line {line}' if line else ''}: {error}"
            ) from None
        except (RecursionError, SyntaxError, ValueError, OverflowError) as error:
            # Python's own limits: nested brackets, nested loops, digits of a number.
            raise UserError(
                f"the chat template {name} cannot be compiled: {type(error).__name__}: {error}"
            ) from None
        self.marks_generation = "endgeneration" in source
        """Whether the template itself marks what the assistant writes."""
        self.variables = frozenset(names)
        """Variables that it looks at, such as tools and enable_thinking."""
        self.shows_tools = "tools" in names
        self.shows_calls = "tool_calls" in source
        self.fields = frozenset(
            [node.attr for node in parsed.find_all(jinja2.nodes.Getattr)]
            + [n.value for n in parsed.find_all(jinja2.nodes.Const) if isinstance(n.value, str)]
        )
        """Fields of messages that it may look at, among other names and texts."""
        self._hides: dict[str, bool] = {}

    @cached_property
    def needs_date(self) -> bool:
        """Whether it asks for the date and has none to fall back on."""
        if "strftime_now" not in self.variables:
            return False
        try:
            self._render(_TALK, date=None)
        except Refused as error:
            return "strftime_now" in str(error)
        return False

    @property
    def arguments_as_text(self) -> bool:
        """Whether it takes the arguments of tool calls as JSON text and cannot write an object."""
        return self._form_of_calls[1]

    @property
    def content_beside_calls(self) -> str | None:
        """What it takes for the content of a message that only calls: null, or an empty text."""
        return self._form_of_calls[0]

    @cached_property
    def _form_of_calls(self) -> tuple[str | None, bool]:
        """The form of a call that it writes without Python's spelling of null or of an object."""
        for content in (None, ""):
            for as_text in (False, True):
                try:
                    text = self._render([_TALK[0], _caller(content, as_text)]).text
                except Refused:
                    continue
                if repr(_ARGUMENTS) not in text and "None" not in text:
                    return content, as_text
        return None, False

    @cached_property
    def shows_every_call(self) -> bool:
        """Whether it shows all tools that a message calls, or refuses such a message."""
        caller = _caller(*self._form_of_calls)
        (first,) = caller["tool_calls"]
        place = first["function"]["arguments"]
        other = place.replace("Rome", "zebra") if isinstance(place, str) else {"place": "zebra"}
        second = {**first, "id": "call00002", "function": {"name": "look", "arguments": other}}
        try:
            text = self._render([_TALK[0], {**caller, "tool_calls": [first, second]}]).text
        except Refused:
            return True
        return "Rome" in text and "zebra" in text

    def hides(self, role: str) -> bool:
        """Tell whether it leaves the messages of a role out without a word."""
        if role not in self._hides:
            mark = {"role": role, "content": "zebra", "tool_call_id": "call00001", "name": "look"}
            talk = [mark, *_TALK]
            if role == "tool":
                talk = [_TALK[0], _caller(*self._form_of_calls), mark, _TALK[1]]
            try:
                self._hides[role] = "zebra" not in self._render(talk).text
            except Refused:  # it says so itself
                self._hides[role] = False
        return self._hides[role]

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, date: datetime.date | None = _ANY_DATE
    ) -> Rendering:
        """Render a made conversation."""
        return self.render(messages, bos="", eos="", date=date)

    @property
    def hash(self) -> str:
        """sha256 of the Jinja text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        bos: str,
        eos: str,
        tools: Sequence[ToolDescription] | None = None,
        generation_prompt: bool = False,
        options: Mapping[str, Any] | None = None,
        date: datetime.date | None = None,
    ) -> Rendering:
        """Render messages.

        Args:
            messages: The conversation.
            bos: Text of the token that begins a document.
            eos: Text of the token that ends it.
            tools: Descriptions of tools.
            generation_prompt: End with the header of the assistant's next message.
            options: Further variables of the template, such as enable_thinking.
            date: What `strftime_now` tells; None leaves it undefined.

        Raises:
            Refused: The template does not take these messages.
        """
        self._environment.begin()
        clock = {} if date is None else {"strftime_now": date.strftime}
        try:
            marked = self._template.render(
                messages=[dict(message) for message in messages], tools=tools, bos_token=bos,
                eos_token=eos,
                add_generation_prompt=generation_prompt, **clock, **(options or {}),
            )  # fmt: skip
        except Exception as error:  # a template is code, and may raise anything
            raise Refused(str(error) or type(error).__name__) from None
        spans: list[tuple[int, int]] = []
        pieces: list[str] = []
        length = 0
        for i, piece in enumerate(marked.split(OPEN)):
            inner, mark, outer = piece.partition(CLOSE) if i else ("", "", piece)
            if i and not mark:
                raise Refused("{% generation %} blocks must not stand within each other")
            if i:
                spans.append((length, length + len(inner)))
            pieces += [inner, outer]
            length += len(inner) + len(outer)
        return Rendering("".join(pieces), tuple(spans))


_TALK: Sequence[Mapping[str, Any]] = (
    {"role": "user", "content": "Question"},
    {"role": "assistant", "content": "Answer"},
)
_ARGUMENTS = {"place": "Rome"}
"""Made conversation and call that show what a template does."""


def _caller(content: str | None, as_text: bool) -> Message:
    """Make a message that calls a tool."""
    arguments = json.dumps(_ARGUMENTS) if as_text else _ARGUMENTS
    function = FunctionCall(name="look", arguments=arguments)
    call = ToolCall(id="call00001", type="function", function=function)
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def find_template(wanted: str, tokenizer: str | os.PathLike[str]) -> ChatTemplate:
    """Find the template that a setting names.

    Args:
        wanted: A preset (chatml, qwen3, ...), a file or folder, or auto: the template in
            the tokenizer's folder, else chatml.
        tokenizer: The tokenizer's folder or file.

    Raises:
        UserError: No template has that name, or it is broken.
    """
    if wanted == "auto":
        folder = Path(tokenizer)
        return template_of(folder if folder.is_dir() else folder.parent) or find_template(
            "chatml", tokenizer
        )
    preset = TEMPLATE_PRESETS / f"{wanted}.jinja"
    if "/" not in wanted and preset.is_file():
        return ChatTemplate(read_text(preset), name=wanted)
    file = Path(wanted)
    if file.is_dir():
        found = template_of(file)
        if found is None:
            raise UserError(
                f"data.template={wanted!r}: the folder holds neither {TEMPLATE_FILENAME} nor a"
                " chat_template in tokenizer_config.json"
            )
        return found
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in TEMPLATE_PRESETS.glob("*.jinja")))
        raise UserError(
            f"data.template={wanted!r} is neither a file nor a folder nor one of auto, {names}"
        )
    return ChatTemplate(read_text(file, "the chat template"), name=wanted)


def template_of(folder: Path) -> ChatTemplate | None:
    """Read the template beside a tokenizer: its own file, else a field of tokenizer_config.json."""
    file = folder / TEMPLATE_FILENAME
    if file.is_file():
        return ChatTemplate(read_text(file, "the chat template"), name=str(file))
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        found = load_json(config.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{config} is damaged: {error}") from None
    if isinstance(found, list):  # several templates by name, one of them "default"
        try:
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        except (TypeError, KeyError):
            raise UserError(
                f"{config}: chat_template is a list whose entries must have a name and a template"
            ) from None
    if found is not None and not isinstance(found, str):
        raise UserError(
            f"{config}: chat_template is of the kind {type(found).__name__}; it must be the text of"
            " a template, or a list of templates by name"
        )
    return ChatTemplate(found, name=str(config)) if found else None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Write plain JSON: Jinja's own filter escapes characters that HTML would interpret."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
