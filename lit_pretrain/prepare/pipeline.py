"""The pipeline: find → clean → compare → hold out → learn a tokenizer → encode → record."""

from __future__ import annotations

import os
from pathlib import Path

from lit_pretrain.corpus import manifest as manifests
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.decontaminate.index import Index
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash
from lit_pretrain.prepare import directory, tokenize
from lit_pretrain.prepare.hold_out import hold_out
from lit_pretrain.prepare.inputs import Inputs, find_inputs
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.progress_table import say
from lit_pretrain.prepare.record import record
from lit_pretrain.prepare.rerun import refuse_difference
from lit_pretrain.prepare.stages.clean import CleanTask, check_read, gate_file
from lit_pretrain.prepare.stages.compare import compare_corpus, drop_ids
from lit_pretrain.prepare.stages.encode import EncodeTask
from lit_pretrain.prepare.stages.train_tokenizer import check_encoder, learn_tokenizer
from lit_pretrain.prepare.versions import versions
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def prepare(config: PrepareConfig) -> Manifest:
    """Turns raw text into a finished dataset directory, or finds that it is there already.

    The result is a function of the config and the input: the same bytes for any engine and number
    of workers, on any day. `config.out` appears at the end, as a whole. Tasks that finished before
    a fault are kept beside it, and the same call goes on from there.

    Args:
        config: What to prepare.

    Returns:
        The manifest of `config.out`.

    Raises:
        UserError: Something in the config, the input or the disk stands in the way; the message
            says what to do.
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
    index = None if config.decontaminate is None else Index.build(config.decontaminate)
    given = tokenize.load_tokenizer(config.tokenizer)
    directory.check_free(out)
    made_by = versions(config)
    state = _state(config, inputs, given, index, made_by)
    with directory.workspace(out, state) as work:
        return _run(Preparation(config, inputs, work.absolute(), state, made_by), index, given)


def _run(run: Preparation, index: Index | None, tokenizer: Tokenizer | None) -> Manifest:
    """All stages; returns the manifest that was written."""
    config, parts, work = run.config, run.parts, run.work
    run.dataset.mkdir(exist_ok=True)
    if index is not None:
        index.save(gate_file(work))
    run.clean = run.do(
        "clean", "read and clean", CleanTask(config, parts, work), [part.bytes for part in parts]
    )
    _check_documents(run)
    drop_ids(run)
    run.number_documents()
    compare_corpus(run)
    hold_out(run)
    if tokenizer is None:
        tokenizer = learn_tokenizer(run)
    check_encoder(run, tokenizer)
    # 65,536 ids fit uint16; above, int32, for torch has few operations on uint32.
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
    encoded = run.do(
        "encode",
        "encode",
        EncodeTask(config, parts, work, tokenizer, dtype, run.begins),
        run.bytes_left(),
    )
    return record(run, index, tokenizer, dtype, encoded)


def _check_documents(run: Preparation) -> None:
    """Refuses a source that nothing is left of."""
    for name in run.inputs:
        check_read(
            name, [run.clean[number] for number in run.of(name)], run.config.max_bad_fraction
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
    """The files of every source, by name. Some distributions ship Python without its tests:
    that source is then left out, and said so.
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
    index: Index | None,
    made_by: dict[str, str],
) -> str:
    """Hash of what two runs must share for one to go on with the other's files."""
    files = {
        name: [
            (file.name, file.location, file.bytes, file.version, _changed(file.location))
            for file in found.files
        ]
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
    """Times of a local file's last change, ns: of its content, which anybody can set, and of
    its entry, which the system alone can.
    """
    try:
        facts = os.stat(location)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ctime_ns
