"""The pipeline: find → clean → compare → learn a tokenizer → encode → record."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_pretrain.data import manifest as manifests
from lit_pretrain.data.gate import GateRecord
from lit_pretrain.data.manifest import SPLITS, Manifest, Source, SourceSplit, TokenizerRecord, canonical_hash, content_hash, file_sha256
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.prepare import directory, rejects, tokenize
from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.decontaminate.index import Index
from lit_pretrain.prepare.decontaminate.report import Tally, gate_records
from lit_pretrain.prepare.dedup.arrays import ranges_for
from lit_pretrain.prepare.dedup.decide import REASONS
from lit_pretrain.prepare.dedup.report import FILENAME as DUPLICATES_FILENAME
from lit_pretrain.prepare.dedup.report import report
from lit_pretrain.prepare.dedup.settle import stretches
from lit_pretrain.prepare.document import Document
from lit_pretrain.prepare.engine.config import EngineConfig
from lit_pretrain.prepare.engine.run import run
from lit_pretrain.prepare.engine.stage import Advance, Stage, Task
from lit_pretrain.prepare.funnel import CUT, Funnel, without
from lit_pretrain.prepare.inputs import Inputs, find
from lit_pretrain.prepare.parts import cut
from lit_pretrain.prepare.rejects import Rejects
from lit_pretrain.prepare.report import say, working
from lit_pretrain.prepare.rerun import refuse_difference
from lit_pretrain.prepare.shard import assemble, directories_below, write_durably
from lit_pretrain.prepare.source import SourceConfig
from lit_pretrain.prepare.store import read_documents, read_some
from lit_pretrain.prepare.survivors import clean_file, removed_file
from lit_pretrain.prepare.tasks.clean import CleanTask, check_read, gate_file, has_ids
from lit_pretrain.prepare.tasks.compare import (
    BucketTask,
    Comparison,
    ContainersTask,
    CopiesTask,
    DecideTask,
    GroupTask,
    LinesTask,
    RepeatedTask,
    SettleTask,
    ShinglesTask,
    SketchTask,
)
from lit_pretrain.prepare.tasks.encode import EncodeTask, part_directory, split_of
from lit_pretrain.prepare.tasks.ids import DropTask, TwiceTask, with_ids_file
from lit_pretrain.prepare.tasks.ids import ranges_for as id_ranges_for
from lit_pretrain.prepare.tasks.sample import SampleTask, gather
from lit_pretrain.prepare.versions import versions
from lit_pretrain.prepare.whole import sync

CONTAMINATION_FILENAME = "contamination.json"
"""Of the dataset: hits of evaluation sets, with both sides of a few."""
_EQUALITY_SAMPLE_BYTES = 1_000_000
"""Text of the data itself on which tiktoken must agree with `tokenizers` before it encodes the rest."""


def prepare(config: PrepareConfig) -> Manifest:
    """Turns raw text into a finished dataset directory, or finds that it is there already.

    The result is a function of the config and the input: the same bytes for any engine and number of workers, on any day. `config.out`
    appears at the end, as a whole. Tasks that finished before a fault are kept beside it, and the same call goes on from there.

    Args:
        config: What to prepare.

    Returns:
        The manifest of `config.out`.

    Raises:
        UserError: Something in the config, the input or the disk stands in the way; the message says what to do.
    """
    config.validate()
    out = Path(config.out).expanduser()
    if (out / manifests.FILENAME).exists():
        existing = Manifest.load(out)
        refuse_difference(out, existing, config)
        directory.clear(out)
        say(f"{out} is already prepared with this config ({existing.tokens('train'):,} training tokens); nothing to do")
        return existing
    inputs = _find(config)
    index = None if config.decontaminate is None else Index.build(config.decontaminate)
    given = tokenize.load(config.tokenizer)
    directory.check_free(out)
    made_by = versions(config)
    state = _state(config, inputs, given, index, made_by)
    with directory.workspace(out, state) as work:
        return _Preparation(config, inputs, index, work.absolute(), state, made_by).run(given)


class _Preparation:
    """One run of the pipeline in a directory of its own."""

    def __init__(
        self, config: PrepareConfig, inputs: dict[str, Inputs], index: Index | None, work: Path, state: str, made_by: dict[str, str]
    ) -> None:
        self._config = config
        self._state = state
        self._versions = made_by
        self._inputs = inputs
        self._index = index
        self._work = work
        self._parts = tuple(cut(inputs, config.part_bytes))
        self._engine = EngineConfig(engine=config.engine, workers=config.workers or _processors(), ray=config.ray, slurm=config.slurm)
        self._stages = 0
        self._clean: list[dict[str, Any]] = []
        self._left: list[int] = []  # bytes that the filters left of each part
        self._begins: tuple[int, ...] = ()  # number of the first document of each part in the corpus
        self._documents = 0  # that the filters left

    def run(self, tokenizer: Tokenizer | None) -> Manifest:
        """All of it; returns the manifest that was written."""
        config, parts, work = self._config, self._parts, self._work
        dataset = work / directory.DATASET
        dataset.mkdir(exist_ok=True)
        if self._index is not None:
            self._index.save(gate_file(work))
        self._clean = self._do("clean", "read and clean", CleanTask(config, parts, work), [part.bytes for part in parts])
        self._check_documents()
        self._drop_ids()
        self._left = [result["funnel"][-1]["bytes"] for result in self._clean]
        counts = [result["funnel"][-1]["documents"] for result in self._clean]
        self._begins = tuple(itertools.accumulate(counts[:-1], initial=0))
        self._documents = sum(counts)
        self._compare()
        left = self._left
        if tokenizer is None:
            tokenizer = self._train_tokenizer(left)
        self._check_encoder(tokenizer)
        # 65,536 ids fit uint16; above, int32, for torch has few operations on uint32.
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
        encoded = self._do("encode", "encode", EncodeTask(config, parts, work, tokenizer, dtype, self._begins), self._compared())
        for path in tokenizer.save(dataset):
            sync(path)
        sources = {name: self._source(name, encoded, dataset, tokenizer, dtype) for name in self._inputs}
        self._write_rejects(dataset)
        gate = self._gate(dataset)
        identity, splits = config.identity(), config.splits
        manifest = Manifest(
            tokenizer=TokenizerRecord(
                hash=tokenizer.hash,
                vocab_size=tokenizer.vocab_size,
                bos=tokenizer.bos,
                eos=tokenizer.eos,
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                pattern=tokenizer.pattern_name,
                kind=config.tokenizer.kind,
            ),
            dtype=dtype,
            splits={"train": round(1 - splits.validation - splits.test, 12), **dataclasses.asdict(splits)},
            sources=sources,
            config=identity,
            config_hash=canonical_hash(identity),
            versions=self._versions,
            files=_files(dataset, sources),
            gate=gate,
        )
        for path in directories_below(dataset):
            sync(path)
        write_durably(dataset / manifests.FILENAME, manifest.dump())
        return manifest

    def _do(
        self, name: str, title: str, task: Task, sizes: Sequence[int], unit: Literal["bytes", "tasks"] = "bytes"
    ) -> list[dict[str, Any]]:
        """Runs one stage to its end."""
        self._stages += 1
        stage = Stage(name=f"{self._stages:02d}-{name}", title=title, task=task, sizes=sizes, work=self._work, state=self._state, unit=unit)
        return run(stage, self._engine, self._versions)

    def _drop_ids(self) -> None:
        """Takes documents out whose id an earlier one of the source has, in whatever file."""
        parts = tuple(number for number, part in enumerate(self._parts) if has_ids(self._config, part.source))
        if not parts:
            return
        last = [self._clean[part]["funnel"][-1] for part in parts]
        ranges = id_ranges_for(sum(step["documents"] for step in last))
        self._do("twice", "find ids that occur twice", TwiceTask(self._work, parts, ranges), [1] * ranges, "tasks")
        names = list(self._config.sources)
        task = DropTask(
            self._work,
            parts,
            tuple(names.index(self._parts[part].source) for part in parts),
            tuple(step["bytes"] for step in last),
            tuple(frozenset(document for _, _, document in step["sample"]) for step in last),
            ranges,
        )
        for part, step, found in zip(parts, last, self._do("ids", "take out what has the id of another", task, task.sizes), strict=True):
            left, size = step["documents"] - found["removed"], step["bytes"] - found["bytes"]
            removed = {"duplicate_id": found["removed"]} if found["removed"] else {}
            numbers = dict(found["sampled"])
            gone = {document for _, _, document in step["sample"] if document not in numbers}
            after = without(step, "ids", left, size, gone, removed)
            after["sample"] = [(key, text, numbers[document]) for key, text, document in after["sample"]]
            self._clean[part]["funnel"].append(after)
            with_ids_file(self._work, part).unlink(missing_ok=True)

    def _compared(self) -> list[int]:
        """Bytes that are left of each part when documents that were said before are taken out."""
        return [result["funnel"][-1]["bytes"] for result in self._clean]

    def _compare(self) -> None:
        """Finds what was said before: whole documents, then lines."""
        config = self._config.dedup
        if config is None:
            return
        corpus = Comparison(config, self._work, self._begins, self._documents, tuple(self._left))
        if config.compares:
            self._compare_documents(corpus)
        if config.lines is not None:
            counts = self._do("lines", "hash lines", LinesTask(corpus), self._left)
            ranges = ranges_for(sum(result["lines"] for result in counts))
            self._do("repeated", "find repeated lines", RepeatedTask(corpus, ranges), [1] * ranges, "tasks")

    def _compare_documents(self, corpus: Comparison) -> None:
        """Finds the documents that go; adds them to the funnels of the parts, and writes the report."""
        places = corpus.places
        sketched = self._do("sketch", "sketch documents", SketchTask(corpus), self._left)
        if places.copies:
            self._do("copies", "find exact copies", CopiesTask(corpus), [1] * places.ranges, "tasks")
        sampled_ranges = ranges_for(sum(result["sampled"] for result in sketched))
        if count := (task := BucketTask(corpus, sampled_ranges)).count:
            self._do("bucket", "find documents that may be duplicates", task, [1] * count, "tasks")
        if places.containers:
            self._do(
                "containers", "find documents that may hold others", ContainersTask(corpus, sampled_ranges), [1] * places.ranges, "tasks"
            )
        groups = self._do("group", "group them", GroupTask(corpus), [1], "tasks")[0]["groups"]
        self._do("shingles", "read them again", ShinglesTask(corpus), self._left)
        found = self._do("decide", "compare them", DecideTask(corpus), [1] * groups, "tasks")
        count = len(stretches(places.begins, places.documents))
        settled = self._do("settle", "sort out what is left", SettleTask(corpus, groups), [1] * count, "tasks")
        removed = {reason: {"documents": 0, "bytes": 0} for reason in REASONS}
        for left in (left for result in settled for left in result["parts"]):
            gone = {reason: counts["documents"] for reason, counts in left["removed"].items()}
            steps = self._clean[left["part"]]["funnel"]
            which = set((np.load(removed_file(self._work, left["part"])) - places.begins[left["part"]]).tolist())
            steps.append(without(steps[-1], "dedup", left["documents"], left["bytes"], which, gone))
            for reason, counts in left["removed"].items():
                for what, number in counts.items():
                    removed[reason][what] += number

        def look_up(wanted: set[int]) -> dict[int, tuple[str, Document]]:
            shown = {}
            for part in range(len(self._parts)):
                begin, end = places.span(part)
                if here := [document - begin for document in wanted if begin <= document < end]:
                    for place, document in read_some(clean_file(self._work, part), here).items():
                        shown[begin + place] = (self._parts[part].source, document)
            return shown

        facts = report(found, removed, look_up)
        write_durably(self._work / directory.DATASET / DUPLICATES_FILENAME, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        self._check_left()

    def _check_left(self) -> None:
        """Refuses a source of which comparing whole documents left nothing."""
        for name in self._inputs:
            step = list(self._funnel(name).steps.values())[-1]
            if not step.documents:
                raise self._emptied(name, step.removed)

    def _emptied(self, name: str, gone: Mapping[str, int]) -> UserError:
        """A source of which deduplication left nothing."""
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(gone.items()))
        report = self._work / directory.DATASET / DUPLICATES_FILENAME
        shown = f" ({report} shows pairs)" if report.exists() else ""
        return UserError(
            f"sources.{name} is left without a document: all that it says stands in those of other sources ({counts}){shown}. Remove it "
            "from `sources`; if it is the one to keep, put it before the others; or compare less: see `dedup`."
        )

    def _funnel(self, name: str) -> Funnel:
        """The steps of a source, over its parts."""
        funnel = Funnel([])
        for part, result in zip(self._parts, self._clean, strict=True):
            if part.source == name:
                funnel.add(result["funnel"])
        return funnel

    def _check_documents(self) -> None:
        """Refuses a source that nothing is left of."""
        for name in self._inputs:
            mine = [result for part, result in zip(self._parts, self._clean, strict=True) if part.source == name]
            check_read(name, mine, self._config.max_bad_fraction)
            steps = list(self._funnel(name).steps.values())
            if not steps[-1].documents:
                left = (
                    ", ".join(f"{count:,} {reason}" for step in steps for reason, count in sorted(step.removed.items())) or "it has no rows"
                )
                raise UserError(f"sources.{name} holds no document ({left}). Correct its path or its filters, or remove it from `sources`.")

    def _train_tokenizer(self, left: Sequence[int]) -> Tokenizer:
        """Learns from a uniform sample of the training split over all sources; once for all attempts."""
        config = self._config.tokenizer
        saved = self._work / "tokenizer"
        if (saved / "done").exists():
            return Tokenizer.load(saved)
        documents = sum(result["funnel"][-1]["documents"] for result in self._clean)
        self._do(
            "sample",
            "sample text for the tokenizer",
            SampleTask(self._config, self._work, sum(left), documents, self._begins),
            self._compared(),
        )
        texts = gather(self._config, self._work, len(self._parts))
        if not texts:
            raise UserError("no source holds any training text: every document fell to validation or test")
        size = sum(len(text.encode()) for text in texts)
        with working(f"train a tokenizer of {config.vocab_size:,} ids on {sum(map(len, texts)):,} characters", size) as (advance, _):
            tokenizer = tokenize.train(_counted(texts, advance), config)
        saved.mkdir(exist_ok=True)
        tokenizer.save(saved)
        write_durably(saved / "done", "")
        return tokenizer

    def _check_encoder(self, tokenizer: Tokenizer) -> None:
        """Compares the fast encoder with the reference on the data's own text."""
        texts: list[str] = []
        for name in self._inputs:
            size, share = 0, _EQUALITY_SAMPLE_BYTES // len(self._inputs)
            for document in read_documents(clean_file(self._work, next(n for n, part in enumerate(self._parts) if part.source == name))):
                texts.append(document.text[:_EQUALITY_SAMPLE_BYTES])
                size += len(document.utf8)
                if size >= share:
                    break
        tokenizer.check_equality(texts)
        if tokenizer.fallback_reason is not None:
            say(f"encoding with `tokenizers`, several times slower than tiktoken, because {tokenizer.fallback_reason}")

    def _source(self, name: str, encoded: Sequence[dict[str, Any]], dataset: Path, tokenizer: Tokenizer, dtype: str) -> Source:
        """Puts the parts of a source together, and records it."""
        mine = [n for n, part in enumerate(self._parts) if part.source == name]
        splits = {
            split: assemble(
                dataset / split / name,
                [(self._parts[n].number, part_directory(self._work, n) / split, split_of(encoded[n], split)) for n in mine],
                dtype=dtype,
                chunk_tokens=self._config.chunk_tokens,
            )
            for split in SPLITS
        }
        funnel = self._funnel(name)
        if self._config.dedup is not None and self._config.dedup.lines is not None:
            step = _lines_step(splits, [encoded[n]["lines"] for n in mine])
            funnel.add([step])
            if not step["documents"]:
                raise self._emptied(
                    name, (funnel.steps["dedup"].removed if "dedup" in funnel.steps else Counter()) + Counter(step["removed"])
                )
        funnel.add(
            [
                {
                    "name": "store",
                    "documents": sum(split.documents for split in splits.values()),
                    "bytes": sum(split.bytes for split in splits.values()),
                    "removed": {},
                    "changed": {CUT: cut} if (cut := sum(encoded[n]["cut"] for n in mine)) else {},
                    "sample": [],
                    "base": "",
                }
            ]
        )
        _check_splits(name, splits, self._config)
        source = self._config.sources[name]
        contents = [pair for n in mine for pair in self._clean[n]["files"]]
        sha256s = dict(contents)
        return Source(
            kind=source.kind,
            origin=_origin(source),
            licence=source.licence,
            files=len(self._inputs[name].files),
            input_bytes=self._inputs[name].bytes,
            content_sha256=content_hash(contents),
            path=None if source.kind == "embedded" else self._inputs[name].base,
            funnel=funnel.record(
                functools.cache(lambda text: len(tokenizer.encode(text))),
                1 if tokenizer.one_separator else 2,
                sum(split.tokens for split in splits.values()),
            ),
            splits=splits,
            remote_sha256=self._inputs[name].remote_hash(lambda file: sha256s[file.name]),
        )

    def _gate(self, dataset: Path) -> tuple[GateRecord, ...]:
        """The record of the evaluation sets; hits with both sides go to a file of the dataset."""
        if self._index is None:
            return ()
        assert self._config.decontaminate is not None
        tally = Tally()
        for result in self._clean:
            tally.merge(Tally.from_json(result["gate"]))
        write_durably(dataset / CONTAMINATION_FILENAME, json.dumps(tally.to_json(), indent=1, ensure_ascii=False) + "\n")
        return gate_records(self._index, tally, self._config.decontaminate)

    def _write_rejects(self, dataset: Path) -> None:
        """The samples of what was left out, by source."""
        lines = []
        for name in self._inputs:
            kept = Rejects(self._config.keep_rejects)
            for part, result in zip(self._parts, self._clean, strict=True):
                if part.source == name:
                    kept.add(result["rejects"])
            lines += [json.dumps({"source": name, **entry}, ensure_ascii=False) + "\n" for entry in kept.dump()]
        if lines:
            write_durably(dataset / rejects.FILENAME, "".join(lines))


