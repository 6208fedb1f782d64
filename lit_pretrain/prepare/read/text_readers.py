"""Plain text and JSON Lines, the unpacking of .gz, .zst and .bz2, and the embedded corpus.

The embedded corpus is the Python standard library, as three sources that need no download. It is
the library of the running interpreter. `code` holds its modules, `tests` its test packages, and
`prose` the docstrings of `code` (one document a module) with the language reference that ships for
`help()`. The docstrings are in `code` too, as part of their modules. Which text there is depends on
the interpreter: its version is recorded in the manifest, and some distributions ship no tests.
"""

from __future__ import annotations

import ast
import bz2
import contextlib
import functools
import io
import os
import platform
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from lit_pretrain.plain_data import load_json
from lit_pretrain.prepare.prepare_config import SourceConfig
from lit_pretrain.prepare.read.reader import (
    BadRecord,
    DamagedFile,
    FileReader,
    RawText,
    UnusableRecord,
    text_and_fields,
)

BLOCK_BYTES = 1 << 20
"""Bytes read at a time."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""U+FEFF as UTF-8: some editors begin files with it."""
_BUFFER = 1 << 20
"""Unpacked bytes that are buffered."""


def _gzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd() -> Any:
    import zstandard

    # `zstd --long=31` writes windows of up to 2 GiB.
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


# Suffix -> function that makes a decompressor, and packed bytes to unpack at a time. Small pieces
# bound the memory where a file unpacks to far more than its size (gzip up to 1,000 times, zstd
# 30,000, bzip2 a million), and how much text before a damage is lost. The libraries' own readers
# either take a cut file for a whole one (zstandard) or drop what they had unpacked before the
# damage (pyarrow).
_DECOMPRESSORS: dict[str, tuple[Callable[[], Any], int]] = {
    ".gz": (_gzip, 1 << 14),
    ".zst": (_zstd, 1 << 11),
    ".bz2": (bz2.BZ2Decompressor, 1 << 8),
}


def packed_suffixes(*suffixes: str) -> tuple[str, ...]:
    """List each suffix as it is and with those of packed files: .txt, .txt.gz, ..."""
    return tuple(f"{suffix}{packed}" for suffix in suffixes for packed in ("", *_DECOMPRESSORS))


class TextReader(FileReader):
    """Read plain text: a file is one document, or several with a separator between them.

    Holds at most one document. Of one that is too large, it keeps just enough to know that.
    """

    suffixes: ClassVar = packed_suffixes(".txt", ".md")
    options: ClassVar = (*FileReader.options, "separator")

    def records(self, path: Path, name: str) -> Iterator[RawText]:
        """See `FileReader`."""
        limit, separator = self.policy.max_document_bytes, self.source.separator
        with open_unpacked(path) as file:
            if separator is None:
                yield RawText(name, file.read(limit + 4).removeprefix(_BYTE_ORDER_MARK))
                return
            for number, piece in enumerate(split_stream(file, separator.encode(), limit), start=1):
                yield RawText(
                    f"{name}:{number}",
                    piece.removeprefix(_BYTE_ORDER_MARK) if number == 1 else piece,
                )


def split_stream(file: io.BufferedIOBase, separator: bytes, limit: int) -> Iterator[bytes]:
    """Yield the pieces between separators.

    Of a piece longer than `limit`, only the beginning is kept: enough to know that it is too large.
    """
    rest, beginning = b"", None
    while block := file.read1(BLOCK_BYTES):  # `read` would lose what came before a damage.
        *whole, rest = (rest + block).split(separator)
        for piece in whole:
            yield piece if beginning is None else beginning
            beginning = None
        # The end of `rest` may be half a separator, which is not part of the piece.
        if len(rest) > limit + 4 + len(separator):
            beginning = rest[: limit + 4] if beginning is None else beginning
            rest = rest[len(rest) - len(separator) + 1 :]
    yield rest if beginning is None else beginning


