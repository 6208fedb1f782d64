"""Goodput: what is lost follows from where later attempts went on, and nothing is counted twice."""

from pathlib import Path

import pytest

from lit_pretrain.report.goodput import (
    BETWEEN,
    GOODPUT_FILENAME,
    LOST,
    AttemptTimes,
    goodput,
    goodput_line,
    read_attempts,
    write_attempts,
)


def spent(training: float, saving: float = 0.0, *, starting: float = 5.0) -> dict[str, float]:
    return {
        "training": training, "data": 0.0, "validating": 0.0, "saving": saving,
        "starting": starting, "other": 0.0,
    }  # fmt: skip


KILLED = AttemptTimes(
    began=1000.0, first_step=0, step=90, ended=1097.0, seconds=spent(90.0, 2.0),
    saved={"40": spent(40.0, 1.0), "80": spent(80.0, 2.0)},
)  # fmt: skip
PREEMPTED = AttemptTimes(
    began=1100.0, first_step=80, step=120, ended=1146.0, seconds=spent(40.0, 1.0),
    saved={"120": spent(40.0, 1.0)},
)  # fmt: skip
LAST = AttemptTimes(
    began=1200.0, first_step=120, step=150, ended=1235.0, seconds=spent(30.0), saved={}
)


def test_the_steps_after_the_checkpoint_are_lost() -> None:
    found = goodput([KILLED, PREEMPTED, LAST])
    assert found[LOST] == 10.0
    assert found["training"] == 80.0 + 40.0 + 30.0
    assert found["starting"] == 15.0
    assert found["saving"] == 3.0
    assert found[BETWEEN] == 3.0 + 54.0
    assert sum(found.values()) == LAST.ended - KILLED.began


def test_a_way_back_loses_what_all_attempts_did_since() -> None:
    """As when a run goes on from an older checkpoint on purpose."""
    back = AttemptTimes(1300.0, 40, 60, 1325.0, spent(20.0))
    found = goodput([KILLED, PREEMPTED, back])
    assert found["training"] == 40.0 + 0.0 + 20.0
    assert found["saving"] == 1.0
    assert found[LOST] == 50.0 + 1.0 + 40.0 + 1.0
    assert sum(found.values()) == back.ended - KILLED.began


def test_one_attempt_loses_nothing() -> None:
    assert goodput([LAST])[LOST] == goodput([LAST])[BETWEEN] == 0.0
    assert goodput_line([LAST]).startswith("85.7% of 35 s in 1 attempt; data 0.0%, ")
    assert goodput_line([KILLED, LAST]).startswith("51.1% of 235 s in 2 attempts; ")


def test_the_record_comes_back_and_a_damaged_one_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_attempts(tmp_path) == []
    write_attempts(tmp_path, [KILLED, LAST])
    assert read_attempts(tmp_path) == [KILLED, LAST]
    assert capsys.readouterr().err == ""
    file = tmp_path / GOODPUT_FILENAME
    for damaged in ("", "{}", "[]", file.read_text().replace("1000", "1001"), '{"attempts": [1]}'):
        file.write_text(damaged)
        assert read_attempts(tmp_path) == []
        assert "goodput.json is damaged" in capsys.readouterr().err
