"""Shared fixtures: a small prepared dataset, and the command line as a user runs it."""

import dataclasses
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from lit_pretrain.tokenizer.tokenizer import Tokenizer

# On a busy machine a test that is right can be slow.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parents[1]
RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files beside this one, which hold whole runs: the last file, if it is a long
    one, leaves all processes but one idle.
    """
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an S3 server on this machine that takes any credentials; yield its address."""
    pytest.importorskip("moto.server", reason="needs the dev extra")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("moto") / "log"
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")
    }
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=file,
            stderr=file,
            env=environment,
        )
        try:
            for _ in range(600):
                if server.poll() is not None:
                    pytest.fail(f"the S3 server ended: {log.read_text()}")
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _story(rng: random.Random) -> str:
    who, what, where = "fox owl hen cat", "sees hears finds likes", "hill lake barn road"
    sentences = [
        f"The {rng.choice(who.split())} {rng.choice(what.split())} the {rng.choice(who.split())} by"
        f" the {rng.choice(where.split())}."
        for _ in range(rng.randint(1, 30))
    ]
    return " ".join(sentences)


def _sums(rng: random.Random) -> str:
    pairs = [(rng.randint(0, 99), rng.randint(0, 99)) for _ in range(rng.randint(1, 60))]
    return "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs)


def _code(rng: random.Random) -> str:
    names = [f"{rng.choice('abcdefgh')}_{rng.randint(0, 9)}" for _ in range(rng.randint(1, 20))]
    return "".join(
        f"def {name}(x):\n    return x {rng.choice('+-*')} {rng.randint(1, 9)}\n\n\n"
        for name in names
    )


def _documents(make: Callable[[random.Random], str], size: int, seed: int) -> Iterator[str]:
    """Documents of very different lengths, and one that is longer than many rows."""
    rng = random.Random(seed)
    yield " ".join(make(rng) for _ in range(8))
    written = 0
    while written < size:
        text = make(rng)
        written += len(text)
        yield text


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of three made-up sources (story, sums, code), about 300 kB and 512 ids
    in several chunks; not to be changed.
    """
    from lit_pretrain.prepare.pipeline import prepare
    from lit_pretrain.prepare.prepare_config import (
        PrepareConfig,
        SourceConfig,
        SplitsConfig,
        TokenizerConfig,
    )

    raw = tmp_path_factory.mktemp("raw")
    sources = {}
    for seed, (name, make, size) in enumerate(
        (("story", _story, 150_000), ("sums", _sums, 100_000), ("code", _code, 50_000))
    ):
        lines = [json.dumps({"text": text}) + "\n" for text in _documents(make, size, seed)]
        (raw / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        sources[name] = SourceConfig(
            kind="jsonl",
            path=str(raw / f"{name}.jsonl"),
            licence="CC0-1.0",
            origin="made for tests",
        )
    out = tmp_path_factory.mktemp("prepared") / "tiny"
    prepare(
        PrepareConfig(
            out=str(out),
            sources=sources,
            tokenizer=TokenizerConfig(kind="train", vocab_size=512),
            splits=SplitsConfig(validation=0.1, test=0.05),
            chunk_tokens=16_384,
            workers=1,
        )
    )
    return out


@pytest.fixture(scope="session")
def quickstart(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the quickstart leaves, in little: configs, data/embedded (the small
    dataset under the names of the embedded corpus) and runs/quickstart; not to be changed.
    """
    from lit_pretrain.__main__ import main
    from lit_pretrain.corpus.manifest import SPLITS, Manifest

    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(ROOT / "configs", folder / "configs")
    data = Path(shutil.copytree(dataset, folder / "data" / "embedded"))
    names = {"code": "code", "story": "prose", "sums": "tests"}
    for split in SPLITS:
        for old, new in names.items():
            if old != new and (data / split / old).exists():
                (data / split / old).rename(data / split / new)
    manifest = Manifest.load(data)
    manifest = dataclasses.replace(
        manifest, sources={names[name]: source for name, source in manifest.sources.items()}
    )
    (data / "manifest.json").write_text(manifest.dump(), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)  # so that the run's config names its data as that of the quickstart does
    try:
        code = main([
            "fit", "--config", "configs/pretrain/quickstart.yaml", "--model.net.n_layer=2",
            "--model.net.width=32", "--model.net.n_head=2", "--model.net.max_seq_len=512",
            "--model.net.bigram_rows=256", "--model.compile=off", "--data.seq_len=64",
            "--data.global_batch_tokens=512", "--data.val_tokens=512",
            "--max_steps=2", "--log_every=1", "--checkpoint_every=1",
            "--sample_prompts=[]", "--trainer.accelerator=cpu", "--name=quickstart",
        ])  # fmt: skip
    finally:
        os.chdir(before)
    assert code == 0
    return folder


