"""Run list: the runs below a folder, how far they came, and in which options they differ."""

from __future__ import annotations

import itertools
import os
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_pretrain.checkpoint.layout import CHECKPOINTS_FOLDER, checkpoints, step_of
from lit_pretrain.errors import UserError
from lit_pretrain.files import read_sealed_json
from lit_pretrain.plain_data import read_config
from lit_pretrain.redaction import redact
from lit_pretrain.report.run_folder import (
    CONFIG,
    METRICS,
    PROVENANCE,
    SUMMARY,
    MetricLines,
    recorded_seconds,
    scan_metrics,
)
from lit_pretrain.report.run_state import RunState, read_attempt

UNTRAINED = ("import", "merge", "average", "adapter import")
"""Verbs that write a run without training it."""
_LONGEST_REASON = 200


@dataclass(frozen=True)
class ListedRun:
    """Describe a run; figures are None where there are none yet."""

    path: str
    name: str
    """The folder, relative to the one that is listed."""
    stage: str
    """The verb, with an objective or adapter of its own: `fit`, `posttrain DPO`."""
    trained: bool
    """False of a run that was imported or merged."""
    state: RunState
    reason: str | None
    """Why the last attempt ended before its time."""
    steps: int
    max_steps: int
    tokens: float | None
    loss: float | None
    """Of the last validation."""
    train_loss: float | None
    """Of the last window of training."""
    bits_per_byte: float | None
    tokens_per_second: float | None
    """Median over the windows of training."""
    time: float | None
    """Seconds of training and validation."""
    contradicts: tuple[float, float] | None
    """95 % interval of the forecast, if the run has ended outside it."""
    parent: str | None
    started: str | None
    options: Mapping[str, Any]
    """The resolved config."""


class RunList(NamedTuple):
    """The runs below a folder, and what else lies there."""

    runs: list[ListedRun]
    damaged: dict[str, str]
    """Run folders that cannot be read, or not all of them -> why."""
    foreign: list[str]
    """Folders without a run in them."""


def list_runs(folder: Path) -> RunList:
    """Read all runs in a folder and in folders within it; a run folder stands for itself.

    Raises:
        UserError: There is no such folder; `runs`, which the first run makes, may be absent.
    """
    if folder == Path("runs") and not folder.exists():
        return RunList([], {}, [])
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {found}; give a folder of runs, as --runs names it to `fit`")
    places, listed = _search(folder, set()), RunList([], {}, [])
    for path, problem in sorted(places.runs.items()):
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        try:
            if problem is None:
                run, problem = _read_run(path, name)
                listed.runs.append(run)
        except UserError as error:
            problem = str(error).replace(f"{path}{os.sep}", "")
        if problem is not None:
            listed.damaged[name] = textwrap.shorten(problem, _LONGEST_REASON, placeholder=" …")
    listed.foreign.extend(
        sorted(path.relative_to(folder).as_posix() for path in places.foreign if path != folder)
    )
    return listed


class _Places(NamedTuple):
    runs: dict[Path, str | None]
    """Run folders, each with what keeps it from being read."""
    foreign: list[Path]


def _search(folder: Path, seen: set[str]) -> _Places:
    """Find run folders; a branch without any is one foreign folder."""
    seen.add(os.path.realpath(folder))  # a link may lead back
    try:
        names = {child.name: child for child in folder.iterdir()}
    except OSError as error:
        return _Places({folder: f"it cannot be read: {error.strerror or error}"}, [])
    if CONFIG in names:
        return _Places({folder: None}, [])
    if not names.keys().isdisjoint((PROVENANCE, METRICS)):
        return _Places({folder: f"{CONFIG} is missing"}, [])
    runs: dict[Path, str | None] = {}
    foreign: list[Path] = []
    for name, child in names.items():
        if child.is_dir() and not name.startswith(".") and os.path.realpath(child) not in seen:
            below = _search(child, seen)
            runs |= below.runs
            foreign += below.foreign
    return _Places(runs, foreign if runs else [folder])


