"""Plain data: YAML and JSON that people write, read so that nothing in them is lost in silence.

A key that is given twice is refused with both lines, in every file and option; so are anchors that
contain themselves or multiply without bound, names that YAML reads as true or false, and bytes that
are not UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.redaction import FromEnvironment, is_secret, is_secret_variable

MAX_YAML_VALUES = 100_000
"""Most values that a YAML text may stand for once its anchors are followed. The largest configs
hold a few hundred; ten lines of anchors can stand for ten billion."""

_BOOL, _MAP, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "map", "merge"))


# libyaml reads seven times as fast, and not every wheel of PyYAML has it.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Read `2e12` as a number, as YAML 1.2 and our parser do; PyYAML takes it for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


# ------------------------------------------------------------------ files


def read_text(path: str | os.PathLike[str], what: str = "") -> str:
    """Return the text of a file in UTF-8, with or without a byte-order mark.

    Args:
        path: The file.
        what: What it is, for messages.

    Raises:
        UserError: It is missing, cannot be read, or is in another encoding.
    """
    shown = f"{what} {path}".strip()
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{shown} does not exist (relative paths start at {Path.cwd()})") from None
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shown} cannot be read: {reason}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(shown, content, error)) from None


def not_utf8(shown: str, content: bytes, error: UnicodeDecodeError) -> str:
    """Say where a content stops being UTF-8, and what to do.

    Args:
        shown: What holds it.
        content: Its bytes.
        error: Of decoding them.
    """
    line = content.count(b"\n", 0, error.start) + 1
    return (
        f"{shown} is not UTF-8: line {line} holds the byte 0x{content[error.start]:02x}. Save it as"
        " UTF-8, for instance with `iconv -f LATIN1 -t UTF-8`"
    )


def read_yaml(path: str | os.PathLike[str], what: str = "") -> Any:
    """Return the value of a YAML file, which may also be JSON.

    Raises:
        UserError: It cannot be read, or is not YAML that stands for one plain value.
    """
    return parse_yaml(read_text(path, what), f"{what} {path}".strip())


def read_json_file(path: str | os.PathLike[str], what: str = "") -> Any:
    """Return the value of a JSON file.

    Raises:
        UserError: It cannot be read, is not JSON, or gives a key twice.
    """
    return parse_json(read_text(path, what), f"{what} {path}".strip())


# ------------------------------------------------------------------ YAML


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: The YAML.
        where: Where it stands, for messages.

    Raises:
        UserError: Names the place and what is wrong there.
    """
    try:
        check_yaml(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {yaml_mistake(error)}") from None
    except (ValueError, OverflowError, RecursionError) as error:  # such as the date 2026-13-45
        raise UserError(f"{where}: {error}") from None


def check_yaml_file(path: str | os.PathLike[str], what: str = "") -> None:
    """Check a YAML file that others read, with tags of their own.

    Raises:
        UserError: It cannot be read, or `check_yaml` refuses it.
    """
    try:
        check_yaml(read_text(path, what))
    except yaml.YAMLError as error:
        raise UserError(f"{what} {path}: {yaml_mistake(error)}".strip()) from None


def yaml_mistake(error: yaml.YAMLError) -> str:
    """Say what is wrong with a YAML text in one line, beginning with its place."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    problem = " ".join(filter(None, [error.context, error.problem]))
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def check_yaml(text: str) -> None:
    """Refuse YAML in which something would be lost, or that would never end.

    Raises:
        yaml.YAMLError: It is not YAML, gives a key twice, has a name that YAML reads as true or
            false, or its anchors contain themselves or stand for too many values.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except UnicodeEncodeError:
        raise yaml.YAMLError("it holds half of a surrogate pair, which is no character") from None
    if node is not None:
        _check_node(node, {}, [])


def _check_node(node: yaml.Node, sizes: dict[int, int], path: list[yaml.Node]) -> int:
    """Check a node and what it contains, and return the number of values that it stands for."""
    known = sizes.get(id(node))
    if known is not None:
        return known
    if any(node is above for above in path):
        raise yaml.MarkedYAMLError(
            problem="an anchor contains itself, which no config can hold",
            problem_mark=node.start_mark,
        )
    path.append(node)
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        children = [child for pair in node.value for child in pair]
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
    for child in children:
        size += _check_node(child, sizes, path)
        if size > MAX_YAML_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"the anchors stand for more than {MAX_YAML_VALUES:,} values; write out"
                " what is meant",
                problem_mark=node.start_mark,
            )
    path.pop()
    sizes[id(node)] = size
    return size


