"""Template: a conversation as text, by a Jinja chat template in a sandbox, with the places that
the assistant wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from lit_pretrain.chat.messages import Message
from lit_pretrain.errors import UserError

TEMPLATE_PRESETS = Path(__file__).parent / "templates"
TEMPLATE_FILENAME = "chat_template.jinja"
"""The template's own file beside a tokenizer.json."""
OPEN, CLOSE = "\ufdd1", "\ufdd2"
"""Mark, within the rendering, what `{% generation %}` encloses."""


class Refused(Exception):
    """What a template's `raise_exception` says, or Jinja when a template asks for what is not
    there.
    """


class Rendering(NamedTuple):
    """The text of a conversation."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Beginning and end of each `{% generation %}` block, in characters."""


class Generation(jinja2.ext.Extension):
    """The block `{% generation %} ... {% endgeneration %}`, which encloses what the assistant
    writes.
    """

    tags = {"generation"}  # noqa: RUF012  (jinja2's own form)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Make a call of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE


class ChatTemplate:
    """A chat template.

    Templates come with models from anywhere, so they run in a sandbox that neither changes objects
    nor reaches the system. As in transformers they see `messages`, `tools`,
    `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception` and the filter `tojson`.
    The date (`strftime_now`) is not defined: a rendering is a function of the row, and templates
    that show the date have a fixed one to fall back on.

    Args:
        source: The Jinja text.
        name: Where it came from, for messages.

    Raises:
        UserError: It is not Jinja.
    """

    def __init__(self, source: str, *, name: str) -> None:
        self.source = source
        self.name = name
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            raise UserError(
                f"the chat template {name} is broken{f' in line {line}' if line else ''}: {error}"
            ) from None
        self.marks_generation = "endgeneration" in source
        """Whether it says by itself what the assistant writes."""
        self.shows_tools = "tools" in names
        self.shows_calls = "tool_calls" in source

    @property
    def hash(self) -> str:
        """sha256 of the text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        *,
        bos: str,
        eos: str,
        tools: Any = None,
        generation_prompt: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Rendering:
        """Render messages.

        Args:
            messages: The conversation.
            bos: Spelling of the token that begins a document.
            eos: Spelling of the one that ends it.
            tools: Descriptions of tools.
            generation_prompt: Go on to where the assistant begins to write.
            options: What else the template may ask for, such as enable_thinking.

        Raises:
            Refused: The template does not take these messages.
        """
        try:
            marked = self._template.render(
                messages=[dict(message) for message in messages], tools=tools, bos_token=bos,
                eos_token=eos,
                add_generation_prompt=generation_prompt, **(options or {}),
            )  # fmt: skip
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # what template code itself may raise
            raise Refused(str(error)) from None
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


def find_template(wanted: str, tokenizer: str | os.PathLike[str]) -> ChatTemplate:
    """The template that a setting means.

    Args:
        wanted: A preset (chatml, llama3, qwen, plain), a file, or auto: that of the tokenizer's
            folder, else chatml.
        tokenizer: The tokenizer's folder or file.

    Raises:
        UserError: There is none of that name, or it is broken.
    """
    if wanted == "auto":
        folder = Path(tokenizer)
        return template_of(folder if folder.is_dir() else folder.parent) or find_template(
            "chatml", tokenizer
        )
    preset = TEMPLATE_PRESETS / f"{wanted}.jinja"
    if "/" not in wanted and preset.is_file():
        return ChatTemplate(preset.read_text(encoding="utf-8"), name=wanted)
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
    return ChatTemplate(file.read_text(encoding="utf-8"), name=wanted)


def template_of(folder: Path) -> ChatTemplate | None:
    """The template beside a tokenizer: its own file, else within tokenizer_config.json."""
    file = folder / TEMPLATE_FILENAME
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), name=str(file))
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{config} is damaged: {error}") from None
    if isinstance(found, list):  # several by name, of which one is the default
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return ChatTemplate(found, name=str(config)) if found else None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML would read."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
