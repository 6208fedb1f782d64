"""Versions: what made the bytes of a dataset: the interpreter and the libraries that its config
uses.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import lit_pretrain

if TYPE_CHECKING:
    from lit_pretrain.prepare.prepare_config import PrepareConfig

_ALWAYS = ("numpy", "pyarrow", "regex", "tiktoken", "tokenizers", "xxhash")
_OF_KIND = {"html": ("lxml", "trafilatura"), "warc": ("lxml", "trafilatura", "warcio")}
"""Kind of a source -> libraries that decide what its text is. Those that only unpack or fetch
are left out: they give what was stored.
"""
_MODULE = "module "
"""Begins the name of a filter's module that belongs to no installed package: its version is the
sha256 of its file.
"""
_LIST = "file "
"""Begins the path of a list that a filter reads; likewise."""
CONTENTS = (_MODULE, _LIST)
"""Begin what is no library's version but a part of what was asked for."""


def versions(config: PrepareConfig) -> dict[str, str]:
    """Name -> version. What a letter is, and how it is normalised, Python's Unicode tables say,
    which have a version of their own.
    """
    names = {
        *_ALWAYS,
        *(name for source in config.sources.values() for name in _OF_KIND.get(source.kind, ())),
    }
    contents: set[str] = set()
    for source in config.sources:
        _filters(config, source, names, contents)
    if config.dedup is not None and config.dedup.near is not None:
        names.add("rensa")
    return {
        "lit_pretrain": lit_pretrain.__version__,
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
        **{name: _version(name) for name in sorted(names)},
        **{name: _content(name) for name in sorted(contents)},
    }


def difference(there: Mapping[str, str]) -> str:
    """How this machine differs from another one's versions, in words; empty where it does not."""
    here = {
        "lit_pretrain": lit_pretrain.__version__,
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
    }
    found = []
    for name, version in there.items():
        mine = here.get(name) or (_content(name) if name.startswith(CONTENTS) else _version(name))
        if mine != version:
            found.append(f"{name} is {mine} here, {version} there")
    return ", ".join(found)


def _filters(config: PrepareConfig, source: str, names: set[str], contents: set[str]) -> None:
    """Adds what the filters of a source stand on: libraries, and modules and lists of the
    user's own.
    """
    from lit_pretrain.prepare.filters.load import FILTERS, expand

    for spec in expand(config.filters_of(source)):
        for argument, value in spec.init_args.items():
            if argument.endswith("_files"):
                contents.update(
                    f"{_LIST}{path}" for path in ([value] if isinstance(value, str) else value)
                )
        if spec.class_path == "Language":
            names.add("py3langid")
        elif spec.class_path == "Url" and spec.init_args.get("datatrove_lists"):
            names.add("datatrove")
        elif spec.class_path not in FILTERS:
            module = spec.class_path.rpartition(".")[0]
            owners = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
            names.update(owner for owner in owners if owner != "lit_pretrain")
            if not owners:
                contents.add(f"{_MODULE}{module}")


def _version(name: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _content(name: str) -> str:
    """sha256 of a module's file, or of a list."""
    path: str | None = name.removeprefix(_LIST)
    if name.startswith(_MODULE):
        found = importlib.util.find_spec(name.removeprefix(_MODULE))
        path = None if found is None else found.origin
    if path is None or not Path(path).expanduser().is_file():
        return "missing"
    return f"sha256:{hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()}"
