"""Contenders: the configs that are compared, each with the runs that differ in its seeds alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.runs.run_list import ListedRun, differing_options, list_runs
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import no_run, read_provenance

if TYPE_CHECKING:
    from lit_pretrain.cli.command.load_run import Weights
    from lit_pretrain.compare.comparison import DocumentComparison
    from lit_pretrain.compare.equal_budgets import EqualBudget

SEEDS = ("model.seed", "data.seed", "seed_everything")
"""Options in which runs of one config may differ, as `differing_options` names them."""


@dataclass(frozen=True)
class Entry:
    """One run, at one of its checkpoints."""

    name: str
    run: ListedRun
    checkpoint: Path
    step: int


@dataclass(frozen=True)
class Contender:
    """One config, and its runs."""

    name: str
    entries: Sequence[Entry]
    seeds: Sequence[tuple[object, ...]]
    """Of each run, what tells it from the others."""


@dataclass(frozen=True)
class RunComparison:
    """Everything that a comparison has found."""

    contenders: list[Contender]
    """The baseline first."""
    differs: list[dict[str, object]]
    """Of each contender, its values of the options in which they differ, seeds left out."""
    budgets: list[EqualBudget]
    """The losses of each contender are means over its seeds."""
    compared: DocumentComparison | None
    notes: list[str]


# ------------------------------------------------------------------ what is compared


def find_contenders(
    places: Sequence[str], *, baseline: str | None, checkpoint: str
) -> list[Contender]:
    """Find the runs, and gather those that differ in seeds alone.

    Raises:
        UserError: A place is no run, or there are not two of them.
    """
    entries = _entries(places, checkpoint)
    first = 0
    if baseline is not None:
        wanted = {os.path.realpath(entry.checkpoint) for entry in _entries([baseline], checkpoint)}
        found = [i for i, e in enumerate(entries) if os.path.realpath(e.checkpoint) in wanted]
        if len(wanted) != 1:
            raise UserError(f"--baseline {baseline} holds {len(wanted)} runs; name one of them")
        if not found:
            entries = [*_entries([baseline], checkpoint), *entries]
            found = [0]
        first = found[0]
    if len(entries) < 2:
        raise UserError(
            f"a comparison needs two runs, found {len(entries)} in {' '.join(places)}: lit_pretrain"
            " compare RUN RUN"
        )
    names = _names(entries)
    entries = [Entry(n, e.run, e.checkpoint, e.step) for n, e in zip(names, entries, strict=True)]
    entries = [entries[first], *entries[:first], *entries[first + 1 :]]
    return _gather(entries)


def best_run(places: Sequence[str]) -> str | None:
    """Find a run of the config whose last recorded validation is best, as a mean over its seeds.

    None where no run has recorded one.
    """
    found = []
    for contender in _gather(_entries(places, "last")):
        losses = [e.run.loss for e in contender.entries if e.run.loss is not None]
        if losses:
            found.append((sum(losses) / len(losses), contender.entries[0].run.path))
    return min(found)[1] if found else None


def _entries(places: Sequence[str], checkpoint: str) -> list[Entry]:
    from lit_pretrain.checkpoint.layout import artefact_folder, resolve, step_of

    found = []
    for place in places:
        path = Path(place)
        if path.is_dir() and step_of(path) is None:
            listed = list_runs(path)
            for name, why in listed.damaged.items():
                raise UserError(f"{path}: {name} is damaged: {why}")
            if not listed.runs:
                raise no_run(place, "no run lies below it, either")
            runs = [(run, resolve(run.path, which=checkpoint)) for run in listed.runs]
        else:
            one = resolve(place)
            runs = [(list_runs(artefact_folder(one)).runs[0], one)]
        found += [Entry("", run, file, step_of(file) or run.steps) for run, file in runs]
    return found


def _names(entries: Sequence[Entry]) -> list[str]:
    """Name every entry by the shortest end of its path that no other has; twins get a number."""
    paths = [
        [*Path(os.path.abspath(e.run.path)).parts, *([f"step {e.step}"] if twin else [])]
        for e in entries
        for twin in [sum(o.run.path == e.run.path for o in entries) > 1]
    ]
    found = []
    for i, parts in enumerate(paths):
        others = [other for other in paths if other != parts]
        least = 2 if parts[-1].startswith("step ") else 1
        length = next(
            n
            for n in range(least, len(parts) + 1)
            if n == len(parts) or all(other[-n:] != parts[-n:] for other in others)
        )
        twins = sum(other == parts for other in paths[:i])
        found.append("/".join(parts[-length:]) + (f" ({twins + 1})" if twins else ""))
    return found


def _gather(entries: Sequence[Entry]) -> list[Contender]:
    """Gather runs that differ in nothing but seeds, unless that leaves nothing to compare."""
    options = differing_options([entry.run.options for entry in entries])
    groups: dict[str, list[int]] = {}
    for i, differs in enumerate(options):
        rest = {name: value for name, value in differs.items() if name not in SEEDS}
        groups.setdefault(repr((sorted(rest.items()), entries[i].step)), []).append(i)
    seeds = [tuple(differs.get(name) for name in SEEDS) if differs else () for differs in options]
    found = []
    for members in groups.values():
        distinct = len({repr(seeds[i]) for i in members}) == len(members)
        together = [members] if distinct and len(groups) > 1 else [[i] for i in members]
        for some in together:
            name = _common_name([entries[i].name for i in some])
            found.append(Contender(name, [entries[i] for i in some], [seeds[i] for i in some]))
    return found


def _common_name(names: Sequence[str]) -> str:
    """Name a config by its first run, without the seed that a sweep has put into the name."""
    if len(names) == 1:
        return names[0]
    rest = {",".join(p for p in name.split(",") if not p.startswith("seed=")) for name in names}
    return f"{rest.pop() or names[0] if len(rest) == 1 else names[0]} ({len(names)} seeds)"


def config_differences(contenders: Sequence[Contender]) -> list[dict[str, object]]:
    """Tell in which options the configs differ, seeds of one config left out."""
    found = differing_options([contender.entries[0].run.options for contender in contenders])
    several = any(len(contender.entries) > 1 for contender in contenders)
    return [{n: v for n, v in differs.items() if not (several and n in SEEDS)} for differs in found]


# ------------------------------------------------------------------ what runs have recorded


def budgets_of(contenders: Sequence[Contender]) -> tuple[list[EqualBudget], list[str]]:
    """Compare what the runs have recorded at equal steps, tokens, FLOPs and seconds."""
    from lit_pretrain.compare.equal_budgets import equal_budgets, read_curve

    curves = [[read_curve(Path(e.run.path)) for e in c.entries] for c in contenders]
    flat = [curve for some in curves for curve in some]
    known = [curve for curve in flat if curve is not None]
    if len(known) < len(flat):
        names = [
            e.name
            for c, some in zip(contenders, curves, strict=True)
            for e, curve in zip(c.entries, some, strict=True)
            if curve is None
        ]
        return [], [f"no losses at equal budgets: {', '.join(names)} has recorded no validation"]
    entries = [e for c in contenders for e in c.entries]
    kinds = {(_objective(e), "class_path" in (e.run.options.get("data") or {})) for e in entries}
    if len(kinds) > 1:
        return [], ["no losses at equal budgets: the runs minimise different things"]
    hashes = [_data_hashes(e) for e in entries]
    notes = []
    if len({manifest for manifest, _ in hashes}) > 1:
        notes.append("the runs have validated on different data: recorded losses differ for that")
    bits = len({tokenizer for _, tokenizer in hashes}) > 1
    found, sizes = [], [len(some) for some in curves]
    for budget in equal_budgets(known, bits=bits):
        losses, rest = [], list(budget.losses)
        for size in sizes:
            losses.append(sum(rest[:size]) / size)
            rest = rest[size:]
        found.append(replace(budget, losses=losses))
    return found, notes


def training_differences(contenders: Sequence[Contender]) -> dict[str, float]:
    """Compare training losses of configs with the baseline's, where both read the same rows.

    Losses of different objectives are not compared.
    """
    from lit_pretrain.compare.equal_budgets import read_curve, training_difference

    base = contenders[0].entries[0]
    found = {}
    first = read_curve(Path(base.run.path))
    for contender in contenders[1:]:
        other = contender.entries[0]
        curve = read_curve(Path(other.run.path))
        if first is None or curve is None:  # a run that was not trained has read no rows, either
            continue
        if _rows(base) != _rows(other) or _objective(base) != _objective(other):
            continue
        difference = training_difference(curve, first)
        if difference is not None:
            found[contender.name] = difference
    return found


def _rows(entry: Entry) -> Mapping[str, Any]:
    """Collect what decides the rows of every step: what a resume compares of the data."""
    from lit_pretrain.checkpoint.resume_contract import SKIPS, contract_of

    manifest, tokenizer = _data_hashes(entry)
    contract = contract_of(
        entry.run.options, manifest_hash=str(manifest), tokenizer_hash=str(tokenizer)
    )
    return {k: v for k, v in contract.items() if k.startswith("data.") or k == SKIPS}


def _objective(entry: Entry) -> str:
    objective = entry.run.options["model"].get("objective")
    path = objective.get("class_path") if isinstance(objective, Mapping) else objective
    return str(path).rpartition(".")[2]


def _data_hashes(entry: Entry) -> tuple[object, object]:
    """Read the identity of a run's data and of its tokenizer."""
    facts = read_provenance(Path(entry.run.path))
    return facts.get("manifest_hash"), facts.get("tokenizer_hash")


