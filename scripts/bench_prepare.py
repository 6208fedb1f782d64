"""Speed of the preparation, per core.

    python scripts/bench_prepare.py [--mb MB] [--repeats 3] [JOB ...]

Jobs are filters, dedup, decontaminate, bpe, encode and whole.

Figures are medians of CPU seconds of this process, so that what else the machine does counts
little; datatrove's filters (extra `cluster`) take turns with ours on the same text. The text is the
Python standard library and the packages installed beside it. `whole` runs `lit_pretrain prepare`
with all steps in a process of its own, on the text once and four times over (each copy altered),
and prints the peak memory of both: it must not grow with the input.
"""

import argparse
import itertools
import json
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.document_store import Document

Jobs = dict[str, Callable[[], Any]]


def texts(
    megabytes: float, suffixes: Sequence[str] = (".py", ".md", ".rst", ".txt")
) -> list[Document]:
    """Read real text of this size: by name, so that it is the same on every run."""
    found: list[Document] = []
    size = 0
    for place in ("stdlib", "purelib"):
        root = Path(sysconfig.get_path(place))
        for path in sorted(
            path for path in root.rglob("*") if path.suffix in suffixes and path.is_file()
        ):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip():
                found.append(Document(text, path.name))
                size += len(text.encode())
            if size >= megabytes * 1e6:
                return found
    return found


def size_of(documents: Sequence[Document]) -> float:
    """Count MB of UTF-8."""
    return sum(len(document.utf8) for document in documents) / 1e6


def race(jobs: Jobs, amount: float, unit: str, repeats: int) -> None:
    """Run the jobs in turn and print each one's median rate."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            seconds[name].append(time.process_time() - began)
    for name, spent in seconds.items():
        median = statistics.median(spent)
        print(
            f"  {name:<44} {amount / median:9.2f} {unit} per CPU-second   (median of {repeats}:"
            f" {median:.2f} s)",
            flush=True,
        )


def bench_filters(megabytes: float, repeats: int) -> None:
    """Time our filters, and datatrove's with a white-space splitter."""
    from datatrove.data import Document as TheirDocument
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.word_tokenizers import WordTokenizer

    from lit_pretrain.prepare.filters.c4 import count_sentences
    from lit_pretrain.prepare.filters.filter import Chain

    class WhiteSpace(WordTokenizer):  # type: ignore[misc]  # datatrove has no types
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(
            self, text: str
        ) -> list[tuple[int, int]]:  # as many as ours has: C4 only counts them
            return [(0, 0)] * count_sentences(text)

    documents = texts(megabytes)
    splitter = WhiteSpace()
    classes = (GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter)
    theirs = [each(language=splitter) for each in classes]
    ours = Chain(["gopher", "c4", "fineweb"])
    with_language = Chain(["gopher", "c4", "fineweb", "Language"])

    def run_theirs() -> None:
        for document in documents:
            given = TheirDocument(text=document.text, id="")
            for each in theirs:
                if each.filter(given) is not True:
                    break

    jobs: Jobs = {
        "gopher + c4 + fineweb, lit_pretrain": lambda: [ours(document) for document in documents],
        "gopher + c4 + fineweb, datatrove": run_theirs,
        "gopher + c4 + fineweb + language, lit_pretrain": lambda: [
            with_language(document) for document in documents
        ],
    }
    race(jobs, size_of(documents), "MB", repeats)


def bench_dedup(megabytes: float, repeats: int) -> None:
    """Time sketches, buckets, comparison: the stages of `prepare` in this process."""
    from lit_pretrain.prepare.dedup.dedup_config import ContainmentConfig, DedupConfig
    from lit_pretrain.prepare.document_store import DocumentWriter, clean_file
    from lit_pretrain.prepare.engine.task_stage import PrepareTask, Result
    from lit_pretrain.prepare.stages.compare import Comparison, find_duplicates

    documents = texts(megabytes)

    def do(
        name: str, title: str, task: PrepareTask[Result], sizes: Sequence[int], unit: str = "bytes"
    ) -> list[Result]:
        return [task(number, lambda done: None) for number in range(len(sizes))]

    with tempfile.TemporaryDirectory() as folder:
        with DocumentWriter(clean_file(Path(folder), 0)) as writer:
            for document in documents:
                writer.add(document)

        def run(config: DedupConfig) -> None:
            corpus = Comparison(config, Path(folder), (0,), len(documents), (len(documents),))
            find_duplicates(corpus, do)

        jobs: Jobs = {
            "exact": lambda: run(DedupConfig(near=None)),
            "exact + near": lambda: run(DedupConfig()),
            "exact + near + containment": lambda: run(DedupConfig(containment=ContainmentConfig())),
        }
        race(jobs, size_of(documents), "MB", repeats)


def bench_decontaminate(megabytes: float, repeats: int) -> None:
    """Time 13-grams against an index of 7,000 items."""
    from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
    from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet

    documents = texts(megabytes)
    words = " ".join(document.text for document in texts(4, (".rst", ".md"))).split()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.jsonl"
        items = [" ".join(words[at * 40 : at * 40 + 40][::-1]) for at in range(7000)]
        path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items if item))
        index = DecontaminationIndex.build(
            DecontaminateConfig(against={"made": EvaluationSet(path=str(path))})
        )
    race(
        {"decontaminate": lambda: [index.check(document.text) for document in documents]},
        size_of(documents),
        "MB",
        repeats,
    )


