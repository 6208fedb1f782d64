"""What `prepare` shows on a terminal: for every step a bar with rate and time left, in the unit
that it counts.
"""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pretrain.prepare.progress_table import show_progress

ROOT = Path(__file__).parents[2]
BYTES = [
    "read and clean",
    "measure the splits",
    "remove documents with a repeated id",
    "sketch documents",
    "read similar documents again",
    "hash lines",
    "sample text for the tokenizer",
]
TASKS = [
    "find ids that occur twice",
    "find pairs of similar documents",
    "group similar documents",
    "compare similar documents",
    "find repeated lines",
]


def on_a_terminal(command: list[str]) -> tuple[int, list[str]]:
    """Exit code, and the frames that a terminal of 200 columns was sent."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=slave, cwd=ROOT, env=environment
    )
    os.close(slave)
    said = b""
    while True:
        try:
            block = os.read(master, 1 << 16)
        except OSError:  # Linux: the last process has closed the terminal
            break
        if not block:
            break
        said += block
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    return process.wait(), [frame for frame in re.split(r"[\r\n]+", text) if frame.strip()]


def test_every_step_has_a_bar(tmp_path: Path) -> None:
    for n in range(3):
        rows = [
            {
                "text": (
                    f"Row {k} of table {n} tells of {k * 7 % 101} things.\nThis line of six words"
                    " repeats.\n" + "And more. " * 40
                ),
                "id": f"{n}-{k}",
            }
            for k in range(400)
        ]
        (tmp_path / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = json.dumps({"a": {"kind": "jsonl", "path": str(tmp_path), "fields": {"id": "id"}}})
    dedup = json.dumps({"near": {"threshold": 0.6}, "lines": {}})
    options = [
        f"--sources={sources}",
        f"--dedup={dedup}",
        "--tokenizer.vocab_size=300",
        "--part_bytes=200000",
        "--workers=2",
    ]
    code, frames = on_a_terminal(
        [sys.executable, "-m", "lit_pretrain", "prepare", f"--out={tmp_path / 'data'}", *options]
    )
    assert code == 0, frames
    bars = {
        title: [
            frame
            for frame in frames
            if frame.startswith(f"prepare: {title} ") and "remaining:" in frame
        ]
        for title in [*BYTES, *TASKS, "encode", "train a tokenizer"]
    }
    for title, shown in bars.items():
        assert shown, f"{title}: {frames}"
        assert re.search(r"\d:\d\d:\d\d remaining: (\d+:\d\d:\d\d|-:--:--)", shown[-1]), shown[-1]
        if title in TASKS:
            assert re.search(r" (\d+)/\1 ", shown[-1]), shown[-1]
            assert not any(re.search(r"bytes|[kM]B", frame) for frame in shown), shown
        else:
            assert re.search(r"([\d.]+)/\1 (bytes|[kM]B) ", shown[-1]), shown[-1]
    assert re.search(r"[\d.]+ ([kM]B|bytes)/s", bars["read and clean"][-1]), bars["read and clean"]
    assert [frame for frame in frames if re.fullmatch(r"prepare: encode: .*\d\.\d s", frame)], (
        "the line at the end stays"
    )


def test_quiet_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("count", 3, "tasks") as (advance, figures):
        advance(3)
        figures.append("three")
    assert re.fullmatch(r"prepare: count: three, \d\.\d s\n", capsys.readouterr().err)
