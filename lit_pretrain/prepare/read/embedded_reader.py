"""The embedded corpus: the Python standard library, as three sources that need no download.

It is the library of the running interpreter. `code` holds its modules, `tests` its test packages,
and `prose` the docstrings of `code` (one document a module) with the language reference that ships
for `help()`. The docstrings are in `code` too, as part of their modules. Which text there is
depends on the interpreter: its version is recorded in the manifest, and some distributions ship no
tests.
"""

from __future__ import annotations

import ast
import functools
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.reader import FileReader, RawText

_TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TOPICS = "pydoc_data/topics.py"


class EmbeddedReader(FileReader):
    """Read the modules of a part of the standard library."""

    options: ClassVar = ("part",)
    required: ClassVar = ("part",)

    @classmethod
    def files_without_path(cls, where: str, source: SourceConfig) -> tuple[Path, list[Path]]:
        """List the modules of the part."""
        assert source.part is not None
        return library_root(), module_files(source.part)

    @classmethod
    def describe_origin(cls, source: SourceConfig) -> str:
        """Name the interpreter, whose version decides what the corpus holds."""
        return (
            f"{source.origin or 'Python standard library'} ({platform.python_implementation()}"
            f" {platform.python_version()})"
        )

    def records(self, path: Path, name: str) -> Iterator[RawText]:
        """See `FileReader`."""
        assert self.source.part is not None
        for origin, text in module_documents(self.source.part, [path]):
            yield RawText(origin, text)


@functools.cache  # sysconfig takes a quarter of a millisecond.
def library_root() -> Path:
    """Return the directory of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def module_files(part: str) -> list[Path]:
    """List the modules that a part is made of, by name, wherever the library lies.

    `prose` is made of the same modules as `code`, and of the file that holds the language
    reference. What describes this machine rather than Python (build settings) is left out.
    """
    found: list[tuple[str, Path]] = []
    for directory, children, names in os.walk(library_root()):
        children[:] = [
            name
            for name in children
            if name not in _NOT_THE_LIBRARY and not name.startswith("config-")
        ]
        relative = Path(directory).relative_to(library_root())
        if (part == "tests") != bool(_TEST_DIRECTORIES.intersection(relative.parts)):
            continue
        for name in names:
            origin = (relative / name).as_posix()
            if (
                name.endswith(".py")
                and not name.startswith("_sysconfigdata")
                and (origin != _TOPICS or part == "prose")
            ):
                found.append((origin, Path(directory, name)))
    return [path for _, path in sorted(found)]


def module_documents(part: str, modules: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield (origin, text) of every document of some modules of a part.

    Files that are not text, as some test data, are left out.
    """
    for path in modules:
        origin = path.relative_to(library_root()).as_posix()
        source = _source(path)
        if source is None:
            continue
        if part != "prose":
            yield origin, source
        elif origin == _TOPICS:
            for topic, text in sorted(_topics(source).items()):
                yield f"topic {topic}", text
        elif text := _docstrings(source):
            yield origin, text


def _source(path: Path) -> str | None:
    """Read a module in the encoding that it declares.

    Return None if that fails, as it must for some test data.
    """
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None


def _topics(source: str) -> dict[str, str]:
    """Parse the dictionary that the module of the language reference consists of."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return topics
    return {}


@functools.cache  # Two passes read the corpus: the result is 2 MB, parsing takes 2 s.
def _docstrings(source: str) -> str:
    """Join the docstrings of a module, its classes and functions, in the order of the text."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    return "\n\n".join(text for node in _documented(tree) if (text := ast.get_docstring(node)))


def _documented(
    node: ast.AST,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield whatever can have a docstring, in the order of the text.

    Expressions hold none, and are most of a tree.
    """
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _documented(child)