def bench_bpe(megabytes: float, repeats: int) -> None:
    """Time BPE of 32,768 ids.

    And what of it is splitting and counting words, beside the `regex` package doing the same.
    """
    import regex

    from lit_pretrain.prepare.prepare_config import TokenizerConfig
    from lit_pretrain.prepare.stages.train_tokenizer import train_bpe
    from lit_pretrain.tokenizer.byte_level import PATTERNS

    documents = [document.text for document in texts(megabytes)]
    size = sum(len(text.encode()) for text in documents) / 1e6
    split = regex.compile(PATTERNS["cl100k"])
    jobs: Jobs = {
        f"train a BPE of 32,768 ids on {size:.0f} MB": lambda: train_bpe(
            documents, TokenizerConfig(vocab_size=32768)
        ),
        "one merge: splitting and counting": lambda: train_bpe(
            documents, TokenizerConfig(vocab_size=261)
        ),
        "splitting and counting, regex": lambda: Counter(
            itertools.chain.from_iterable(map(split.findall, documents))
        ),
    }
    race(jobs, size, "MB", repeats)


def bench_encode(megabytes: float, repeats: int) -> None:
    """Time encoding and storing."""
    from lit_pretrain.corpus.chunk_writer import ShardWriter, assemble_chunks
    from lit_pretrain.prepare.prepare_config import TokenizerConfig
    from lit_pretrain.prepare.stages.encode import encode_documents
    from lit_pretrain.prepare.stages.train_tokenizer import train_bpe

    documents = texts(megabytes)
    tokenizer = train_bpe(
        [document.text for document in documents[:2000]], TokenizerConfig(vocab_size=16384)
    )
    count = sum(len(encoded.ids) for encoded in encode_documents(documents, tokenizer, "uint16"))

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = ShardWriter(
                Path(folder) / "part",
                part=0,
                dtype="uint16",
                chunk_tokens=8_000_000,
                vocab_size=tokenizer.vocab_size,
            )
            for encoded in encode_documents(documents, tokenizer, "uint16"):
                writer.add(
                    encoded.ids,
                    origin=encoded.document.origin,
                    utf8_bytes=len(encoded.document.utf8),
                )
            assemble_chunks(
                Path(folder) / "all",
                [(0, Path(folder) / "part", writer.close())],
                dtype="uint16",
                chunk_tokens=8_000_000,
            )

    race({"encode + shard": store}, count / 1e6, "M tokens", repeats)


def bench_whole(megabytes: float, repeats: int) -> None:
    """Time the command line with all steps, one worker, in parts of 8 MB.

    Prints the rate over everything, and peak memory by size of the input.
    """
    documents = texts(megabytes)
    for copies in (1, 4):
        # Words of a copy begin with its number, so that no copy is a duplicate of another.
        altered = [
            Document(re.sub(r"\b(?=[a-z])", f"{copy}", each.text), each.origin)
            for copy in range(1, copies)
            for each in documents
        ]
        _prepare_all(documents + altered)


def _prepare_all(documents: Sequence[Document]) -> None:
    """Run the command line once, and measure what it takes."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text"
        source.mkdir()
        for begin in range(0, len(documents), 500):
            lines = [
                json.dumps({"text": document.text}) + "\n"
                for document in documents[begin : begin + 500]
            ]
            (source / f"{begin:08d}.jsonl").write_text("".join(lines))
        config = {
            "out": f"{folder}/out",
            "sources": {"all": {"kind": "jsonl", "path": str(source)}},
            "filters": ["gopher", "c4", "fineweb", "Language"],
            "dedup": {"exact": True, "near": {}, "containment": {}, "lines": {}},
            "tokenizer": {"vocab_size": 4096},  # little of code passes Gopher's rules
            "workers": 1,
            "part_bytes": 8_000_000,
        }
        (Path(folder) / "config.yaml").write_text(json.dumps(config))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "-m",
            "lit_pretrain",
            "prepare",
            "--config",
            f"{folder}/config.yaml",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        print("\n".join(f"  {line}" for line in done.stderr.splitlines()))
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = size_of(documents)
    print(
        f"  {'all steps, one worker':<44} {size / spent:9.2f} MB per CPU-second   ({size:.0f} MB,"
        f" peak {after.ru_maxrss / 1e6:.2f} GB)"
    )


BENCHES: dict[str, Callable[[float, int], None]] = {
    "filters": bench_filters,
    "dedup": bench_dedup,
    "decontaminate": bench_decontaminate,
    "bpe": bench_bpe,
    "encode": bench_encode,
    "whole": bench_whole,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; default all")
    parser.add_argument("--mb", type=float, help="MB of text; default 20, of bpe 50")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    for name in options.names or BENCHES:
        megabytes = options.mb or (50 if name == "bpe" else 20)
        print(f"{name} ({megabytes:g} MB)", flush=True)
        BENCHES[name](megabytes, options.repeats)


if __name__ == "__main__":
    main()
