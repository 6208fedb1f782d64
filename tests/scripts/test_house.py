"""The figures of scripts/house.py on packages that were made for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[2] / "scripts"
TABLE = 'MAY_IMPORT = {"data": set(), "model": {"data"}, "stage": {"model"}}'
CLASSES = "class Config: ...\nclass _Own: ...\n"
FILES = {
    "tests/test_imports.py": TABLE,
    "lit_pretrain/__init__.py": "",
    "lit_pretrain/data/config.py": f"from lit_pretrain.stage import run\n{CLASSES}",
    "lit_pretrain/model/config.py": f"# why\n{CLASSES}def f():\n    from ..data import config\n",
    "lit_pretrain/stage/run.py": "from ..data import config\nx: dict[str, Any] = {}\n",
    "lit_pretrain/cli/fit.py": "from lit_pretrain.stage import run\n",
}
WALK = {
    "lit_pretrain/__init__.py": "",
    "lit_pretrain/steps.py": "def set_up(): ...\ndef step(): ...\n",
    "lit_pretrain/value.py": """
import typing
from dataclasses import dataclass
@dataclass
class Value:
    n: int
class Pair(typing.NamedTuple):
    a: int
""",
    "lit_pretrain/__main__.py": """
from lit_pretrain import steps, value
def main(arguments):
    steps.set_up()
    open(arguments[0]).close()
    for _ in range(3):
        steps.step()
        value.Value(1)
    value.Pair(1)
    return 0
""",
    "source.txt": "",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_figures_of_a_tree(script: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    found = script.figures(tmp_path)
    assert found["source files"] == "5"
    assert found["lines"] == "11"
    assert found["median lines of a file"] == "2"
    assert found["the same without __init__.py"] == "2.5"
    assert found["file names that occur twice"] == "1"
    assert found["public classes that occur twice"] == "1"
    assert found["imports that point up"] == "1\n  data/config.py imports lit_pretrain.stage.run"
    assert found["dict[str, Any]"] == "1"
    assert found["lines of comment alone"] == "9.1%"


def test_a_walk_counts_calls_after_the_source_is_opened(tmp_path: Path) -> None:
    """In a process of its own, because an audit hook stays for good."""
    write(tmp_path, WALK)
    run = "house.run(place, place, [['source.txt']], 'source.txt')"
    code = f"import house, json, pathlib; place = pathlib.Path.cwd(); print(json.dumps({run}))"
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, cwd=tmp_path, env=env, text=True)
    counts = {name.rsplit(":", 1)[0]: count for name, count in json.loads(said).items()}
    assert counts == {"steps.py:step": 3, "value.py:__init__": 3, "value.py:<lambda>": 1}