def _lines_step(splits: dict[str, SourceSplit], results: Sequence[dict[str, int]]) -> dict[str, Any]:
    """What taking out repeated lines left of a source."""
    lines, changed, emptied = (sum(result[name] for result in results) for name in ("lines", "changed", "emptied"))
    return {
        "name": "lines",
        "documents": sum(split.documents for split in splits.values()),
        "bytes": sum(split.bytes for split in splits.values()),
        "removed": {"nothing_left": emptied} if emptied else {},
        "changed": {f"lost {lines:,} lines": changed} if changed else {},
        "sample": [],  # it is counted: nothing follows that removes
        "base": "",
    }


def _counted(texts: Sequence[str], advance: Advance) -> Iterator[str]:
    """The texts, their bytes told as they are taken."""
    for text in texts:
        yield text
        advance(len(text.encode()))


def _files(dataset: Path, sources: dict[str, Source]) -> dict[str, str]:
    """sha256 of every file but the chunks, which have theirs already."""
    chunks = {
        dataset / split / name / chunk.filename
        for name, source in sources.items()
        for split in SPLITS
        for chunk in source.splits[split].chunks
    }
    found = sorted(path for path in dataset.rglob("*") if path.is_file() and path not in chunks and path.name != manifests.FILENAME)
    return {path.relative_to(dataset).as_posix(): file_sha256(path) for path in found}


