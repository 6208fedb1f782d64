"""The embedded corpus: three sources, nothing that is not the standard library, the same every
time.
"""

from pathlib import Path

import pytest

from lit_pretrain.prepare.read import embedded_reader as embedded


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library."""
    for name, content in {
        "json/__init__.py": b'"""Reads JSON."""\n'
        b'def f():\n    """Does f."""\n    class C:\n        """Is C."""\n'
        b'async def g():\n    "Does g."\n',
        "b.py": b"if True:\n    try:\n        pass\n    except E:\n"
        b"        def h():\n            '''Does h.\n\n            Well.'''\n"
        b"x = lambda: 'no docstring'\n",
        "empty.py": b"",
        "latin.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
        "test/test_b.py": b'"""Tests b."""\n',
        "test/bad_coding.py": b"# -*- coding: uft-8 -*-\n",
        "test/bad_bytes.py": b"x = '\xff'\n",
        "unittest/test/x.py": b"x = 1\n",
        "site-packages/pip/__init__.py": b"x = 1\n",
        "config-3.11-x86/python-config.py": b"x = 1\n",
        "_sysconfigdata__linux.py": b"x = 1\n",
        "pydoc_data/topics.py": b"topics = {'with': 'The \"with\" statement is used.'}\n",
        "data.txt": b"no module\n",
        "syntax.py": b"def f(:\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(embedded, "library_root", lambda: tmp_path)
    return tmp_path


def documents(part: str) -> dict[str, str]:
    return dict(embedded.module_documents(part, embedded.module_files(part)))


def test_code_is_the_modules(library: Path) -> None:
    assert list(documents("code")) == [
        "b.py",
        "empty.py",
        "json/__init__.py",
        "latin.py",
        "syntax.py",
    ]
    assert "é" in documents("code")["latin.py"]


def test_tests_are_the_test_packages_that_are_text(library: Path) -> None:
    assert list(documents("tests")) == ["test/test_b.py", "unittest/test/x.py"]


def test_prose_is_docstrings_and_topics(library: Path) -> None:
    prose = documents("prose")
    assert prose["json/__init__.py"] == "Reads JSON.\n\nDoes f.\n\nIs C.\n\nDoes g."
    assert prose["b.py"] == "Does h.\n\nWell."
    assert [origin for origin in prose if not origin.startswith("topic ")] == [
        "b.py",
        "json/__init__.py",
    ]
    assert prose["topic with"].startswith('The "with" statement')


def test_a_distribution_without_tests_has_none(library: Path) -> None:
    for path in embedded.module_files("tests"):
        path.unlink()
    assert embedded.module_files("tests") == []


def test_this_python() -> None:
    code, tests = embedded.module_files("code"), embedded.module_files("tests")
    assert not set(code) & set(tests)
    assert [path for path in embedded.module_files("prose") if path.name != "topics.py"] == code
    assert {"json/decoder.py", "ast.py"} <= {
        path.relative_to(embedded.library_root()).as_posix() for path in code
    }
    assert not any("site-packages" in path.parts for path in [*code, *tests])
    some = [path for path in code if path.parent.name == "json"]
    assert "JSON" in dict(embedded.module_documents("prose", some))["json/__init__.py"]
