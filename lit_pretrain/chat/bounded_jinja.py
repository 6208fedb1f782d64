"""Bounded Jinja: a sandbox whose templates end, and whose texts and lists stay small.

Templates come with models from anywhere. Jinja's own sandbox keeps them from the system, but not
from loops within loops, macros that call themselves twice, or texts that double.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox

MAX_STEPS = 5_000_000
"""Turns of loops, and ten times the calls, in one rendering: some seconds. A conversation of 1,000
messages whose template looks at all of them for each takes a million."""
_CALL = 10
"""Steps that a call counts for; it takes so much longer than a turn of a loop."""
MAX_TEXT = 32 << 20
"""Characters of a text; eight for each entry of a list."""
_MAX_NUMBER = 100_000
"""Largest whole number that a call or filter takes: widths and counts are made of them."""
_SIZED = ("batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap")
"""Filters whose numbers say how much to make."""
_WIDTH = re.compile(r"\d{6}")
_WIDTH_GIVEN = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
"""A format whose width is one of its arguments."""


class Exhausted(jinja2.TemplateError):
    """A rendering went on for too long, or its text grew too large."""


class BoundedSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Count what a template does in one rendering; `begin` starts the next."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps = 0
        self.filters = {name: self.bounded(name, f) for name, f in self.filters.items()}
        self.globals.pop("lipsum", None)
        self.filters["_turns"] = self._turns
        self.filters["_bounded_text"] = _checked
        self.concat = _concat  # type: ignore[method-assign]  # jinja2's own form

    def begin(self) -> None:
        """Begin a rendering with nothing used up."""
        self._steps = 0

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise Exhausted(f"it takes more than {MAX_STEPS:,} steps; it may never end")

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(jinja2.nodes.For):
            loop.iter = _filtered(loop.iter, "_turns")
        source = _Concatenations().visit(source)
        return super()._generate(source, *args, **kwargs)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        __self._step(_CALL)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_arguments(getattr(method, "__name__", ""), owner, [*args, *kwargs.values()])
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `+`, `*`, `**` and `%`."""
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sized) and isinstance(times, int):
                    _check_size(_size(many) * times)
        elif operator == "**":
            _check_numbers([left, right])
            if isinstance(right, int) and right > 1000:
                raise Exhausted(f"{right} is too large an exponent")
        elif operator == "%" and isinstance(left, str):
            _check_arguments("format", left, right if isinstance(right, tuple) else [right])
        return _checked(super().call_binop(context, operator, left, right))

    def bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter of Jinja's; its marks, such as `pass_environment`, stay."""
        marks = getattr(function, "__dict__", {})
        # The environment or context, which some filters take first, is neither text nor number.
        first = 1 if "jinja_pass_arg" in marks else 0

        def limited(*args: Any, **kwargs: Any) -> Any:
            self._step(_CALL)
            values = args[first:]
            if values and isinstance(values[0], str):
                _check_arguments(name, values[0], values[1:])
            if name == "join" and values and isinstance(values[0], Sized):
                _check_size(len(values[0]) * len(str(values[1] if len(values) > 1 else "")))
            if name in _SIZED:
                _check_numbers([*values[1:], *kwargs.values()])
            return _checked(function(*args, **kwargs))

        vars(limited).update(marks)
        return limited


class _Concatenations(jinja2.visitor.NodeTransformer):
    """Check the size of every `a ~ b`."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> Any:
        return _filtered(self.generic_visit(node), "_bounded_text")


def _filtered(node: Any, name: str) -> Any:
    return jinja2.nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


def _check_arguments(method: str, text: str, args: Any) -> None:
    """Refuse methods of a text that would make a far longer one."""
    if method == "replace" and len(args) >= 2:
        old, new = str(args[0]), str(args[1])
        _check_size(len(text) // max(1, len(old)) * len(new))
    elif method == "join" and args and isinstance(args[0], Sized):
        _check_size(len(args[0]) * len(text))
    elif method in ("format", "format_map"):
        if _WIDTH.search(text):
            raise Exhausted("a format has a width of six digits")
        if _WIDTH_GIVEN.search(text):
            _check_numbers(args)
    else:
        _check_numbers(args)


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise Exhausted(f"{value} is too large a number for a call; {_MAX_NUMBER:,} is allowed")


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise Exhausted(f"a text or list in it would have {size:,} entries; {MAX_TEXT:,} may be")


def _size(value: Sized) -> int:
    """Return the size of a text in characters; an entry of a list takes as much as eight."""
    return len(value) if isinstance(value, str) else 8 * len(value)


def _checked(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _check_size(_size(value))
    elif isinstance(value, int):
        _check_size(value.bit_length())
    return value


def _concat(pieces: Iterable[str]) -> str:
    found = list(pieces)
    _check_size(sum(map(len, found)))
    return "".join(found)
