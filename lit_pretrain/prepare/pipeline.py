"""The pipeline: find → clean → compare → hold out → train a tokenizer → encode → record."""

from __future__ import annotations

import os
from pathlib import Path

from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash
from lit_pretrain.prepare import directory
from lit_pretrain.prepare.inputs import Inputs, find_inputs
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import say
from lit_pretrain.prepare.record import record
from lit_pretrain.prepare.rerun import refuse_difference
from lit_pretrain.prepare.stages.clean import CleanTask, check_read, decontamination_index_file
from lit_pretrain.prepare.stages.compare import compare_corpus
from lit_pretrain.prepare.stages.encode import EncodeTask
from lit_pretrain.prepare.stages.hold_out import hold_out
from lit_pretrain.prepare.stages.ids import drop_ids
from lit_pretrain.prepare.stages.train_tokenizer import (
    check_encoder,
    load_tokenizer,
    train_tokenizer,
)
from lit_pretrain.prepare.versions import versions
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def prepare(config: PrepareConfig) -> Manifest:
    """Turn raw text into a finished dataset directory, or find that it is there already.

    The result is a function of the config and the input: the same bytes for any engine and number
    of workers, on any day. `config.out` appears whole, at the end. Tasks that finished before a
    fault are kept beside it, and the same call goes on from there.

    Args:
        config: What to prepare.

    Returns:
        The manifest of `config.out`.

    Raises:
        UserError: The config, the input or the disk is at fault; the message says what to do.
    """
    config.validate()
    out = Path(config.out).expanduser()
    if (out / manifests.MANIFEST_FILENAME).exists():
        existing = Manifest.load(out)
        refuse_difference(out, existing, config)
        directory.clear(out)
        say(
            f"{out} is already prepared with this config ({existing.tokens('train'):,} training"
            " tokens); nothing to do"
        )
        return existing
    inputs = _find(config)
    index = (
        None if config.decontaminate is None else DecontaminationIndex.build(config.decontaminate)
    )
    given = load_tokenizer(config.tokenizer)
    directory.check_free(out)
    library_versions = versions(config)
    state = _state(config, inputs, given, index, library_versions)
    with directory.workspace(out, state) as work:
        run = Preparation(config, inputs, work.absolute(), state, library_versions)
        return _run(run, index, given)


def _run(
    run: Preparation, index: DecontaminationIndex | None, tokenizer: Tokenizer | None
) -> Manifest:
    """Run all stages; return the manifest that the last one has written."""
    config, parts, work = run.config, run.parts, run.work
    run.dataset.mkdir(exist_ok=True)
    if index is not None:
        index.save(decontamination_index_file(work))
    run.clean = run.do(
        "clean", "read and clean", CleanTask(config, parts, work), [part.bytes for part in parts]
    )
    _check_documents(run)
    drop_ids(run)
    run.number_documents()
    compare_corpus(run)
    hold_out(run)
    if tokenizer is None:
        tokenizer = train_tokenizer(run)
    check_encoder(run, tokenizer)
    # 65,536 ids fit uint16. Larger vocabularies get int32, for torch has few operations on uint32.
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
    encoded = run.do(
        "encode",
        "encode",
        EncodeTask(config, parts, work, tokenizer, dtype, run.begins),
        run.bytes_left(),
    )
    return record(run, index, tokenizer, dtype, encoded)


def _check_documents(run: Preparation) -> None:
    """Refuse a source of which no document is left."""
    for name in run.inputs:
        check_read(
            name, [run.clean[number] for number in run.parts_of(name)], run.config.max_bad_fraction
        )
        steps = list(run.funnel(name).steps.values())
        if not steps[-1].documents:
            left = (
                ", ".join(
                    f"{count:,} {reason}"
                    for step in steps
                    for reason, count in sorted(step.removed.items())
                )
                or "it has no rows"
            )
            raise UserError(
                f"sources.{name} holds no document ({left}). Correct its path or its filters, or"
                " remove it from `sources`."
            )


def _find(config: PrepareConfig) -> dict[str, Inputs]:
    """Find the files of every source.

    Some distributions ship Python without its tests: that source is left out with a warning.
    """
    inputs: dict[str, Inputs] = {}
    for name, source in config.sources.items():
        found = find_inputs(name, source)
        if found.files:
            inputs[name] = found
        else:
            say(
                f"sources.{name} is left out: this Python's standard library ({found.base}) ships"
                f" no {source.part}"
            )
    if not inputs:
        raise UserError("no source has any file; give at least one that has (see the lines above)")
    return inputs


def _state(
    config: PrepareConfig,
    inputs: dict[str, Inputs],
    given: Tokenizer | None,
    index: DecontaminationIndex | None,
    library_versions: dict[str, str],
) -> str:
    """Hash what two runs must share for one to go on with the other's files."""
    files = {
        name: [
            (file.name, file.location, file.bytes, file.version, _last_change(file.location))
            for file in found.files
        ]
        for name, found in inputs.items()
    }
    facts = {
        "config": config.identity(),
        "keep_rejects": config.keep_rejects,
        "files": files,
        "tokenizer": None if given is None else given.hash,
        "evaluation_sets": None if index is None else index.hash,
        "versions": library_versions,
    }
    return canonical_hash(facts)


def _last_change(location: str) -> tuple[int, int] | None:
    """Read when a local file last changed, in ns; None for a remote one.

    Anybody can set the time of its content, but only the system that of its entry.
    """
    try:
        status = os.stat(location)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns
