"""Versions of what decides the bytes of a dataset: the interpreter, and libraries that it uses."""

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
from lit_pretrain.class_path import search_current_folder
from lit_pretrain.prepare.filters.filter import filter_inputs
from lit_pretrain.prepare.filters.filter_spec import FILTERS, expand_filters
from lit_pretrain.prepare.missing_segmenter import counts_words
from lit_pretrain.prepare.read.reader import READERS, reader_class
from lit_pretrain.words import SEGMENTER

if TYPE_CHECKING:
    from lit_pretrain.prepare.prepare_config import PrepareConfig

_ALWAYS = ("numpy", "pyarrow", "regex", "tiktoken", "tokenizers", "xxhash")
_PII_LISTS: Mapping[str, str] = {"email": "publicsuffixlist", "phone": "phonenumberslite"}
"""Kind of personal data -> the package with the lists that it is checked against."""
_MODULE = "module "
"""Prefix of a user's module that belongs to no installed package; its version is the sha256 of its
file.
"""
_FILE = "file "
"""Prefix of the path of a list or classifier that a filter reads; its version is the sha256 of the
file.
"""
CONTENTS = (_MODULE, _FILE)
"""Prefixes of entries that are no library's version but belong to the config."""


def versions(config: PrepareConfig) -> dict[str, str]:
    """Map each name to its version.

    Python's Unicode tables say what a letter is and how to normalise it; they have a version of
    their own.
    """
    names, contents = set(_ALWAYS), set[str]()
    for name, source in config.sources.items():
        names.update(reader_class(source.kind).packages)
        if source.kind not in READERS:
            _class_path(source.kind, names, contents)
        _filters(config, name, names, contents)
    if config.dedup is not None and config.dedup.near is not None:
        names.add("rensa")
    if config.pii is not None:
        names.update(_PII_LISTS[kind] for kind in config.pii.kinds if kind in _PII_LISTS)
    return {
        "lit_pretrain": lit_pretrain.__version__,
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
        **{name: _version(name) for name in sorted(names)},
        **{name: _content(name) for name in sorted(contents)},
    }


def version_difference(there: Mapping[str, str]) -> str:
    """Describe how the versions on this machine differ from another's; empty if they do not."""
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
    """Add the libraries, the user's own modules and the files that a source's filters use."""
    if counts_words(config, source):
        names.add(SEGMENTER)
    for spec in expand_filters(config.filters_of(source)):
        for argument, value in spec.init_args.items():
            if argument.endswith("_files"):
                contents.update(
                    f"{_FILE}{path}" for path in ([value] if isinstance(value, str) else value)
                )
        if spec.class_path in FILTERS:
            inputs = filter_inputs(spec)
            names.update(inputs.packages)
            contents.update(f"{_FILE}{path}" for path in inputs.files)
        else:
            _class_path(spec.class_path, names, contents)


def _class_path(path: str, names: set[str], contents: set[str]) -> None:
    """Add the package of a user's class, or its module if it belongs to none."""
    # A module of the user's own belongs to no installed package.
    packages = importlib.metadata.packages_distributions().get(path.partition(".")[0], [])
    names.update(package for package in packages if package != "lit_pretrain")
    if not packages:
        contents.add(f"{_MODULE}{path.rpartition('.')[0]}")


def _version(name: str) -> str:
    """Read the version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _content(name: str) -> str:
    """Hash a module's file, a list or a classifier."""
    path: str | None = name.removeprefix(_FILE)
    if name.startswith(_MODULE):
        search_current_folder()
        found = importlib.util.find_spec(name.removeprefix(_MODULE))
        path = None if found is None else found.origin
    if path is None or not Path(path).expanduser().is_file():
        return "missing"
    return f"sha256:{hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()}"
