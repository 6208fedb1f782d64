"""Redaction: secrets of a config, kept out of everything that a run writes.

A value is secret by its name (`api_key`; all of `storage_options` but what names a place) or by
its origin: text that a config file takes from the environment is written as `${oc.env:NAME}` again.
What is hidden is not compared by a resume either, so that a key may be rotated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from lit_pretrain.errors import UserError

HIDDEN = "<hidden>"
"""Stands for a secret that was given literally."""

_NAMES = re.compile(
    r"secret|passw(or)?d|passphrase|credential|bearer|cookie|"
    r"(api|access|private|account|auth|session|encryption|signing|sse\w*)key|"
    r"(api|access|auth|session|security|sas|hf|hub|id|refresh|github|gitlab)token|"
    r"connectionstring|authorization|^(key|token|auth|pat|sas|headers)$"
)
"""Names of secrets, in lower case and without `_` and `-`."""
_VARIABLES = re.compile(r"(key|token|auth|sas|pat)$")
"""Ends of the names of variables that hold secrets, beside `_NAMES`."""
_STORAGE = "storage_options"
_PUBLIC_OPTIONS = frozenset(
    {
        "endpoint_url", "endpoint", "region", "region_name", "aws_region", "anon", "use_ssl",
        "verify", "allow_http", "skip_signature", "profile", "profile_name", "client_kwargs",
        "config_kwargs", "config", "timeout", "connect_timeout", "virtual_hosted_style_request",
    }
)  # fmt: skip
"""Options of object stores that hold no secret; all others are hidden."""
_USER = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]*@|(?<=http://)[^/\s@]+@|(?<=https://)[^/\s@]+@")
_QUERY = re.compile(
    r"(?<=[?&])([\w.-]*(?:sig|signature|token|key|secret|credential|password)=)[^&\s#]+", re.I
)
_REFERENCE = re.compile(r"(?<!\\)\$\{oc\.env:\s*([^,}\s]+)")
_LONG = 8
"""Characters of a variable's value that cannot stand in another option by chance."""


class FromEnvironment(str):
    """Text of a config as it is written: with references to the environment."""

    resolved: str
    """The text that it stands for."""
    variables: tuple[str, ...]
    """Names of the variables that it takes it from."""


class EnvironmentUse(NamedTuple):
    """What config files take from the environment."""

    variables: Mapping[str, str]
    """Name -> value of every variable that they name and that is set."""
    options: frozenset[str] = frozenset()
    """Dotted names of the options that hold a reference, without `init_args`."""


NOWHERE = EnvironmentUse({})


def is_secret(option: str) -> bool:
    """Tell whether an option is secret by its dotted name."""
    *groups, last = option.split(".")
    if _STORAGE in groups:
        return last not in _PUBLIC_OPTIONS
    return bool(_NAMES.search(re.sub(r"[_-]", "", last).lower()))


def is_secret_variable(name: str) -> bool:
    """Tell whether a variable of the environment is secret by its name."""
    plain = re.sub(r"[_-]", "", name).lower()
    return bool(_NAMES.search(plain) or _VARIABLES.search(plain))


def origin_of(texts: Sequence[str]) -> EnvironmentUse:
    """Find what config files take from the environment.

    Args:
        texts: The YAML of the files; it can be parsed.
    """
    names = {name.strip("'\"") for text in texts for name in _REFERENCE.findall(text)}
    options: set[str] = set()
    for text in texts:
        options |= {
            name.replace(".init_args.", ".")
            for name, value in _leaves(yaml.safe_load(text))
            if isinstance(value, str) and "${" in value
        }
    variables = {name: value for name in names if (value := os.environ.get(name))}
    return EnvironmentUse(variables, frozenset(options))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values of a plain tree that hold no others, with their dotted names."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


# ------------------------------------------------------------------ configs


def redact(config: Any, origin: EnvironmentUse = NOWHERE, name: str = "") -> Any:
    """Return a plain config without secrets.

    Args:
        config: The resolved config, or a value in it.
        origin: What its files take from the environment.
        name: The dotted name of the value.
    """
    if isinstance(config, Mapping):
        return {
            key: redact(value, origin, f"{name}.{key}".lstrip(".")) for key, value in config.items()
        }
    secret = is_secret(name)
    if isinstance(config, (list, tuple)):
        return type(config)(
            redact(value, origin, name if secret else f"{name}.{i}")
            for i, value in enumerate(config)
        )
    if not _may_be_secret(name, config):
        return config
    shown = str(config)
    anywhere = secret or name.replace(".init_args.", ".") in origin.options
    reference = _by_origin(shown, origin, anywhere=anywhere)
    if secret:
        return HIDDEN if reference is None else reference
    return without_credentials(shown) if reference is None else reference


