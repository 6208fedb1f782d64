"""What the tests of preparation share: the command line within this process, and the files of a
directory.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.files import file_sha256


class Result(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def _prepare_here(*arguments: str | Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["prepare", *map(str, arguments)])
        except SystemExit as stop:  # a parser's
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def prepare_here() -> Callable[..., Result]:
    """`lit_pretrain prepare` where a process of its own is not the point: its imports are paid
    once. A mistake of ours raises.
    """
    return _prepare_here


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """The files below a directory, and the hash of each."""

    def files(directory: Path) -> dict[str, str]:
        return {
            path.relative_to(directory).as_posix(): file_sha256(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return files
