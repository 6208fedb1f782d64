"""Read the runs that a law is fitted to, from run folders or from CSV and JSON tables."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError, did_you_mean, warn
from lit_pretrain.files import read_sealed_json
from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters
from lit_pretrain.plain_data import parse_json, read_config
from lit_pretrain.report.run_folder import CONFIG, METRICS, PROVENANCE, no_run, read_metrics
from lit_pretrain.scaling.runs import Counts, Record, Runs, Unit


def read_folders(paths: Sequence[Path], counts: Counts) -> list[Record]:
    """Read runs from their folders; a folder of run folders stands for those that a law describes.

    What else lies in such a folder is left out with a warning: runs that are not finished, and what
    was imported, merged, averaged or trained on from another run. Where such a run is named itself,
    it is refused.

    N is counted from the config. D is the tokens that the run read, repeats included, with its
    distinct tokens as recorded. C is the run's own FLOPs with attention. The loss is that of the
    last validation, in nats per token and in bits per byte.

    Raises:
        UserError: A folder holds no run, a run that is named is no run from first weights to the
            end of its schedule, or none of a folder is.
    """
    found = [(run, path) for path in paths for run in _runs_at(path)]
    read: list[Path] = []
    records: list[Record] = []
    left_out: dict[Path, list[str]] = {}
    for run, path in found:
        if run.resolve() in {other.resolve() for other in read}:
            raise UserError(f"{run} is the same run as one that was named before; leave one out")
        read.append(run)
        try:
            records.append(_read(run, counts))
        except UserError as error:
            if run == path:
                raise
            left_out.setdefault(path, []).append(str(error))
    for path, reasons in left_out.items():
        said = "".join(f"\n  {reason}" for reason in reasons)
        if len(reasons) == sum(path == other for _, other in found):
            raise UserError(f"{path} holds no run that a law can be fitted to:{said}")
        warn(f"{path}: {len(reasons)} of its runs are left out:{said}")
    return records


def _runs_at(path: Path) -> list[Path]:
    if path.is_file():
        raise UserError(f"{path} is not a folder; give tables with --data")
    if (path / CONFIG).is_file():
        return [path]
    found = sorted(file.parent for file in path.glob(f"*/{CONFIG}") if file.is_file())
    if not found:
        raise no_run(path, f"it holds no {CONFIG}, and no folder in it does")
    return found


def _read(run: Path, counts: Counts) -> Record:
    """Read one finished run from its folder."""
    facts = _load(run / PROVENANCE) if (run / PROVENANCE).is_file() else {}
    if (verb := facts.get("verb", "fit")) != "fit":
        raise UserError(
            f"{run} was written by `lit_pretrain {verb}`; a law describes runs of `fit`, from first"
            " weights on: leave it out"
        )
    if facts.get("parent") is not None:
        raise UserError(
            f"{run} goes on from {facts['parent']}, whose tokens are not among its own; a law"
            " describes runs from first weights on: leave it out"
        )
    config = _load(run / CONFIG)
    try:
        net, max_steps = dict(config["model"]["net"]), int(config["max_steps"])
        scaling = net.get("rope_scaling")
        shape = ModelConfig(**{**net, "rope_scaling": RopeScaling(**scaling) if scaling else None})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run / CONFIG} is not the config of a run ({type(error).__name__}: {error}); leave"
            f" {run} out"
        ) from None
    held_out = [line for line in read_metrics(run) if "val/loss" in line]
    if not held_out:
        raise UserError(
            f"{run} has no validation in {METRICS} yet; finish it (`lit_pretrain fit ... --resume"
            " auto`) or leave it out"
        )
    last = held_out[-1]
    if last["step"] != max_steps:
        raise UserError(
            f"{run} is at step {last['step']:,} of {max_steps:,}: before the schedule has ended its"
            " loss is no final loss; finish it (`--resume auto`) or leave it out"
        )
    return Record(
        label=str(run),
        losses={"nats": float(last["val/loss"]), "bits_per_byte": float(last["val/bits_per_byte"])},
        n=float(count_parameters(shape).counted(counts)),
        d=float(last["progress/tokens"]),
        c=float(last["progress/flops"]),
        unique=None if facts.get("unique_tokens") is None else float(facts["unique_tokens"]),
        vocabulary=facts.get("tokenizer_hash"),
    )


def _load(path: Path) -> dict[str, Any]:
    return read_sealed_json(path) if path.suffix == ".json" else read_config(path)


# Tables, whatever their columns are called.

QUANTITIES = ("n", "d", "c", "loss", "unique", "unit", "group")
"""Quantities that `--columns` may name."""
_NAMES = {
    "n": "n params parameters n_params num_params n_parameters num_parameters model_size size",
    "d": "d tokens n_tokens num_tokens training_tokens train_tokens",
    "c": "c flop flops compute compute_budget budget training_flop training_flops total_flops",
    "nats": "loss final_loss val_loss validation_loss test_loss nats nats_per_token",
    "bits_per_byte": "bits_per_byte bpb val_bits_per_byte val_bpb",
    "unique": "unique unique_tokens",
    "unit": "unit loss_unit",
    "group": "",  # only where it is named: tables call many things so
}
_UNITS: dict[str, Unit] = {
    "nats": "nats",
    "nats_per_token": "nats",
    "bits_per_byte": "bits_per_byte",
    "bpb": "bits_per_byte",
}


def read_table(
    path: Path, columns: Mapping[str, str] | None = None, *, unit: Unit | None = None
) -> list[Record]:
    """Read the runs of a table, one per row.

    Args:
        path: .csv with a header, .jsonl with an object per line, or .json with a list of objects.
        columns: Names of columns by quantity (QUANTITIES). Other columns are found by their usual
            names.
        unit: Unit of the loss column, where neither its name nor the file says it; nats per token
            by default.

    Raises:
        UserError: The file cannot be read, a column is missing or ambiguous, or a value is not a
            number.
    """
    rows = _rows(path)
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    chosen = _choose(path, header, dict(columns or {}), unit)
    records = []
    for where, row in rows:
        values = {
            quantity: _number(where, name, row.get(name))
            for quantity, name in chosen.items()
            if quantity not in ("unit", "group")
        }
        losses: dict[Unit, float] = {}
        for known in ("nats", "bits_per_byte"):
            if (value := values.get(known)) is not None:
                losses[known] = value
        if "unit" in chosen:
            losses = (
                {_unit(where, row.get(chosen["unit"])): next(iter(losses.values()))}
                if losses
                else {}
            )
        if not losses:
            wanted = [chosen[known] for known in ("nats", "bits_per_byte") if known in chosen]
            raise UserError(
                f"{where}: no loss in column {' or '.join(map(repr, wanted))}; leave the row out"
            )
        records.append(
            Record(
                where,
                losses,
                values.get("n"),
                values.get("d"),
                values.get("c"),
                values.get("unique"),
                _group(where, chosen, row),
            )
        )
    return records


def write_table(runs: Runs) -> str:
    """Format runs as a .csv that `read_table` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "run",
            "n",
            "d",
            "c",
            *([] if runs.unique is None else ["unique"]),
            "loss" if runs.unit == "nats" else runs.unit,
            *([] if runs.groups is None else ["group"]),
        ]
    )
    columns = [runs.n, runs.d, runs.c, *([] if runs.unique is None else [runs.unique]), runs.loss]
    names = [()] * len(runs) if runs.groups is None else [(name,) for name in runs.groups]
    for label, name, *values in zip(runs.labels, names, *columns, strict=True):
        writer.writerow([label, *(f"{value:.10g}" for value in values), *name])
    return text.getvalue()


