"""What a run's folder says of its last attempt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pretrain.errors import DivergedError, UserError
from lit_pretrain.report.run_state import STATE, read_attempt, recorded_attempt


class Asked(UserError):
    exit_code = 75


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "finished", None),
        (Asked("stopped by SIGTERM\nmore"), "stopped", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (DivergedError("step 3: the loss is nan"), "failed", "step 3: the loss is nan"),
        (ZeroDivisionError("division by zero"), "failed", "division by zero"),
    ],
)
def test_how_an_attempt_ends(
    error: BaseException | None, state: str, reason: str | None, tmp_path: Path
) -> None:
    assert read_attempt(tmp_path) is None

    def attempt() -> None:
        with recorded_attempt(tmp_path):
            assert read_attempt(tmp_path) == ("running", None)
            if error is not None:
                raise error

    if error is None:
        attempt()
    else:
        with pytest.raises(type(error)):
            attempt()
    assert read_attempt(tmp_path) == (state, reason)


def test_ctrl_c_as_lightning_passes_it_on(tmp_path: Path) -> None:
    def attempt() -> None:
        with recorded_attempt(tmp_path):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sys.exit(1)

    with pytest.raises(SystemExit):
        attempt()
    assert read_attempt(tmp_path) == ("stopped", "1")


def test_a_killed_process_has_failed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from lit_pretrain.report.run_state import recorded_attempt\n"
        "with recorded_attempt(pathlib.Path(sys.argv[1])):\n    print(flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read_attempt(tmp_path) == ("running", None)
        process.kill()
        process.stdout.read()  # its end: the process is gone, or a zombie as nobody waits for it
        while (state := read_attempt(tmp_path)) == ("running", None):
            pass
        assert state is not None
        assert state[0] == "failed"
    recorded = json.loads((tmp_path / STATE).read_text())
    (tmp_path / STATE).write_text(json.dumps(recorded | {"process": 1}))  # a number that recurs
    assert (read_attempt(tmp_path) or "")[0] == "failed"
    (tmp_path / STATE).write_text(json.dumps(recorded | {"host": "elsewhere"}))
    assert read_attempt(tmp_path) == ("running", None)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"state": "odd"}', "\xff"])
def test_a_damaged_record(text: str, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        read_attempt(tmp_path)