class JsonlReader(FileReader):
    """Read JSON Lines: each line is an object, one or more of whose fields hold the text.

    Holds one line. A line longer than three times the largest document and 1 MiB is too large,
    whatever it holds: the escapes of most alphabets are three times as long as their UTF-8, and
    there are other fields.
    """

    suffixes: ClassVar = packed_suffixes(".jsonl")
    options: ClassVar = (*FileReader.options, "fields")

    def records(self, path: Path, name: str) -> Iterator[RawText | BadRecord]:
        """See `FileReader`."""
        longest = 3 * self.policy.max_document_bytes + BLOCK_BYTES
        with open_unpacked(path) as file:
            number = 0
            while line := file.readline(longest):
                number += 1
                origin = f"{name}:{number}"
                if len(line) == longest and not line.endswith(b"\n"):
                    beginning, length = line[:1000], len(line)
                    del line
                    while rest := file.readline(BLOCK_BYTES):
                        length += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    detail = f"the line has {length:,} bytes"
                    yield BadRecord.of(origin, "too_large", detail, beginning)
                elif line.strip():
                    yield self._parse(line, origin)

    def _parse(self, line: bytes, origin: str) -> RawText | BadRecord:
        """Parse one line."""
        replaced = False
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if self.policy.errors == "skip":
                detail = (
                    f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not"
                    f" UTF-8 ({error.reason})"
                )
                return BadRecord.of(origin, "undecodable", detail, line)
            text, replaced = line.decode("utf-8-sig", errors="replace"), True
        try:
            record = load_json(text)
        # ValueError is also raised for a number of more digits than Python takes.
        except (ValueError, RecursionError) as error:
            return BadRecord.of(origin, "not_json", f"not JSON: {error}", text)
        if not isinstance(record, dict):
            detail = f"a JSON {type(record).__name__}, not an object"
            return BadRecord.of(origin, "not_json", detail, text)
        try:
            content, fields = text_and_fields(record, self.source)
        except UnusableRecord as error:
            return BadRecord.of(origin, error.reason, str(error), text)
        return RawText(origin, content, fields, replaced)


@contextlib.contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, and unpack it if its suffix says that it is packed.

    Raises:
        DamagedFile: While reading, where the packed data ends too early or is invalid.
    """
    with path.open("rb") as file:
        decompressor = _DECOMPRESSORS.get(path.suffix.lower())
        if decompressor is None:
            yield file
        else:
            yield io.BufferedReader(_UnpackedFile(file, *decompressor), _BUFFER)


def unread_bytes(stream: io.BufferedReader, path: Path) -> int:
    """Count the bytes of the file, as stored, that the stream has not taken from it yet."""
    position = stream.raw.position if isinstance(stream.raw, _UnpackedFile) else stream.tell()
    return max(0, path.stat().st_size - position)


class _UnpackedFile(io.RawIOBase):
    """Unpack a file; concatenated members are one file, as for the command-line tools."""

    def __init__(self, file: BinaryIO, start: Callable[[], Any], piece: int) -> None:
        self._file = file
        self._start = start
        self._piece = piece
        self._size = os.fstat(file.fileno()).st_size
        self._member: Any = None  # None between members
        self._members = 0
        self._padded = False
        self._packed = b""
        self._ready = memoryview(b"")
        self.position = 0
        """Bytes of the file that were unpacked."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _fill(self) -> bool:
        """Unpack the next piece; return False at the end of the file."""
        packed = self._packed or self._file.read(self._piece)
        self._packed = b""
        if not packed:
            if self._member is not None or not self._members:
                raise DamagedFile(
                    "the file ends too early" if self._size else "the file is empty",
                    self._size - self.position,
                )
            return False
        if self._member is None:
            # gzip allows zeros as padding at the end.
            if self._members and self._start is _gzip and not packed.strip(b"\0"):
                self._padded = True
                return True
            if self._padded:  # The zeros were a hole: what stood there is lost.
                raise DamagedFile("zeros between packed data", self._size - self.position)
            self._member = self._start()
            self._members += 1
        try:
            self._ready = memoryview(self._member.decompress(packed))
        except Exception as error:  # zlib.error, ZstdError, OSError, EOFError
            raise DamagedFile(
                f"the packed data is damaged: {error}", self._size - self.position
            ) from None
        if self._member.eof:
            self._packed = self._member.unused_data
            self._member = None
        self.position += len(packed) - len(self._packed)
        return True


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
