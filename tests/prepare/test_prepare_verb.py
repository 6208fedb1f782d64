"""`lit_pretrain prepare` as a process: help, configs, exit codes, and what interruptions leave
behind.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.prepare.prepare_config import TokenizerConfig
from lit_pretrain.prepare.read import text_readers
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "prepare").glob("*.yaml"))
Prepare = Callable[..., Any]
Tree = Callable[[Path], dict[str, str]]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "lit_pretrain", "prepare", *map(str, arguments)]


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
        **options,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 0.7 MB of text, stored as many chunks: enough that a signal arrives in the middle."""
    folder = tmp_path_factory.mktemp("corpus")
    for n in range(100):
        (folder / f"{n:03d}.txt").write_text(
            "".join(f"Sentence {n} {k * n % 1009} of a story that goes on.\n" for k in range(150))
        )
    return folder


def arguments(corpus: Path, out: Path) -> list[str]:
    source = json.dumps(
        {
            "a": {"kind": "text", "path": str(corpus)},
            "b": {"kind": "text", "path": str(corpus), "separator": "\n"},
        }
    )
    return [
        f"--sources={source}",
        "--tokenizer.vocab_size=300",
        "--chunk_tokens=8000",
        "--part_bytes=120000",
        "--workers=2",
        f"--out={out}",
    ]


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "data"
    done = run(*arguments(corpus, out))
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(out)
    assert f"{manifest.tokens('train'):,}" in done.stdout
    assert [line.split(":")[1].strip().split(" ")[0] for line in done.stderr.splitlines()][:5] == [
        "read",
        "measure",
        "sample",
        "train",
        "encode",
    ]
    return out