# ------------------------------------------------------------------ one run


def _read_run(run: Path, name: str) -> tuple[ListedRun, str | None]:
    """Read a run from its folder, and say what of it is damaged and left out.

    Raises:
        UserError: A file of it is damaged.
    """
    resumed = {
        int(file.stem.rpartition("-")[2]): file
        for file in run.glob("config.resume-*.yaml")
        if file.stem.rpartition("-")[2].isdigit()
    }
    file = resumed[max(resumed)] if resumed else run / CONFIG
    config, facts = _read_mapping(file), _read_mapping(run / PROVENANCE)
    model, max_steps = config.get("model"), config.get("max_steps")
    if not isinstance(model, dict) or not isinstance(max_steps, int):
        raise UserError(f"{file} is not the config of a run: model or max_steps is missing")
    # A run that goes on may be writing its last line, which then does not count.
    found = scan_metrics(run) if (run / METRICS).exists() else MetricLines([], 0, torn=False)
    lines = [values for _, values in found.sound]
    train = [line for line in lines if "train/loss" in line]
    held_out = [line for line in lines if "val/loss" in line]
    saved = checkpoints(run)
    steps = max(int(lines[-1]["step"]) if lines else 0, (step_of(saved[-1]) or 0) if saved else 0)
    verb = str(facts.get("verb") or "unknown")
    state, reason = _state(run, steps, trained=verb not in UNTRAINED)
    rates = [line["throughput/tokens_per_second"] for line in train if _RATE in line]
    listed = ListedRun(
        path=str(run),
        name=name,
        stage=_stage(verb, model),
        trained=verb not in UNTRAINED,
        state=state,
        reason=reason,
        steps=steps,
        max_steps=max_steps,
        tokens=next((x[_TOKENS] for x in reversed(lines) if _TOKENS in x), None),
        loss=held_out[-1]["val/loss"] if held_out else None,
        train_loss=train[-1]["train/loss"] if train else None,
        bits_per_byte=held_out[-1].get("val/bits_per_byte") if held_out else None,
        tokens_per_second=statistics.median(rates) if rates else None,
        time=recorded_seconds(lines)[0] if lines else None,
        contradicts=_contradicted(held_out[-1], facts, max_steps) if held_out else None,
        parent=_text(facts.get("parent")),
        started=_text(facts.get("started")),
        options=config,
    )
    return listed, f"{METRICS}: {found.lost} of its lines left out" if found.lost else None


def _contradicted(
    last: Mapping[str, float], facts: Mapping[str, Any], max_steps: int
) -> tuple[float, float] | None:
    """Return the forecast's interval if the last validation ends the run and lies outside.

    Before that the schedule has not ended, and the loss lies above what a run of that length ends
    with.
    """
    low, high = last.get("forecast/low"), last.get("forecast/high")
    actual = last.get(str(facts.get("forecast")))
    if last["step"] < max_steps or low is None or high is None or actual is None:
        return None
    return None if low <= actual <= high else (low, high)


_RATE, _TOKENS = "throughput/tokens_per_second", "progress/tokens"


def _state(run: Path, steps: int, *, trained: bool) -> tuple[RunState, str | None]:
    recorded = read_attempt(run)
    if not trained or (recorded is None and (run / SUMMARY).is_file()):
        return "finished", None
    if recorded is None:
        return ("stopped" if steps else "not started"), None
    state, reason = recorded
    return ("not started" if state == "stopped" and not steps else state), reason


def _stage(verb: str, model: Mapping[str, Any]) -> str:
    words = [verb]
    objective, adapter = model.get("objective"), model.get("adapter")
    path = objective.get("class_path") if isinstance(objective, dict) else objective
    if isinstance(path, str) and not path.endswith("CrossEntropy"):
        words.append(path.rpartition(".")[2])
    if isinstance(adapter, dict):
        kind = "DoRA" if adapter.get("dora") else "LoRA"
        words.append(f"Q{kind}" if adapter.get("quantize") else kind)
    return " ".join(words)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_mapping(file: Path) -> dict[str, Any]:
    """Read config.yaml or provenance.json, and compare it with its digest."""
    if not file.exists():
        raise UserError(f"{file.name} is missing")
    return read_sealed_json(file) if file.suffix == ".json" else read_config(file)