def _check_keys(mapping: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        line = key.start_mark.line + 1
        if key.tag == _BOOL:
            raise yaml.MarkedYAMLError(problem=_boolean_hint(key), problem_mark=key.start_mark)
        before = lines.get((key.tag, key.value))
        if before is not None:
            raise yaml.MarkedYAMLError(
                problem=_given_twice(key.value, before, line),
                problem_mark=key.start_mark,
            )
        lines[key.tag, key.value] = line


def _given_twice(key: str, first: int, second: int) -> str:
    lines = "" if first == second else f", in line {first} and in line {second}"
    return f"the key {key!r} is given twice{lines}; keep one of them"


def _boolean_hint(node: yaml.ScalarNode) -> str:
    value = str(node.value)
    meant = "true" if value.lower() in ("yes", "on", "true") else "false"
    return f"YAML reads {value} as {meant}; put the word in quotes: '{value}'"


def boolean_words(text: str) -> Iterator[tuple[str, str]]:
    """List the words other than true and false that YAML reads as such, with what to do.

    Args:
        text: YAML that can be parsed.

    Yields:
        The dotted name of the value, and a hint that begins with its line.
    """
    stack: list[tuple[str, yaml.Node | None]] = [("", yaml.compose(text, Loader=_Loader))]
    while stack:
        name, node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            stack += [(f"{name}.{key.value}".lstrip("."), value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(name, value) for value in node.value]
        elif (
            isinstance(node, yaml.ScalarNode)
            and node.tag == _BOOL
            and node.value.lower() not in ("true", "false")
        ):
            yield name, f"line {node.start_mark.line + 1}: {_boolean_hint(node)}"


# ------------------------------------------------------------------ JSON


class RepeatedKey(ValueError):
    """A key that a JSON object gives twice.

    Args:
        text: The JSON.
    """

    def __init__(self, text: str) -> None:
        self.key, first, second = _repeated_key(text)
        super().__init__(_given_twice(self.key, first, second))


class _Repeated(Exception):
    pass


def load_json(text: str) -> Any:
    """Return the value of a JSON text, as `json.loads` does.

    Raises:
        ValueError: It is not JSON (json.JSONDecodeError), or an object gives a key twice
            (RepeatedKey).
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _Repeated:
        raise RepeatedKey(text) from None
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The JSON.
        where: Where it stands, for messages.

    Raises:
        UserError: Names the place and what is wrong there.
    """
    try:
        return load_json(text)
    except RepeatedKey as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated
    return found


def _repeated_key(text: str) -> tuple[str, int, int]:
    """Find the first key that an object of a JSON text gives twice, and both lines."""
    objects: list[dict[str, int]] = []
    for token in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', text):
        if token[0] == "{":
            objects.append({})
        elif token[0] == "}":
            objects.pop()
        elif token[2] is not None:
            key, line = str(json.loads(token[1])), text.count("\n", 0, token.start()) + 1
            if key in objects[-1]:
                return key, objects[-1][key], line
            objects[-1][key] = line
    raise AssertionError("no key is given twice")


# ------------------------------------------------------------------ interpolation


_REFERENCE = re.compile(r"(\\*)\$\{")


def escape_references(value: Any) -> Any:
    r"""Return a plain value in which every `${` is text for whoever reads it as a config: `\${`."""
    return _with_texts(value, lambda text: _REFERENCE.sub(r"\1\1\\${", text))


def check_references(contents: Sequence[Any], limit: int = 1_000_000) -> None:
    """Refuse references that multiply without bound: ten lines can stand for gigabytes of text.

    Args:
        contents: Configs, of which later ones win.
        limit: Most characters that one value may grow to.

    Raises:
        UserError: Names the value.
    """
    texts: dict[str, str] = {}
    for content in contents:
        texts |= dict(_leaves(content, ""))
    sizes: dict[str, int] = {}

    def size(name: str) -> int:
        if name not in sizes:
            sizes[name] = 0  # until it is known; what refers to itself is the resolver's to refuse
            if name in texts:
                targets = (_target(found, name) for found in _TARGET.finditer(texts[name]))
                sizes[name] = len(texts[name]) + sum(map(size, targets))
            else:
                sizes[name] = sum(size(leaf) for leaf in texts if leaf.startswith(f"{name}."))
        return sizes[name]

    for name in texts:
        if size(name) > limit:
            raise UserError(
                f"{name}: its references stand for more than {limit:,} characters; write out what"
                " is meant"
            )


_TARGET = re.compile(r"\$\{(?P<up>\.*)(?P<name>[\w.\[\]]+)\}")


def _target(found: re.Match[str], name: str) -> str:
    """Return the name that a reference within the value `name` leads to."""
    target = re.sub(r"\[(\w+)\]", r".\1", found["name"])
    above = name.split(".")[: -len(found["up"])] if found["up"] else []
    return ".".join([*above, target])


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, str(value)


_SEAL = "# sha256 of the lines below: "


def dump_config(config: Mapping[str, Any]) -> str:
    """Write a resolved config as YAML that reads as the same config: no text in it is a reference.

    `read_config` reads it, and so does `--config`. A `FromEnvironment` stays one. The first line is
    a comment with the digest of the others, so that it outlives a text that is cut off.
    """
    plain = escape_references(dict(config))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the resolved config that `dump_config` wrote to a file.

    Raises:
        UserError: The file cannot be read, holds no config, or was changed since it was written.
    """
    text = read_text(path)
    first, _, lines = text.partition("\n")
    # A text without digest is of an older version, or somebody else's.
    if _SEAL.strip("# ") in text and first != _SEAL + hashlib.sha256(lines.encode()).hexdigest():
        raise UserError(
            f"{path} is not what was written: it is damaged, or was edited. Put it back; if the"
            " change is meant, delete its first line, the digest"
        )
    config = parse_yaml(text, str(path))
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {type(config).__name__}; it must hold the config of a run")
    resolved: dict[str, Any] = resolve_references(config)
    return resolved


_FROM_ENVIRONMENT = re.compile(r"(\\*)\$\{(?:oc\.env:(\w+)\})?")


def resolve_references(value: Any, name: str = "") -> Any:
    """Undo `escape_references`, and resolve references to variables that are set.

    The config may be somebody else's: a variable that is secret by its name is put into secret
    options alone, and never into an address or a name.
    """
    if isinstance(value, dict):
        return {
            resolve_references(key): resolve_references(item, f"{name}.{key}".lstrip("."))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [resolve_references(item, name) for item in value]
    if not isinstance(value, str):
        return value

    def plain(found: re.Match[str]) -> str:
        before, variable = found[1][: len(found[1]) // 2], found[2]
        if variable is None or len(found[1]) % 2:
            return before + found[0][len(found[1]) :]
        resolved = os.environ.get(variable)
        if resolved is None or (is_secret_variable(variable) and not is_secret(name)):
            return f"{before}${{oc.env:{variable}}}"
        return before + resolved

    return _FROM_ENVIRONMENT.sub(plain, value)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, FromEnvironment):
        return str.__str__(value)
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_with_texts(key, change): _with_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_texts(item, change) for item in value)
    return value
