"""Record: assemble the parts to a dataset, and write the manifest that says where it comes from."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.chunk_writer import assemble_chunks, directories_below
from lit_pretrain.corpus.manifest import SPLITS, Manifest, Source, SourceSplit, TokenizerRecord
from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.evaluation_set import (
    DecontaminationRecord,
    DecontaminationTally,
    decontamination_records,
)
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash, content_hash, file_sha256, sync, write_file
from lit_pretrain.prepare.funnel import (
    CUT,
    END_HELD_OUT,
    REJECTS_FILENAME,
    Rejects,
    StepRecord,
)
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.progress_table import say
from lit_pretrain.prepare.read.reader import reader_class
from lit_pretrain.prepare.stages.compare import all_duplicates
from lit_pretrain.prepare.stages.encode import EncodeResult, encoded_split, part_directory
from lit_pretrain.redaction import without_credentials
from lit_pretrain.tokenizer.tokenizer import Tokenizer

STEP_TOKENS = 4096
"""Tokens that a step of `fit` reads by default: `data.global_batch_tokens` of `TextData`."""
FEW_TOKENS = 1000
"""Held-out tokens below which the loss says little: at a standard deviation of 3 nats per token,
its standard error is a tenth of a nat."""
DECONTAMINATION_FILENAME = "contamination.json"
"""File of the dataset that counts the hits of evaluation sets, and shows both sides of a few."""


def record(
    run: Preparation,
    index: DecontaminationIndex | None,
    tokenizer: Tokenizer,
    dtype: str,
    encoded: Sequence[EncodeResult],
) -> Manifest:
    """Finish the dataset of a run.

    Args:
        run: The run, whose stages have all ended.
        index: Index of the evaluation sets; None if no set is checked.
        tokenizer: The tokenizer that encoded the parts.
        dtype: Type of the stored tokens.
        encoded: Result of encoding each part.

    Returns:
        The manifest, which is written last.

    Raises:
        UserError: A source is left without text.
    """
    config, dataset = run.config, run.dataset
    for path in tokenizer.save(dataset):
        sync(path)
    sources = {name: _source(run, name, encoded, tokenizer, dtype) for name in run.inputs}
    write_rejects(run, run.dataset, encoded)
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
        splits={
            "train": round(1 - splits.validation - splits.test, 12),
            **dataclasses.asdict(splits),
        },
        sources=sources,
        config=identity,
        config_hash=canonical_hash(identity),
        versions=run.versions,
        files=_files(dataset, sources),
        decontamination=_decontamination_records(run, index),
    )
    for path in directories_below(dataset):
        sync(path)
    write_file(dataset / manifests.MANIFEST_FILENAME, manifest.dump())
    if (tokens := manifest.tokens("train")) < STEP_TOKENS:
        say(
            f"the {tokens:,} tokens to train on are less than a step of `fit` reads by default"
            f" ({STEP_TOKENS:,}): add text, or train with smaller data.global_batch_tokens and"
            " data.micro_batch_size"
        )
    return manifest


def _source(
    run: Preparation, name: str, encoded: Sequence[EncodeResult], tokenizer: Tokenizer, dtype: str
) -> Source:
    """Assemble the parts of a source, and record it."""
    mine = run.parts_of(name)
    splits = {
        split: assemble_chunks(
            run.dataset / split / name,
            [
                (
                    run.parts[n].number,
                    part_directory(run.work, n) / split,
                    encoded_split(encoded[n], split),
                )
                for n in mine
            ],
            dtype=dtype,
            chunk_tokens=run.config.chunk_tokens,
        )
        for split in SPLITS
    }
    funnel = run.funnel(name)
    if run.config.dedup is not None and run.config.dedup.lines is not None:
        step = _lines_step(splits, [encoded[n] for n in mine])
        funnel.add([step])
        if not step["documents"]:
            raise all_duplicates(
                run,
                name,
                (funnel.steps["dedup"].removed if "dedup" in funnel.steps else Counter())
                + Counter(step["removed"]),
            )
    changes = {
        CUT: sum(encoded[n]["cut"] for n in mine),
        END_HELD_OUT: sum(encoded[n]["end_held_out"] for n in mine),
        "unspelt": sum(encoded[n].get("unspelt", 0) for n in mine),
    }
    funnel.add(
        [
            StepRecord(
                name="store",
                documents=sum(encoded[n]["documents"] for n in mine),
                bytes=sum(split.bytes for split in splits.values()),
                removed={},
                changed={what: count for what, count in changes.items() if count},
                sample=[],
                base="",
            )
        ]
    )
    _check_splits(name, splits, run)
    source = run.config.sources[name]
    contents = [pair for n in mine for pair in run.clean[n]["files"]]
    sha256s = dict(contents)
    return Source(
        kind=source.kind,
        origin=reader_class(source.kind).describe_origin(source),
        licence=source.licence,
        files=len(run.inputs[name].files),
        input_bytes=run.inputs[name].bytes,
        content_sha256=content_hash(contents),
        # A source without a path, such as the embedded corpus, lies elsewhere on each machine.
        path=(
            None
            if source.path is None and source.hub is None
            else without_credentials(run.inputs[name].base)
        ),
        funnel=funnel.record(
            functools.cache(lambda text: len(tokenizer.encode(text))),
            1 if tokenizer.one_separator else 2,
            sum(split.tokens for split in splits.values()),
        ),
        splits=splits,
        held_out=run.held_out[name],
        remote_sha256=run.inputs[name].remote_hash(lambda file: sha256s[file.name]),
        passed_over=run.inputs[name].passed_over,
    )


def _decontamination_records(
    run: Preparation, index: DecontaminationIndex | None
) -> tuple[DecontaminationRecord, ...]:
    """Record the evaluation sets; a file of the dataset shows both sides of some hits."""
    if index is None:
        return ()
    assert run.config.decontaminate is not None
    tally = DecontaminationTally()
    for result in run.clean:
        tally.merge(DecontaminationTally.from_json(result["decontamination"]))
    write_file(
        run.dataset / DECONTAMINATION_FILENAME,
        json.dumps(tally.to_json(), indent=1, ensure_ascii=False) + "\n",
    )
    return decontamination_records(index, tally, run.config.decontaminate)


def write_rejects(run: Preparation, folder: Path, encoded: Sequence[EncodeResult] = ()) -> None:
    """Write the samples of the documents that each step rejected, by source, into a folder.

    Args:
        run: The run.
        folder: Where rejects.jsonl goes; nothing is written if nothing was rejected.
        encoded: Result of encoding each part, once it has been encoded.
    """
    lines = []
    for name in run.inputs:
        kept = Rejects(run.config.keep_rejects)
        for number in run.parts_of(name):
            kept.add(run.clean[number]["rejects"])
            if encoded:
                kept.add(encoded[number]["lines"]["rejects"])
        lines += [
            json.dumps({"source": name, **entry}, ensure_ascii=False) + "\n"
            for entry in [*kept.dump(), *run.duplicates.get(name, ())]
        ]
    if lines:
        write_file(folder / REJECTS_FILENAME, "".join(lines))


def _lines_step(splits: dict[str, SourceSplit], results: Sequence[EncodeResult]) -> StepRecord:
    """Record what taking out repeated lines left of a source."""
    lines = sum(result["lines"]["lines"] for result in results)
    changed = sum(result["lines"]["changed"] for result in results)
    emptied = sum(result["lines"]["emptied"] for result in results)
    return StepRecord(
        name="lines",
        documents=sum(result["documents"] for result in results),
        bytes=sum(split.bytes for split in splits.values()),
        removed={"nothing_left": emptied} if emptied else {},
        changed={f"lost {lines:,} lines": changed} if changed else {},
        sample=[],  # no later step removes anything, so its tokens are exact
        base="",
    )


def _files(dataset: Path, sources: dict[str, Source]) -> dict[str, str]:
    """Hash every file but the chunks, whose hashes the splits hold."""
    chunks = {
        dataset / split / name / chunk.filename
        for name, source in sources.items()
        for split in SPLITS
        for chunk in source.splits[split].chunks
    }
    found = sorted(
        path
        for path in dataset.rglob("*")
        if path.is_file() and path not in chunks and path.name != manifests.MANIFEST_FILENAME
    )
    return {path.relative_to(dataset).as_posix(): file_sha256(path) for path in found}


def _check_splits(name: str, splits: dict[str, SourceSplit], run: Preparation) -> None:
    """Refuse a source without training text, and say where the text that is held out is unusual."""
    shares = dataclasses.asdict(run.config.splits)
    total = sum(split.bytes for split in splits.values())
    more = f"add text, or raise splits.{{}} (now {{:g}} of {total:,} bytes)"
    if not total and run.config.allow_empty:
        return
    if not splits["train"].tokens:
        raise UserError(
            f"sources.{name} is left without training text: its {total:,} bytes are too few for "
            f"these shares. Add text, or lower `splits` ({shares})."
        )
    for label, fraction in shares.items():
        part = splits[label]
        if fraction and not part.tokens:
            say(f"{name}: no text is held out for {label}; {more.format(label, fraction)}")
        elif fraction and part.tokens < FEW_TOKENS:
            say(
                f"{name}: {label} holds {part.tokens:,} tokens, and a loss over so few says little;"
                f" {more.format(label, fraction)}"
            )