def parent_name(run: ListedRun, folder: Path) -> str | None:
    """Name the parent of a run as the list names runs, or by its folder if it lies elsewhere."""
    if run.parent is None:
        return None
    place = Path(run.parent)  # which may be gone
    if place.parent.name == CHECKPOINTS_FOLDER:
        place = place.parent.parent
    if os.path.realpath(place).startswith(os.path.realpath(folder) + os.sep):
        return os.path.relpath(os.path.realpath(place), os.path.realpath(folder))
    return str(place)


NOT_COMPARED = frozenset(
    {"name", "runs", "local_runs", "resume", "fork", "from", "config", "model.init_from"}
)
"""Options that say where a run lies and what it begins with, which the list shows by itself."""


def differing_options(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Compare resolved configs.

    Where the class of an option differs, its name is the difference, and the settings of one class
    are compared among the configs that have it.

    Args:
        configs: One resolved config a run.

    Returns:
        For each config its own values of the options in which any two differ, by dotted name,
        without the `init_args` of classes; an option that a config lacks is not among them.
    """
    found: list[dict[str, object]] = [{} for _ in configs]
    _compare("", dict(enumerate(map(redact, configs))), found)
    return found


def _compare(name: str, values: Mapping[int, Any], found: list[dict[str, object]]) -> None:
    """Note where the values of one option differ.

    Args:
        name: The option.
        values: Index of the config -> its value; configs without the option are left out.
        found: Filled with the differences.
    """
    first = next(iter(values.values()), None)
    if name in NOT_COMPARED or all(_same(value, first) for value in values.values()):
        return
    groups: dict[str | None, dict[int, Mapping[str, Any]]] = {}
    leaves = False
    for i, value in values.items():
        if isinstance(value, Mapping):
            path = value.get("class_path")
            settings = value.get("init_args") or {} if path is not None else value
            groups.setdefault(path, {})[i] = settings
        else:
            leaves = True
            found[i][name] = value
    if leaves or len(groups) > 1:
        for path, members in groups.items():
            # Of settings without a class, those that differ say enough.
            alike = len({repr(settings) for settings in members.values()}) == 1
            for i in members if path is not None or alike else ():
                found[i][name] = values[i] if path is None else str(path).rpartition(".")[2]
    for members in groups.values():
        for key in dict.fromkeys(key for settings in members.values() for key in settings):
            given = {i: settings[key] for i, settings in members.items() if key in settings}
            inner = f"{name}.{key}" if name else str(key)
            if len(given) < len(members) and inner not in NOT_COMPARED:
                # A run of an earlier version lacks the option: it is off there, as null, 0 and {}.
                for i, value in given.items() if any(given.values()) else ():
                    found[i][inner] = value
            else:
                _compare(inner, given, found)


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same; NaN is the same as itself, and 1 is not true."""
    return repr(one) == repr(other)


def shortened(values: Sequence[Any]) -> list[str]:
    """Write the values of one option for a table.

    A folder that all paths have in common becomes `…`.
    """
    texts = [_written(value) for value in values]
    paths = {text: text.split("/") for text in texts if "/" in text}
    if len(paths) > 1:
        levels = zip(*(parts[:-1] for parts in paths.values()), strict=False)
        common = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, levels)))
        if common:
            short = {text: "/".join(["…", *parts[common:]]) for text, parts in paths.items()}
            texts = [short.get(text, text) for text in texts]
    return [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in texts]


_LONGEST = 48


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        inside = (f"{k}: {_written(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_written, value)) + "]"
    return " ".join(str(value).split())