def _may_be_secret(name: str, value: Any) -> bool:
    """Tell whether a value can be a secret: text, and in `storage_options` a number, too.

    Elsewhere the name of a number may be that of a source, as in `weights: {cookie: 2}`.
    """
    if isinstance(value, str):
        return bool(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and _STORAGE in name.split(".")


def _by_origin(text: str, origin: EnvironmentUse, *, anywhere: bool) -> FromEnvironment | None:
    """Write the values of variables in a text as references; None if there are none.

    Args:
        text: A value of the config.
        origin: What its files take from the environment.
        anywhere: Whether short values count, too.
    """
    values = {
        value: name for name, value in origin.variables.items() if anywhere or len(value) >= _LONG
    }
    pattern = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    if not pattern or not re.search(pattern, text):
        return None
    written, end, used = "", 0, []
    for found in re.finditer(pattern, text):
        written += _escaped(text[end : found.start()]) + f"${{oc.env:{values[found[0]]}}}"
        used.append(values[found[0]])
        end = found.end()
    reference = FromEnvironment(written + _escaped(text[end:]))
    reference.resolved, reference.variables = text, tuple(used)
    return reference


def _escaped(text: str) -> str:
    r"""Escape what stands beside a reference: `${`, and backslashes before one."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    backslashes = len(text) - len(text.rstrip("\\"))
    return text + "\\" * backslashes


def without_credentials(text: str) -> str:
    """Hide user and password, and signatures of the query, in the addresses of a text."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def refuse_hidden(config: Any) -> None:
    """Refuse a config that was written without its secrets.

    Raises:
        UserError: Names the options to give again.
    """
    found = [name for name, value in _leaves(config) if isinstance(value, str) and HIDDEN in value]
    if found:
        raise UserError(
            f"{', '.join(found)}: a secret, which the run did not store. Give it again"
            + (
                " (--data.storage_options '{...}')"
                if any(_STORAGE in name for name in found)
                else ""
            )
            + ", best as ${oc.env:NAME} in a config file, which is stored as such"
        )


# ------------------------------------------------------------------ comparison


def comparable(config: Any, name: str = "") -> Any:
    """Return a redacted config as a contract keeps it.

    Secrets are left out. Other text from the environment is represented by a digest: it may decide
    numbers, and must not be stored.
    """
    if isinstance(config, Mapping):
        kept = {key: (f"{name}.{key}".lstrip("."), value) for key, value in config.items()}
        return {
            key: comparable(value, inner)
            for key, (inner, value) in kept.items()
            if not _not_compared(inner, value)
        }
    if isinstance(config, (list, tuple)):
        return [comparable(value, name) for value in config if not _not_compared(name, value)]
    if isinstance(config, FromEnvironment):
        return f"sha256 {hashlib.sha256(config.resolved.encode()).hexdigest()[:16]}"
    return config


def _not_compared(name: str, value: Any) -> bool:
    if isinstance(value, FromEnvironment):
        return is_secret(name) or any(map(is_secret_variable, value.variables))
    if isinstance(value, str) and HIDDEN in value:
        return True
    return is_secret(name) and _may_be_secret(name, value)


# ------------------------------------------------------------------ command lines


def redact_arguments(args: Sequence[str]) -> list[str]:
    """Return a command line without its secrets."""
    redacted: list[str] = []
    name = ""
    for arg in args:
        option, equals, value = arg.partition("=")
        if arg.startswith("--") and equals:
            redacted.append(f"{option}={_argument(option[2:], value)}")
            name = ""
        elif arg.startswith("--"):
            redacted.append(arg)
            name = arg[2:]
        else:
            redacted.append(_argument(name, arg))
            name = ""
    return redacted


def _argument(name: str, value: str) -> str:
    name = name.replace("-", "_")
    if value[:1] in ("{", "["):
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        shown = redact(parsed, name=name)
        if shown != parsed:
            return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
        return value
    return HIDDEN if is_secret(name) else without_credentials(value)