def _state(config: PrepareConfig, inputs: dict[str, Inputs], given: Tokenizer | None, index: Index | None, made_by: dict[str, str]) -> str:
    """Hash of what two runs must share for one to go on with the other's files."""
    files = {
        name: [(file.name, file.location, file.bytes, file.version, _changed(file.location)) for file in found.files]
        for name, found in inputs.items()
    }
    facts = {
        "config": config.identity(),
        "keep_rejects": config.keep_rejects,
        "files": files,
        "tokenizer": None if given is None else given.hash,
        "gate": None if index is None else index.hash,
        "versions": made_by,
    }
    return canonical_hash(facts)


def _changed(location: str) -> tuple[int, int] | None:
    """Times of a local file's last change, ns: of its content, which anybody can set, and of its entry, which the system alone can."""
    try:
        facts = os.stat(location)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ctime_ns


def _find(config: PrepareConfig) -> dict[str, Inputs]:
    """The files of every source, by name. Some distributions ship Python without its tests: that source is then left out, and said so."""
    inputs: dict[str, Inputs] = {}
    for name, source in config.sources.items():
        found = find(name, source)
        if found.files:
            inputs[name] = found
        else:
            say(f"sources.{name} is left out: this Python's standard library ({found.base}) ships no {source.part}")
    if not inputs:
        raise UserError("no source has any file; give at least one that has (see the lines above)")
    return inputs


def _origin(source: SourceConfig) -> str | None:
    """Of the embedded corpus, the version that decides what it holds goes with it."""
    if source.kind != "embedded":
        return source.origin
    return f"{source.origin or 'Python standard library'} ({platform.python_implementation()} {platform.python_version()})"


def _check_splits(name: str, splits: dict[str, SourceSplit], config: PrepareConfig) -> None:
    """Refuses a source without training text, and says when a held-out split came out empty."""
    documents = sum(split.documents for split in splits.values())
    if not splits["train"].tokens:
        raise UserError(
            f"sources.{name} is left without training text: all of its {documents} documents fell to validation or test. Lower `splits`, "
            "add documents, cut the files into more of them with `separator`, or change `seed`."
        )
    for label, fraction in dataclasses.asdict(config.splits).items():
        if fraction and not splits[label].documents:
            say(
                f"{name}: no document fell to {label} ({documents} documents, fraction {fraction}); "
                "more documents or a larger fraction would give it some"
            )


def _processors() -> int:
    """Those that this process may use, which on a cluster is not all that there are."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