# ------------------------------------------------------------------ held-out documents


def measure(
    contenders: Sequence[Contender],
    *,
    data: str | None,
    split: str,
    tokens: int | None,
    seq_len: int | None,
    resamples: int,
    seed: int,
    device: str,
    weights: Weights,
) -> tuple[DocumentComparison, list[str]]:
    """Measure all runs on the same documents, and compare them in pairs.

    Raises:
        UserError: There are no such documents, or a network reads no rows of that length.
    """
    from lit_pretrain.cli.command.load_run import load_run
    from lit_pretrain.compare.comparison import Candidate, compare
    from lit_pretrain.compare.held_out_documents import document_losses, held_out_documents
    from lit_pretrain.interface import OpenDataset

    entries = [entry for contender in contenders for entry in contender.entries]
    opened = OpenDataset(data if data is not None else _text_of(contenders[0].entries[0]))
    length = seq_len if seq_len is not None else min(_row_length(entry) for entry in entries)
    _check_length(entries, length)
    documents = held_out_documents(opened, split, tokens)
    measured: dict[Path, Any] = {}
    for entry in entries:
        if entry.checkpoint not in measured:
            net, tokenizer, _ = load_run(str(entry.checkpoint), "last", device, weights=weights)
            measured[entry.checkpoint] = document_losses(
                net, tokenizer, documents, seq_len=length, label=entry.name
            )
            del net  # one network is in memory at a time
    candidates = [
        Candidate(c.name, c.seeds, [measured[e.checkpoint] for e in c.entries]) for c in contenders
    ]
    found = compare(documents, candidates, resamples=resamples, seed=seed)
    return found, _notes(contenders, found, opened.manifest.hash)


