"""Tool calls: bring the forms in which rows hold them into that of OpenAI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_pretrain.chat.messages import BadRow, ToolCall, ToolDescription
from lit_pretrain.plain_data import load_json


def calls_of(value: Any, where: str) -> list[ToolCall]:
    """Read tool calls: one or a list, as objects or as JSON text, with `function` or without.

    Args:
        value: The calls as a row holds them.
        where: Names the message.

    Raises:
        BadRow: They are no calls.
    """
    value = _parsed(value, where)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _no_call(value, where)
    calls: list[ToolCall] = []
    for call in value:
        call = _parsed(call, where)
        function = _parsed(call.get("function", call), where) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _no_call(call, where)
        arguments: Any = next(
            (function[key] for key in ("arguments", "parameters", "args") if key in function), {}
        )
        made: ToolCall = {
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
        if isinstance(call.get("id"), str):
            made["id"] = call["id"]
        calls.append(made)
    return calls


def tools_of(value: Any, *, bare: bool) -> Sequence[ToolDescription] | None:
    """Read descriptions of tools: a list, or JSON text of one.

    Args:
        value: The tools as a row holds them.
        bare: Whether a function may stand alone, as in ShareGPT files and OpenAI's old
            `functions`; it is put into OpenAI's `{"type": "function", "function": ...}`.

    Raises:
        BadRow: They are no list of objects.
    """
    if isinstance(value, str):
        try:
            value = load_json(value) if value.strip() else None
        except ValueError as error:
            raise BadRow("tools", f"the tools are not JSON: {error}") from None
    if not value:
        return None
    if isinstance(value, Mapping):
        value = [value]
    tools: list[Any] = []
    for tool in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if isinstance(tool, str):
            try:
                tool = load_json(tool)
            except ValueError as error:
                raise BadRow("tools", f"a tool is not JSON: {error}") from None
        if not isinstance(tool, Mapping):
            raise BadRow(
                "tools", f"a tool is a {type(tool).__name__}; tools are a list of JSON objects"
            )
        alone = bare and "name" in tool and "function" not in tool
        tools.append({"type": "function", "function": tool} if alone else tool)
    return tools


def with_arguments(calls: Sequence[ToolCall], *, as_text: bool) -> list[ToolCall]:
    """Return calls whose arguments have the form that a template takes.

    Args:
        calls: The calls, in OpenAI's form.
        as_text: Write the arguments as JSON text; otherwise they become an object, because a
            template that writes them as JSON would encode text a second time.

    Raises:
        BadRow: The arguments are neither an object nor the JSON text of one.
    """
    made: list[Any] = []
    for call in calls:
        function: Any = call.get("function", call)
        if not isinstance(function, Mapping):
            made.append(call)
            continue
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = load_json(arguments) if arguments.strip() else {}
            except ValueError as error:
                raise BadRow(
                    "tool_calls",
                    f"the arguments of the call of {function.get('name')} are not JSON: {error}",
                ) from None
        else:
            parsed = {} if arguments is None else arguments
        if not isinstance(parsed, Mapping):
            raise BadRow(
                "tool_calls",
                f"the arguments of the call of {function.get('name')} are a"
                f" {type(parsed).__name__}; they must be an object",
            )
        if as_text:
            text = arguments if isinstance(arguments, str) and arguments.strip() else None
            value: Any = text or json.dumps(parsed, ensure_ascii=False)
        else:
            value = parsed
        changed = {**function, "arguments": value}
        made.append({**call, "function": changed} if "function" in call else changed)
    return made


def _parsed(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except ValueError as error:
        raise BadRow(
            "tool_calls", f"{where} is a tool call, and is not JSON: {error}: {value[:80]!r}"
        ) from None


def _no_call(value: Any, where: str) -> BadRow:
    return BadRow(
        "tool_calls",
        f"{where} is a tool call, and must be an object with a name and arguments; found"
        f" {str(value)[:80]!r}. If it is text, map its role: roles: {{function_call: assistant}}",
    )
