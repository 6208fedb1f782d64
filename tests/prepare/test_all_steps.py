"""Every step at once, through the command line: the funnel says what was planted, also after
any interruption.
"""

import io
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lit_pretrain.corpus.chunk_reader import read_chunk_header
from lit_pretrain.corpus.manifest import SPLITS, Manifest
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import View
from lit_pretrain.prepare.filters.gopher import GopherQuality
from lit_pretrain.prepare.read import text_readers as embedded
from lit_pretrain.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
NOTICE = "This page was printed by the people who own it."
STAGES = [
    "sketch",
    "copies",
    "bucket",
    "group",
    "shingles",
    "decide",
    "settle",
    "lines",
    "repeated",
    "sample",
    "encode",
]


def passages(count: int) -> list[str]:
    """Real English text that passes the filter, no two with a phrase in common: docstrings of
    some Pythons repeat themselves.
    """
    text = " ".join(
        text
        for _, text in embedded.module_documents("prose", embedded.module_files("prose"))
        if text.isascii()
    )
    found = text.split()
    judge = GopherQuality()
    chosen: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for at in range(0, len(found), 120):
        piece = found[at : at + 120]
        passage, runs = " ".join(piece), {tuple(piece[i : i + 6]) for i in range(len(piece) - 5)}
        if seen.isdisjoint(runs) and judge(Document(passage, ""), View(passage)).keep:
            chosen.append(passage)
            seen |= runs
    return chosen[:count]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of 130 and 60 passages, with 10 copies, 10 near copies, 5 leaks of an
    evaluation set, 7 texts of digits and a notice.
    """
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(5)
    texts = passages(200)
    web, books, items = texts[:130], texts[130:190], texts[190:200]
    copies = web[:10]
    near = []
    for text in web[10:20]:
        words = text.split()
        del words[rng.randrange(60)]
        near.append(" ".join(words))
    leaks = [f"{web[50 + n][:200]} {items[n]}" for n in range(5)]
    numbers = [" ".join(str(rng.randrange(10**6)) for _ in range(100)) for _ in range(7)]
    pages = [*web, *copies, *near, *leaks, *numbers]
    for n in range(4):
        lines = [
            json.dumps({"text": f"{page}\n{NOTICE}" if page in web[:130] else page}) + "\n"
            for page in pages[n::4]
        ]
        (folder / f"web{n}.jsonl").write_text("".join(lines))
    (folder / "books").mkdir()
    for n, text in enumerate(books):
        (folder / "books" / f"{n:02d}.txt").write_text(text)
    (folder / "exam.jsonl").write_text(
        "".join(json.dumps({"question": item}) + "\n" for item in items)
    )
    config = {
        "sources": {
            "web": {
                "kind": "jsonl",
                "path": str(folder),
                "glob": "web*.jsonl",
                "licence": "CC0-1.0",
                "filters": ["GopherQuality"],
            },
            "books": {"kind": "text", "path": str(folder / "books")},
        },
        "dedup": {"exact": True, "near": {"threshold": 0.7}, "lines": {"min_words": 5}},
        "decontaminate": {
            "against": {"exam": {"path": str(folder / "exam.jsonl"), "fields": ["question"]}}
        },
        "tokenizer": {"vocab_size": 400},
        "chunk_tokens": 4000,
        "part_bytes": 20_000,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


Prepare = Callable[..., Any]
Tree = Callable[[Path], dict[str, str]]


def options(corpus: Path, out: Path) -> list[str]:
    return ["--config", str(corpus / "config.yaml"), f"--out={out}", "--workers=1"]


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory, prepare_here: Prepare) -> Path:
    out: Path = tmp_path_factory.mktemp("finished") / "data"
    done = prepare_here(*options(corpus, out))
    assert done.returncode == 0, done.stderr
    return out


def text_of(out: Path, manifest: Manifest, split: str, source: str) -> str:
    """All stored text of a split."""
    tokenizer = Tokenizer.load(out)
    data = [
        (out / split / source / chunk.filename).read_bytes()
        for chunk in manifest.sources[source].splits[split].chunks
    ]
    return "".join(
        tokenizer.decode(
            np.frombuffer(
                chunk[int(read_chunk_header(io.BytesIO(chunk))[0]) :], dtype=manifest.dtype
            )
        )
        for chunk in data
    )


def test_the_funnel_says_what_was_planted(finished: Path) -> None:
    manifest = Manifest.load(finished)
    web, books = (manifest.sources[name].funnel for name in ("web", "books"))
    assert [step.name for step in web] == [
        "read",
        "GopherQuality",
        "decontaminate",
        "dedup",
        "lines",
        "store",
    ]
    assert [step.name for step in books] == ["read", "decontaminate", "dedup", "lines", "store"]
    by_name = {step.name: step for step in web}
    assert by_name["read"].documents == 130 + 10 + 10 + 5 + 7
    assert sum(by_name["GopherQuality"].removed.values()) == 7
    assert by_name["decontaminate"].removed == {"exam": 5}
    assert by_name["dedup"].removed == {"exact": 10, "near": 10}
    ((what, pages),) = by_name["lines"].changed.items()
    assert what == f"lost {pages} lines"
    stored = "".join(text_of(finished, manifest, split, "web") for split in SPLITS)
    assert stored.count(NOTICE) == 1
    assert stored.count("\n") == 1
    for steps, source in ((web, manifest.sources["web"]), (books, manifest.sources["books"])):
        pieces = sum(split.documents for split in source.splits.values()) - steps[-1].documents
        assert (
            steps[-1].changed.get("end_held_out", 0)
            <= pieces
            <= 2 * steps[-1].changed.get("end_held_out", 0)
        )
        assert steps[-1].bytes == sum(split.bytes for split in source.splits.values())
        documents = steps[0].documents
        for step in steps[1:]:
            assert step.documents == documents - sum(step.removed.values())
            documents = step.documents


def test_the_reports_show_both_sides(finished: Path) -> None:
    rejects = [json.loads(line) for line in (finished / "rejects.jsonl").read_text().splitlines()]
    assert {(entry["source"], entry["step"]) for entry in rejects} >= {
        ("web", "GopherQuality"),
        ("web", "decontaminate"),
    }
    assert all(entry["origin"].startswith("web") and entry["text"] for entry in rejects)
    pairs = [entry for entry in rejects if entry["step"] == "dedup"]
    assert Counter(entry["reason"] for entry in pairs) == {"exact": 3, "near": 3}, "keep_rejects"
    for entry in pairs:
        other = entry["duplicate_of"]
        assert (other["source"], other["origin"] != entry["origin"]) == ("web", True)
        same = entry["text"].removesuffix(NOTICE).strip() == other["text"].partition("\n")[0]
        assert (entry["reason"], other["similarity"] == 1) == (("near", "exact")[same], same)
    contamination = json.loads((finished / "contamination.json").read_text())
    assert contamination["exam"]["documents"] == 5
    (gate,) = Manifest.load(finished).decontamination
    assert (gate.name, gate.items, gate.items_hit, gate.documents_hit, gate.clean) == (
        "exam",
        10,
        5,
        5,
        True,
    )
    duplicates = json.loads((finished / "duplicates.json").read_text())
    assert {reason: found["documents"] for reason, found in duplicates["removed"].items()} == {
        "exact": 10,
        "near": 10,
        "contained": 0,
    }
    assert duplicates["clusters"] == {"2": 20}
    assert all(
        example["removed"]["origin"] != example["kept"]["origin"]
        for example in duplicates["examples"]
    )


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy, pyarrow.parquet, tiktoken, tokenizers
from lit_pretrain.__main__ import main
from lit_pretrain.prepare import pipeline
from lit_pretrain.prepare.engine import task_stage as stages

write, rename = stages.write_file, os.rename
config, folder, *places = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def prepare_until(where):
    def write_and_die(path, text):
        write(path, text)
        if path.suffix == ".json" and path.parent.name.endswith(f"-{where}"):
            die()

    def rename_and_die(source, target):
        rename(source, target)
        last = {"assemble": "chunk-2-0.bin", "finish": "data"}.get(where)
        if Path(target).name == last:
            die()

    stages.write_file, os.rename = write_and_die, rename_and_die
    main(["prepare", "--config", config, f"--out={folder}/{where}/data", "--workers=1"])

for where in places:  # before any thread was started
    child = os.fork()
    if not child:
        prepare_until(where)
        os._exit(1)
    print(where, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""`prepare`, killed without fail at one place after the other: after the first task of a stage,
among the chunks that are moved to their place, or between the last rename and the removal of the
working directory.
"""
PLACES = [*STAGES, "assemble", "finish"]


