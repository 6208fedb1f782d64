"""Every setting that takes a class path finds a module of the current folder, and says what is
wrong with a path in the same words.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_pretrain.data.chat.formats import load_format
from lit_pretrain.errors import UserError
from lit_pretrain.prepare.filters.filter import load_filter
from lit_pretrain.prepare.filters.filter_spec import FilterSpec
from lit_pretrain.prepare.read.reader import reader_class
from lit_pretrain.reward import Reward, Rewards

MINE = """
from lit_pretrain.data.chat.formats import RowFormat
from lit_pretrain.prepare.read.reader import FileReader
class Mine(FileReader):
    def records(self, path, name): return []
def judge(document, view): return True
def right(prompt, completion, row): return 1.0
TRIPLES = RowFormat(fields={"prompt": "q", "completion": "a"})
"""
SETTINGS: dict[str, tuple[str, Callable[[str], object]]] = {
    "sources.web.kind": ("Mine", lambda path: reader_class(path, "sources.web")),
    "filters: class_path": ("judge", lambda path: load_filter(FilterSpec(class_path=path))),
    "data.sources.x.format": ("TRIPLES", lambda path: load_format(path, "data.sources.x")),
    "model.rollout.rewards.x.path": ("right", lambda path: Rewards({"x": Reward(path=path)})),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_current_folder_is_searched(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts_for_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.delitem(sys.modules, "my_parts_for_tests", raising=False)
    name, load = SETTINGS[setting]
    assert load(f"my_parts_for_tests.{name}") is not None
    assert sys.path[-1] == str(tmp_path), "behind installed packages, which it must not hide"
    sys.modules.pop("my_parts_for_tests")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module.part", "there is no module 'no_such_module'. Correct it, or put its"),
        ("json.no_such_module.part", "there is no module 'json.no_such_module'"),
        ("json.laods", "the module json has no 'laods'. Did you mean 'loads'?"),
        (".relative", "is no dotted path, such as"),
    ],
)
def test_a_path_that_names_nothing(setting: str, path: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        SETTINGS[setting][1](path)
    assert f"{setting}={path!r}" in str(raised.value)
    assert message in str(raised.value)