def _text_of(entry: Entry) -> str:
    data = entry.run.options.get("data") or {}
    if "class_path" in data or not data.get("path"):
        raise UserError(
            f"{entry.name} has not trained on prepared text, whose held-out documents could be"
            " read; name prepared text with --data, or compare what the runs have recorded with"
            " --documents false"
        )
    return str(data["path"])


def _row_length(entry: Entry) -> int:
    options = entry.run.options
    data = options.get("data") or {}
    data = data.get("init_args") or data
    longest = int(options["model"]["net"]["max_seq_len"])
    found = data.get("seq_len")
    return min(int(found), longest) if isinstance(found, int) else longest


def _check_length(entries: Sequence[Entry], length: int) -> None:
    for entry in entries:
        longest = int(entry.run.options["model"]["net"]["max_seq_len"])
        if length > longest:
            raise UserError(
                f"--seq_len {length}: {entry.name} reads model.net.max_seq_len={longest} tokens at"
                " most"
            )


def _notes(
    contenders: Sequence[Contender], found: DocumentComparison, manifest_hash: str
) -> list[str]:
    """Collect what a reader has to know of these intervals."""
    notes = []
    entries = [entry for contender in contenders for entry in contender.entries]
    if found.blocks:
        notes.append(
            f"few documents in {', '.join(found.blocks)}: their intervals come from blocks of 2 kB,"
            " which are not independent, and are too narrow"
        )
    if all(len(contender.entries) == 1 for contender in contenders):
        notes.append(
            "one run of each config: the intervals hold for these networks; another seed moves the"
            " loss as well (several runs that differ in the seed alone are averaged)"
        )
    foreign = [e.name for e in entries if _data_hashes(e)[0] != manifest_hash]
    if foreign:
        notes.append(
            f"trained on other data: {', '.join(foreign)}; whether they have read these documents"
            " in training is not known"
        )
    for one, other in itertools.pairwise(contenders):
        steps = [contender.entries[0].step for contender in (one, other)]
        if steps[0] != steps[1]:
            notes.append(
                "the networks were not trained for the same number of steps:"
                f" {', '.join(f'{c.name} {c.entries[0].step:,}' for c in contenders)}"
            )
            break
    return notes
