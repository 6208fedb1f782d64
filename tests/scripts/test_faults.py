"""What scripts/faults.py calls wrong, and a sample of its campaign."""

import random
from pathlib import Path
from types import ModuleType

import pytest


def test_how_a_command_ends(script: ModuleType) -> None:
    sound = script.Outcome(0, "loss 1.25 in 3 s", "", 10.0)

    def verdict(**changed: object) -> str | None:
        wrong = script.judge(sound._replace(**changed), sound, "x.json")
        assert wrong is None or isinstance(wrong, str)
        return wrong

    assert verdict() is None
    assert verdict(out="loss 1.25 in 4 s") is None
    assert verdict(out="loss 1.26 in 3 s") == "another result without a word"
    assert verdict(out="loss 1.26 in 3 s", err="warning: y.json is damaged") is not None
    assert verdict(out="loss 1.26 in 3 s", err="warning: x.json is damaged") is None
    assert verdict(code=2, err="error: x.json is damaged") is None
    assert verdict(code=2, err="") == "exit code 2 without a line 'error:'"
    assert verdict(code=1, err="error: x") == "exit code 1: error: x"
    assert verdict(code=-9) == "exit code -9: "
    assert "traceback" in str(verdict(code=2, err=f"{script.TRACEBACK}\nerror: x"))
    assert "still running" in str(verdict(code=None))
    assert "MB of memory" in str(verdict(memory_mb=1e4))


def test_every_verb_has_a_command_line(script: ModuleType) -> None:
    from lit_pretrain.cli.command.verb import verbs

    assert {line.split()[0] for line in script.VERBS} == set(verbs())


def test_one_argument_is_changed(script: ModuleType) -> None:
    line = ["--a", "1", "--b", "two"]
    changed = [script.change_arguments(line, random.Random(seed)) for seed in range(60)]
    assert {len(each) for each in changed} == {3, 4, 5}
    for each in changed:
        kept = sum(argument in each for argument in line)
        assert kept >= len(line) - 1
        assert all("\0" not in argument for argument in each)  # no shell hands one over
        for argument in each:
            argument.encode()
    assert len(set(map(tuple, changed))) > 20


def test_what_a_reader_may_do(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: [")
    from lit_pretrain.plain_data import read_yaml

    def breaks(path: Path) -> None:
        raise KeyError("a")

    def hangs(path: Path) -> None:
        raise script.TooLong

    assert script._read_once(read_yaml, file) is None
    assert "KeyError: 'a' (test_faults.py:" in script._read_once(breaks, file)
    assert "still running" in script._read_once(hangs, file)


def test_a_sample_of_the_campaign(
    script: ModuleType, tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "sound"
    (sound / "data").mkdir(parents=True)
    (sound / "data" / "tiny").symlink_to(dataset)
    tally = script.Tally()
    script.fuzz(sound, random.Random(0), 600, tally)
    assert 600 <= tally.tried < 650
    assert tally.wrong == []
    tried = str(tally.tried)
    assert script.table({"fuzz": tally}).splitlines()[1].split() == ["fuzz", tried, tried, "0"]