def test_help_is_complete_and_imports_little() -> None:  # how quick it is: tests/test_cli.py
    code = "import sys; from lit_pretrain.__main__ import main\n"
    code += "try: main(['prepare', '--help'])\nfinally: print('LOADED', *sorted(sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    text, _, loaded = shown.partition("LOADED")
    assert not {
        "torch",
        "litdata",
        "lightning",
        "tokenizers",
        "tiktoken",
        "pyarrow",
        "numpy",
        "omegaconf",
    } & set(loaded.split())
    for words in (
        "Most tokens in a chunk file",
        "The dataset's directory",
        "Share of the bytes for validation",
        "--tokenizer.pattern",
    ):
        assert words in " ".join(text.split())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_round_trip(file: Path, tmp_path: Path, prepare_here: Prepare) -> None:
    printed = prepare_here("--config", file, "--print_config")
    assert printed.returncode == 0, printed.stderr
    assert "vocab_size" in printed.stdout
    (tmp_path / "again.yaml").write_text(printed.stdout)
    assert (
        prepare_here("--config", tmp_path / "again.yaml", "--print_config").stdout == printed.stdout
    )


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_run(
    file: Path,
    tmp_path: Path,
    make_corpus: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each on a little input of its kind, in this process."""
    from lit_pretrain.__main__ import main

    rows = [
        f"Row {n} of a table that holds {n * 7} things, and more of them.\n" * 3 for n in range(200)
    ]
    inputs: dict[str, Callable[[Path], Any]] = {
        "text_folder": lambda folder: [
            (folder / f"{n}.txt").write_text(text) for n, text in enumerate(rows)
        ],
        "jsonl": (
            lambda folder: (folder / "a.jsonl.zst").write_bytes(
                zstandard.ZstdCompressor().compress(
                    "".join(json.dumps({"text": text}) + "\n" for text in rows).encode()
                )
            )
        ),
        "addition": lambda folder: (folder / "sums.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in rows)
        ),
        "parquet": lambda folder: pyarrow.parquet.write_table(
            pyarrow.table({"text": rows}), folder / "a.parquet"
        ),
    }
    few = {part: text_readers.module_files(part)[:40] for part in ("code", "prose", "tests")}
    monkeypatch.setattr(text_readers, "module_files", few.__getitem__)
    extra = ["--tokenizer.vocab_size=300", "--workers=1"]
    if file.stem == "open_100mb":  # what scripts/corpus.sh fetches, in little
        make_corpus(tmp_path)
        extra += [
            f"--sources.{name}.path={tmp_path / name}"
            for name in ("prose", "reference", "technical", "qa")
        ]
        extra.append(f"--sources.manuals.path={tmp_path / 'technical'}")
    if file.stem in inputs:
        inputs[file.stem](tmp_path)
        name = {"text_folder": "mine", "addition": "sums"}.get(file.stem, "web")
        extra += [f"--sources.{name}.path={tmp_path}"]
    if file.stem == "parquet":
        train_bpe(rows, TokenizerConfig(vocab_size=290)).save(tmp_path)
        extra[0] = f"--tokenizer.path={tmp_path}"
    assert main(["prepare", "--config", str(file), f"--out={tmp_path / 'data'}", *extra]) == 0
    manifest = Manifest.load(tmp_path / "data")
    assert manifest.tokens("train") > 1000
    assert next(iter(manifest.sources)) in capsys.readouterr().out


def test_second_run_says_that_there_is_nothing_to_do(
    corpus: Path, finished: Path, prepare_here: Prepare
) -> None:
    again = prepare_here(*arguments(corpus, finished))
    tokens = Manifest.load(finished).tokens("train")
    assert again.returncode == 0
    assert again.stderr.endswith(
        f"prepare: {finished} is already prepared with this config ({tokens:,} training tokens);"
        " nothing to do\n"
    )
    other = prepare_here(*arguments(corpus, finished), "--seed=5")
    assert other.returncode == 2
    assert "seed: 0 there, 5 here" in other.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tokenizer.vocab_siz=300"], "tokenizer.vocab_siz"),
        (["--sources.mine.pth=x", "--sources.mine.kind=text"], "'pth' is not accepted"),
        (["--sources.mine.kind=txt"], "kind='txt' is unknown. Did you mean 'text'?"),
        (["--splits.validation=-1"], "splits.validation=-1.0 must be a share"),
        (["--errors=ignore"], "errors=ignore must be replace or skip"),
    ],
)
def test_mistakes_exit_with_2_and_a_hint(
    tmp_path: Path, extra: list[str], message: str, prepare_here: Prepare
) -> None:
    (tmp_path / "typo.yaml").write_text(
        f"out: {tmp_path / 'data'}\nsources: {{mine: {{kind: text, path: {tmp_path}}}}}\n"
    )
    done = prepare_here("--config", tmp_path / "typo.yaml", *extra)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ("splits:", "splits"),
        ("tokenizer:", "tokenizer"),
        ("tokenizer: {sample_bytes: }", "tokenizer.sample_bytes"),
        ("filters:", "filters"),
        ("max_document_bytes:", "max_document_bytes"),
        ("engine:", "engine"),
        ("dedup: {near: {threshold: }}", "dedup.near.threshold"),
        ("sources: {mine: {kind: text, path: ., fields: }}", "sources.mine.fields"),
    ],
)
def test_an_empty_entry_of_a_file_is_a_mistake(
    tmp_path: Path, entry: str, where: str, prepare_here: Prepare
) -> None:
    """To YAML it is null, which the parser lets through."""
    sources = "" if entry.startswith("sources") else "sources: {mine: {kind: text, path: .}}\n"
    (tmp_path / "empty.yaml").write_text(f"out: {tmp_path / 'data'}\n{sources}{entry}\n")
    done = prepare_here("--config", tmp_path / "empty.yaml")
    assert done.returncode == 2, done.stderr
    assert f"{where} is empty" in done.stderr


def test_unknown_key_in_a_file(tmp_path: Path, prepare_here: Prepare) -> None:
    (tmp_path / "typo.yaml").write_text("out: x\nchunk_token: 5\nsources: {}\n")
    done = prepare_here("--config", tmp_path / "typo.yaml")
    assert done.returncode == 2
    assert "chunk_tokens" in done.stderr


def test_unwritable_out(corpus: Path) -> None:
    done = run(*arguments(corpus, corpus / "000.txt" / "data"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_the_disk_refuses(corpus: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: both fail in the middle of a
    write.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))

    # Python 3.11 takes a half-written cache of bytecode for a whole one: it is not what is tested
    # here.
    done = run(
        *arguments(corpus, tmp_path / "data"),
        preexec_fn=limit,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert re.search(r"task \d+ of 01-clean could not write or read: OSError", done.stderr)
    assert "Free some space" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """What a shell has started in the background ignores SIGINT, and so would the processes
    that it starts.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(
    ("kind", "stage"),
    [  # a signal of each kind, a stage of each kind; the other pairs are slow
        pytest.param(
            kind, stage, id=f"{kind.name}-{stage}", marks=() if place == n else pytest.mark.slow
        )
        for n, kind in enumerate(SIGNALS)
        for place, stage in enumerate(("01-clean", "03-sample", "04-encode"))
    ],
)
def test_interrupted_then_run_again(
    corpus: Path,
    finished: Path,
    tmp_path: Path,
    kind: signal.Signals,
    stage: str,
    prepare_here: Prepare,
    tree: Tree,
) -> None:
    out = tmp_path / "data"
    process = subprocess.Popen(
        command(*arguments(corpus, out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    begin = time.monotonic()
    while not list(tmp_path.glob(f".data.partial/*/{stage}/*.json")):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() - begin < 60
        time.sleep(0.002)
    process.send_signal(kind)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if kind == signal.SIGKILL else 128 + kind)
    wait_for_the_end_of_session(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == [
        ".data.partial"
    ]  # nothing that looks finished
    again = prepare_here(*arguments(corpus, out), "--workers=1")
    assert again.returncode == 0
    assert "going on with what an earlier run left" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert tree(out) == tree(finished)


def wait_for_the_end_of_session(number: int) -> None:
    """Workers notice within moments that their parent has gone."""
    begin = time.monotonic()
    while time.monotonic() - begin < 20:
        try:
            os.killpg(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("processes of the session are still there")


def test_a_killed_worker_is_said_and_its_task_done_again(
    corpus: Path, finished: Path, tmp_path: Path, prepare_here: Prepare, tree: Tree
) -> None:
    out = tmp_path / "data"
    process = subprocess.Popen(
        command(*arguments(corpus, out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    victim = None
    while victim is None:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        victim = next(iter(grandchildren(process.pid)), None)
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        "was killed by signal 9 (most often for lack of memory; fewer workers need less). Run"
        " again: finished tasks are kept." in errors
    )
    assert "Traceback" not in errors
    assert not out.exists()
    assert prepare_here(*arguments(corpus, out), "--workers=1").returncode == 0
    assert tree(out) == tree(finished)


def grandchildren(process: int) -> list[int]:
    """Processes that the server of tasks has forked."""
    found = []
    for child in children(process):
        found += children(child)
    return found


def children(process: int) -> list[int]:
    try:
        return [
            int(number)
            for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except OSError:
        return []
