"""Inspection: the views `order` and `run` of `lit_pretrain inspect`; none needs torch."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.checkpoint.digests import damage
from lit_pretrain.checkpoint.layout import artefact_folder, best_record, checkpoints, step_of
from lit_pretrain.checkpoint.lineage import Lineage, StageRecord, source_lines
from lit_pretrain.checkpoint.remote_run import fetched
from lit_pretrain.errors import UserError
from lit_pretrain.files import is_remote, read_sealed_json
from lit_pretrain.plain_data import read_config
from lit_pretrain.report.rewinds import read_rewinds
from lit_pretrain.report.run_folder import (
    CONFIG,
    METRICS,
    PROVENANCE,
    no_run,
    read_metrics,
    read_provenance,
    read_skips,
)
from lit_pretrain.skips import Skips
from lit_pretrain.step_size import counted
from lit_pretrain.transfer import Transfer


def order(
    run: str, step: int = 0, steps: int = 1, path: str | None = None, json_lines: bool = False
) -> str:
    """Show which documents of which sources an optimizer step reads.

    Args:
        run: A run folder, or a YAML file with the `data` of a run.
        step: The optimizer step, counted from 0.
        steps: How many steps from there on.
        path: The dataset's directory, if it has moved since.
        json_lines: One JSON object per row instead of a table.
    """
    from lit_pretrain.corpus.chunk_reader import (
        full_origin,  # numpy and what else `--help` need not wait for
    )
    from lit_pretrain.corpus.manifest import Manifest
    from lit_pretrain.data.text.mixture import order_of
    from lit_pretrain.data.text.order import Tracer

    if step < 0:
        raise UserError(f"--step={step}: the first step is 0")
    if steps < 1:
        raise UserError(f"--steps={steps} must be at least 1")
    run = _here(run)
    data: dict[str, Any] = _entry(run, "data", dict)
    if "class_path" in data:
        raise UserError(
            f"{run} reads rows by {data['class_path']}: `lit_pretrain inspect batch --config"
            f" {Path(run) / CONFIG} --step {step}` shows them"
        )
    if not data:
        raise UserError(f"{run} was not trained here, so no step of it has read any data")
    where = Path(path or data["path"])
    if "://" in str(path or data["path"]):
        raise UserError(
            f"{path or data['path']} is remote; name a local copy of the dataset with --path"
        )
    manifest = Manifest.load(where)
    skips = Skips.parse(_config(run).get("skip_steps")) | read_skips(Path(run))
    plan = order_of(manifest, data, skips)
    batch = BatchSizes.of(data, skips).over(data["seq_len"])
    tracer = Tracer(where, manifest, plan, seq_len=data["seq_len"])
    lines = []
    for s in range(step, step + steps):
        begin = batch.first(s)
        if not json_lines:
            place = f", which is step {skips.place(s)} without skips" if skips else ""
            lines.append(f"step {s}: samples {begin} to {begin + batch.size(s) - 1}{place}")
        for row in tracer.rows(range(begin, begin + batch.size(s))):
            names = [
                full_origin(manifest.sources[row.source], document.origin)
                for document in row.documents
            ]
            if json_lines:
                facts = {
                    "step": s,
                    "place": skips.place(s),
                    "sample": row.sample,
                    "source": row.source,
                    "epoch": row.epoch,
                    "row": row.block,
                }
                lines.append(
                    json.dumps(
                        facts
                        | {
                            "chunk": row.chunk,
                            "first_token": row.first_token,
                            "documents": names,
                        }
                    )
                )
            else:
                lines.append(
                    f"  sample {row.sample:>8}  {row.source:<12} epoch {row.epoch}  row"
                    f" {row.block:>7}  {row.chunk}+{row.first_token}  " + "; ".join(names)
                )
    return "\n".join(lines) + "\n"


def run(run: str, verify: bool = False) -> str:
    """Show what a run was, how it ended, and the runs, folders and raw sources it came from.

    Args:
        run: The run's folder, or one of its checkpoints.
        verify: Compare all checkpoints and records of the run with their digests.
    """
    run = _here(run, which="all" if verify else None)
    given = Path(run)
    here: str | None = run if step_of(given) is None else str(artefact_folder(given))
    lines: list[str] = [_verified(Path(here))] if verify and here is not None else []
    recorded: list[StageRecord] = []
    while here is not None:
        folder = Path(here)
        lineage = Lineage.read(folder)
        recorded = [] if lineage is None else list(lineage.stages)
        facts = read_provenance(folder)
        max_steps: int = _entry(here, "max_steps", int)
        final = (
            [m for m in read_metrics(folder) if "val/loss" in m]
            if (folder / METRICS).is_file()
            else []
        )  # a merged run has none
        lines += [
            f"{here}: {facts['verb']}, started {facts['started']}",
            f"  revision {facts['revision']}, {facts['precision']}"
            + (f", {facts['devices']}" if "devices" in facts else ""),
            f"  {facts['parameters']['total']:,} parameters, {counted(max_steps, 'steps')}",
            "  "
            + (
                f"data {facts['data']} ({facts['manifest_hash'][:16]})"
                if facts["data"]
                else "no data"
            )
            + f", tokenizer {facts['tokenizer_hash'][:16]}",
        ]
        model = _config(here).get("model")
        if isinstance(model, dict) and model.get("transfer") is not None:
            net = model["net"]
            line = Transfer(**model["transfer"]).line(net["width"], net["n_layer"])
            lines.append(f"  {line}")
        lines += [f"    {line}" for line in _sources(recorded[:1])]
        lines += [f"  {rewind.line}" for rewind in read_rewinds(folder)]
        if facts.get("adapter") is not None:
            lines.append(f"  {facts['adapter']}")
        if final:
            loss, bits = final[-1]["val/loss"], final[-1].get("val/bits_per_byte")
            text = f"{loss:.4f}" if bits is None else f"{loss:.4f} nats, {bits:.4f} bits per byte"
            lines.append(f"  validation at step {final[-1]['step']:,}: {text}")
        parent = facts["parent"]
        if parent is not None:
            lines.append(f"  from {parent}")
        # A Hugging Face folder, or a run that is no longer here, ends the line.
        folder = Path(parent).parent.parent if parent is not None else folder
        here = str(folder) if parent is not None and (folder / PROVENANCE).is_file() else None
    for stage in recorded[1:]:  # what the folders themselves can no longer tell
        lines += [
            f"{stage['name']}: {stage['verb']}"
            + (f", started {stage['started']}" if stage["started"] else "")
            + ", as recorded"
        ]
        if stage["data"] is None:
            lines.append("  data not known")
        elif stage["data"]["sources"]:
            lines.append(f"  data {stage['data']['where']} ({stage['data']['hash']:.16})")
        lines += [f"    {line}" for line in _sources([stage])]
    return "\n".join(lines) + "\n"


def _verified(run: Path) -> str:
    """Say that all checkpoints and records of a run are sound.

    Raises:
        UserError: Names each that is not, and what is wrong with it.
    """
    bad: list[str] = []
    found = checkpoints(run)
    bad += [f"{path}: {wrong}" for path in found if (wrong := damage(path)) is not None]
    readers: list[tuple[Path, Callable[[Path], object]]] = [
        *((file, read_config) for file in sorted(run.glob("config*.yaml"))),
        *((file, read_sealed_json) for file in sorted(run.glob("provenance*.json"))),
        (run, read_provenance),
        (run, read_skips),
        (run, read_rewinds),
        (run, Lineage.read),
    ]
    for place, read in readers:
        try:
            read(place)
        except UserError as error:
            bad.append(str(error))
    best_record(run, bad.append)
    if (run / METRICS).is_file():
        read_metrics(run, bad.append)
    if bad:
        raise UserError(
            f"{run}: {len(bad):,} of its checkpoints and records are damaged:\n  "
            + "\n  ".join(dict.fromkeys(bad))
        )
    return f"all {len(found):,} checkpoints and the records of {run} are sound"


def _sources(stages: Sequence[StageRecord]) -> list[str]:
    """Write a line for each raw source of the data of stages."""
    return [
        line
        for stage in stages
        if stage["data"] is not None
        for line in source_lines(stage["data"])
    ]


def _here(run: str, which: str | None = None) -> str:
    """Return a run's folder on this machine; what is remote is fetched, as by `fetched`."""
    return str(fetched(run, which=which)) if is_remote(run) else run


def _entry(where: str, name: str, kind: type) -> Any:
    """Read an entry of a config, which has none of another kind unless it is damaged."""
    value = _config(where).get(name)
    if not isinstance(value, kind):
        file = Path(where) / CONFIG if Path(where).is_dir() else where
        raise UserError(f"{file} is damaged: it has no sound {name}")
    return value


def _config(where: str) -> dict[str, Any]:
    path = Path(where)
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise no_run(where, f"it holds no {CONFIG}; a YAML file of options may stand for it")
    return read_config(file)