def parse_columns(text: str) -> dict[str, str]:
    """Parse `n=params,loss=final loss` into columns by quantity."""
    found = {}
    for part in filter(None, text.split(",")):
        quantity, equals, name = part.partition("=")
        quantity = quantity.strip().lower()
        if not equals or quantity not in QUANTITIES:
            raise UserError(
                f"--columns {text}: {part!r} is not QUANTITY=COLUMN with a quantity out of"
                f" {', '.join(QUANTITIES)}"
            )
        found[quantity] = name.strip()
    return found


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read every row as (file and line, values by column)."""
    if path.suffix not in (".csv", ".jsonl", ".json"):
        raise UserError(f"--data {path}: a .csv, .jsonl or .json file is needed")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--data {path} is not UTF-8: {error}") from None
    rows: list[tuple[str, Any]]
    if path.suffix == ".csv":
        reader = csv.DictReader(text.splitlines())
        rows = []
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(
                    f"{where}: the row has not the {len(reader.fieldnames or ())} fields of the"
                    " header"
                )
            rows.append((where, row))
    elif path.suffix == ".jsonl":
        lines = (
            (number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()
        )
        rows = [
            (f"{path}:{number}", parse_json(line, f"{path}:{number}")) for number, line in lines
        ]
    else:
        items = parse_json(text, str(path))
        if not isinstance(items, list):
            raise UserError(
                f"--data {path}: a list of objects is needed, found {type(items).__name__}"
            )
        rows = [(f"{path}: item {number}", item) for number, item in enumerate(items, start=1)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: an object with a value per column is needed, found {type(row).__name__}"
            )
    if not rows:
        raise UserError(f"--data {path} has no rows")
    return rows


def _choose(
    path: Path, header: Sequence[str], columns: dict[str, str], unit: Unit | None
) -> dict[str, str]:
    """Find the column of every quantity in the table; the loss is keyed by its unit."""
    for quantity, name in columns.items():
        if name not in header:
            hint = did_you_mean(name, header)
            raise UserError(
                f"--columns {quantity}={name}: {path} has no column {name!r}.{hint} Columns:"
                f" {', '.join(map(repr, header))}"
            )
    chosen = {quantity: name for quantity, name in columns.items() if quantity != "loss"}
    if "loss" in columns:
        chosen[_unit_of_name(columns["loss"]) or unit or "nats"] = columns["loss"]
    sizes = [quantity for quantity in ("n", "d", "c") if quantity in columns]
    for quantity, names in _NAMES.items():
        given = quantity in columns or ("loss" in columns and quantity in ("nats", "bits_per_byte"))
        matches = [name for name in header if _plain(name) in names.split()]
        if given or not matches or (quantity in ("n", "d", "c") and len(sizes) > 1):
            continue
        if len(matches) > 1:
            key = "loss" if quantity in ("nats", "bits_per_byte") else quantity
            raise UserError(
                f"{path}: {', '.join(map(repr, matches))} could each be {key}; say which with"
                f" --columns {key}=NAME"
            )
        chosen[quantity] = matches[0]
    missing = (
        []
        if len({"n", "d", "c"} & chosen.keys()) > 1
        else ["two of n (parameters), d (tokens), c (FLOPs)"]
    )
    if not {"nats", "bits_per_byte"} & chosen.keys():
        missing.append("loss")
    if missing:
        raise UserError(
            f"{path}: no column is known as {' and '.join(missing)}; say which they are with"
            f" --columns n=…,d=…,c=…,loss=… Columns: {', '.join(map(repr, header))}"
        )
    return chosen


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _unit_of_name(name: str) -> Unit | None:
    return "bits_per_byte" if _plain(name) in _NAMES["bits_per_byte"].split() else None


def _unit(where: str, value: Any) -> Unit:
    unit = _UNITS.get(_plain(str(value)))
    if unit is None:
        raise UserError(
            f"{where}: the unit of the loss is {value!r}; it must be nats or bits_per_byte"
        )
    return unit


def _group(where: str, chosen: Mapping[str, str], row: Mapping[str, Any]) -> str | None:
    if "group" not in chosen:
        return None
    value = row.get(chosen["group"])
    if value is None or value == "":
        raise UserError(
            f"{where}: no group in column {chosen['group']!r}; name one, or leave it out"
        )
    return str(value)


def _number(where: str, column: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(f"{where}: {column} is {value!r}, not a number")
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{where}: {column} is {value!r}, not a number") from None
