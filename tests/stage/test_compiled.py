"""Whether a machine can compile is said before it is tried, with the reason."""

import sysconfig
from pathlib import Path

import pytest
import torch

from lit_pretrain.stage.origin import can_compile

CPU = torch.device("cpu")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but an empty folder of programs, and an empty folder of headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return tmp_path


def program(file: Path) -> None:
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)


def test_a_compiler_and_the_headers_of_python_are_needed(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no C++ compiler found" in str(can_compile(CPU))
    program(tools / "g++")
    assert str(can_compile(CPU)) == f"{tools / 'Python.h'} is missing (on Debian: python3-dev)"
    (tools / "Python.h").write_text("")
    assert can_compile(CPU) is None
    monkeypatch.setenv("CXX", "another-compiler")
    assert "no C++ compiler found" in str(can_compile(CPU))


def test_a_device_that_was_never_tried_says_so() -> None:
    assert can_compile(torch.device("mps")) == "not tried on mps"
