"""The guide's worked examples are what `lit_pretrain plan` prints: 7 B on 2 T tokens, a
laptop's night, Llama 3 405B.
"""

import re
import shlex
from pathlib import Path

import pytest

from lit_pretrain.__main__ import main

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "plan.md").read_text(encoding="utf-8")


def examples() -> list[tuple[list[str], list[str]]]:
    """(command, what the guide says that it prints) of every block that begins with a prompt."""
    found = []
    for block in re.findall(r"```\n\$ (.*?)```", GUIDE, flags=re.S):
        command, _, printed = re.sub(r" \\\n +", " ", block).partition("\n")
        found.append((shlex.split(command), printed.splitlines()))
    return found


@pytest.mark.parametrize(
    "number", range(3), ids=["7 B on 2 T tokens", "a laptop's night", "Llama 3 405B"]
)
def test_worked_example(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, printed = examples()[number]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)  # where there is no data/embedded: its vocabulary is the default's
    assert words[:2] == ["lit_pretrain", "plan"]
    assert main(words[1:]) == 0
    assert capsys.readouterr().out.splitlines()[: len(printed)] == printed


def test_all_are_here() -> None:
    assert len(examples()) == 3
