"""Faults of the disk and the input: said in words, nothing half-made is left, and the run goes
on when they are mended.
"""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Prepare = Callable[..., Any]
Tree = Callable[[Path], dict[str, str]]
LIMIT = 200_000
"""Bytes of a file that the disk refuses to make longer: stands in for a full disk, which also
fails in the middle of a write.
"""


def options(corpus: Path, out: Path, *extra: str) -> list[str]:
    sources = json.dumps({"a": {"kind": "text", "path": str(corpus), "separator": "\n"}})
    return [
        f"--sources={sources}",
        f"--out={out}",
        "--tokenizer.vocab_size=300",
        "--tokenizer.sample_bytes=20000",
        "--workers=1",
        *extra,
    ]


def prepare_on_a_full_disk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lit_pretrain", "prepare", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        env=os.environ
        | {
            "PYTHONDONTWRITEBYTECODE": "1"
        },  # Python 3.11 takes half a cache of bytecode for a whole one
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 small documents in 20 files."""
    folder = tmp_path_factory.mktemp("corpus")
    for n in range(20):
        lines = [
            f"The cat with the number {n * 200 + k} sat on the mat, and looked at"
            f" {k * 7919 % 1009}."
            for k in range(200)
        ]
        (folder / f"{n:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        # A sketch is more than the packed text of so small a document.
        (['--dedup={"exact": true}'], "task 0 of 02-sketch could not write or read: OSError"),
        # One chunk, and one list of rows, of all documents.
        (["--chunk_tokens=1000000"], "task 0 of 04-encode could not write or read: OSError"),
        # The lists of rows of all parts, joined.
        (["--part_bytes=20000"], "cannot write the dataset below"),
    ],
    ids=["dedup", "encode", "assemble"],
)
def test_a_full_disk(
    corpus: Path, tmp_path: Path, extra: list[str], message: str, prepare_here: Prepare, tree: Tree
) -> None:
    full = prepare_on_a_full_disk(*options(corpus, tmp_path / "data", *extra))
    assert full.returncode == 2, full.stderr
    assert message in full.stderr
    # numpy says what the system does not let it write in words of its own.
    assert "File too large" in full.stderr or re.search(
        r"OSError: \d+ requested and \d+ written", full.stderr
    ), full.stderr
    assert "Free some space" in full.stderr
    assert "Traceback" not in full.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".data.partial"]
    assert not list(tmp_path.rglob("*.tmp")), "half a file is not left to fill the disk"
    done = prepare_here(*options(corpus, tmp_path / "data", *extra))
    assert done.returncode == 0, done.stderr
    assert "going on with what an earlier run left" in done.stderr
    assert prepare_here(*options(corpus, tmp_path / "other", *extra)).returncode == 0
    assert tree(tmp_path / "data") == tree(tmp_path / "other")


HUGE = """
import json, sys
from pathlib import Path
from lit_pretrain.prepare.inputs import find_inputs
from lit_pretrain.prepare.read.reader import BadRecord
from lit_pretrain.prepare.read.read_source import SourceReader
from lit_pretrain.prepare.read.reader import ReadPolicy
from lit_pretrain.prepare.prepare_config import SourceConfig

source = SourceConfig(kind="jsonl", path=sys.argv[1])
reader = SourceReader(source, find_inputs("a", source).files, ReadPolicy())
found = [
    [item.reason, item.detail] if isinstance(item, BadRecord) else item.text for item in reader
]
# Not of getrusage: its peak is also that of the process before exec, as large as the tests are.
status = Path("/proc/self/status").read_text().splitlines()
peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(json.dumps([found, int(peak)]))
"""


def test_a_line_of_500_megabytes(tmp_path: Path) -> None:
    """It is a bad record like any other, and is never held: a file with a hole, so that the
    test writes little.
    """
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        file.seek(500_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    done = subprocess.run(
        [sys.executable, "-c", HUGE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    (first, bad, last), peak = json.loads(done.stdout)
    assert (first, last) == ("first", "last")
    assert bad == ["too_large", "the line has 499,999,985 bytes"]
    assert peak < 400_000, "kB: less than the line"