@pytest.fixture(scope="session")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that is `lit_pretrain` on a machine whose standard library, the embedded corpus,
    is small: about 1 MB in three sources.
    """
    folder = tmp_path_factory.mktemp("library")
    real = Path(sysconfig.get_path("stdlib"))
    modules = sorted(
        path for path in real.glob("[a-z]*.py") if 2_000 < path.stat().st_size < 40_000
    )
    for place, some in (("", modules[:40]), ("test", modules[40:60])):
        (folder / "lib" / place).mkdir(parents=True, exist_ok=True)
        for path in some:
            shutil.copy(path, folder / "lib" / place)
    (folder / "lib" / "pydoc_data").mkdir()
    shutil.copy(real / "pydoc_data" / "topics.py", folder / "lib" / "pydoc_data")
    # On the level of the module: processes that are started by this one import it, too.
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from lit_pretrain.__main__ import main
from lit_pretrain.prepare.read import text_readers
text_readers.library_root = lambda: Path({str(folder / "lib")!r})
if __name__ == "__main__":
    sys.exit(main())
"""
    (folder / "lit_pretrain.py").write_text(script)
    return folder / "lit_pretrain.py"


def _english(kind: str, n: int) -> str:
    """A hundred words that pass for English, different for every kind and number."""
    rng = random.Random(f"{kind}{n}")
    things = (
        "house river letter engine garden window teacher market story winter music answer question"
        " signal number bridge forest village mountain kitchen painter captain library mirror"
        " pocket summer station theatre valley harbour journey planet shadow table"
    ).split()
    links = "of the, with the, and that, to be near the, to have the, and the, that the".split(", ")
    return "\n".join(
        f"The {' '.join(f'{rng.choice(things)} {rng.choice(links)}' for _ in range(5))}"
        f" {rng.choice(things)} {rng.randint(1, 999)}."
        for _ in range(8)
    )


@pytest.fixture(scope="session")
def make_corpus() -> Callable[[Path], None]:
    """Lays what scripts/corpus.sh fetches below a folder, in little: for
    configs/prepare/open_100mb.yaml.
    """

    def make(folder: Path) -> None:
        for name in ("prose", "reference", "technical", "qa"):
            (folder / name).mkdir(parents=True)
            lines = [
                json.dumps({"text": _english(name, n), "id": f"{name}-{n}"}) + "\n"
                for n in range(40)
            ]
            (folder / name / "a.jsonl").write_text("".join(lines))
        (folder / "technical" / "a.html").write_text(
            f"<html><body><article><p>{_english('page', 0)}</p></article></body></html>"
        )

    return make


@pytest.fixture(scope="session")
def classifier_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples for a classifier: positive/ (a text file each: stories) and
    negative.jsonl (code and sums); not to be changed.
    """
    folder = tmp_path_factory.mktemp("examples")
    rng = random.Random(7)
    (folder / "positive").mkdir()
    for number in range(80):
        (folder / "positive" / f"{number:02d}.txt").write_text(_story(rng))
    lines = [json.dumps({"text": make(rng)}) + "\n" for make in (_code, _sums) for _ in range(60)]
    (folder / "negative.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def classifier_file(classifier_examples: Path) -> Path:
    """A classifier that tells stories from code and sums; not to be changed."""
    from lit_pretrain.__main__ import main

    file = classifier_examples / "quality.safetensors"
    assert not main([
        "classifier", "train", "--positive", str(classifier_examples / "positive"),
        "--negative", str(classifier_examples / "negative.jsonl"), "--out", str(file),
    ])  # fmt: skip
    return file


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """Runs `python -m lit_pretrain ...` on the CPU, in the test's own folder and with one thread.

    `run_cli(*arguments, cwd=..., env=..., timeout=...)`: `env` adds variables, or removes those
    that are None (`env={"CUDA_VISIBLE_DEVICES": None}` shows the GPUs again).
    """

    def run(
        *arguments: object,
        cwd: Path = tmp_path,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 300,
    ) -> "subprocess.CompletedProcess[str]":
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith("LIT_PRETRAIN_")
        }
        wanted: dict[str, str | None] = {
            **inherited,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **(env or {}),
        }
        wanted["PYTHONPATH"] = os.pathsep.join(filter(None, [wanted.get("PYTHONPATH"), str(ROOT)]))
        return subprocess.run(
            [sys.executable, "-m", "lit_pretrain", *map(str, arguments)],
            cwd=cwd,
            env={key: value for key, value in wanted.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: sums of several have another rounding, and runs in this
    process are compared with runs in others.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TEXT = [
    "The fox sees the hen by the lake. The owl hears the cat by the barn.",
    (
        "What is the capital of France? The capital of France is Paris.\n\nGrüße, naïve café —"
        " “quoted”… 中文字符 🦊"
    ),
    "def f(x):\n    return x + 1\n\nuser assistant system tool answer question 12 + 34 = 46\n",
] * 4


def make_tokenizer(*special: str) -> Tokenizer:
    """A small byte-level tokenizer with the usual special tokens and some more."""
    from lit_pretrain.prepare.prepare_config import TokenizerConfig
    from lit_pretrain.prepare.stages.train_tokenizer import train_bpe

    return train_bpe(
        TEXT,
        TokenizerConfig(
            kind="train", vocab_size=300 + len(special), special_tokens=tuple(special) or None
        ),
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """With the tokens of ChatML and of Llama 3."""
    return make_tokenizer(
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer as a folder that transformers can load."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as jsonl and gives the path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        return str(path)

    return write