@pytest.fixture(scope="module")
def killed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what was left by a run that was killed at each place; their imports are
    paid once.
    """
    folder = tmp_path_factory.mktemp("killed")
    for where in PLACES:
        (folder / where).mkdir()
    command = [sys.executable, "-c", KILLED, str(corpus / "config.yaml"), str(folder), *PLACES]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=500
    )
    assert done.stdout.splitlines() == [f"{where} {-signal.SIGKILL}" for where in PLACES], (
        done.stderr
    )
    return folder


@pytest.mark.parametrize("where", PLACES)
def test_killed_anywhere_and_run_again(
    corpus: Path, finished: Path, killed: Path, where: str, prepare_here: Prepare, tree: Tree
) -> None:
    out = killed / where / "data"
    assert out.exists() == (where == "finish")
    assert (killed / where / ".data.partial").exists()
    done = prepare_here(*options(corpus, out))
    assert done.returncode == 0, done.stderr
    assert (
        "nothing to do" if where == "finish" else "going on with what an earlier run left"
    ) in done.stderr
    assert tree(out) == tree(finished)
    assert [path.name for path in (killed / where).iterdir()] == ["data"]


def test_another_exam_is_another_dataset(
    corpus: Path, finished: Path, prepare_here: Prepare
) -> None:
    """The evaluation sets are part of what was asked for, by content."""
    again = prepare_here(*options(corpus, finished))
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    before = (corpus / "exam.jsonl").read_text()
    try:
        (corpus / "exam.jsonl").write_text(
            before
            + json.dumps({"question": "What is new here, and why was it not asked before today?"})
            + "\n"
        )
        other = prepare_here(*options(corpus, finished))
    finally:
        (corpus / "exam.jsonl").write_text(before)
    assert other.returncode == 2
    assert "content of decontaminate.against.exam" in other.stderr
