"""The script that a test is of, as a module."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import `scripts/NAME.py` for `test_NAME.py`, with the scripts that it imports."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(request.path.stem.removeprefix("test_"))
