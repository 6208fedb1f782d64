"""List the runs of a folder: state, progress, loss, speed, and the options in which they differ."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.files import check_local

if TYPE_CHECKING:
    from lit_pretrain.cli.runs.run_list import ListedRun, RunList

COLUMNS = (
    "name", "stage", "state", "steps", "max_steps", "tokens", "loss", "train_loss",
    "bits_per_byte", "tokens_per_second", "time", "parent", "started",
)  # fmt: skip
"""Fields of a run, for --sort and --json."""


class RunRow(TypedDict):
    """What `--json` prints of a run: the figures of `ListedRun`, and what sets the run apart."""

    name: str
    stage: str
    state: str
    steps: int
    max_steps: int
    tokens: float | None
    loss: float | None
    train_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    time: float | None
    parent: str | None
    """As the list names runs, or the folder of one that lies elsewhere."""
    started: str | None
    path: str
    reason: str | None
    contradicts: tuple[float, float] | None
    """95 % interval of the forecast, if the run has ended outside it."""
    differs: dict[str, object]
    """The run's values of the options in which the runs of its stage differ."""


_MOST_OPTIONS = 10
"""Options of a run in the table; those of a sweep are fewer."""
_FIXED = "\N{NO-BREAK SPACE}"
_HEAD = ("name", "state", "step", "tokens", "loss", "bits/byte", "tok/s", "time")


def show_runs(folder: str = "runs", sort: str = "started", json_output: bool = False) -> str:
    """List runs.

    Args:
        folder: Folder of the runs; those in folders within it are found, too.
        sort: What to sort by: name, stage, state, steps, max_steps, tokens, loss, train_loss,
            bits_per_byte, tokens_per_second, time, parent, started, or an option in which runs of
            a stage differ, such as model.optimizer.lr. Runs without it come last.
        json_output: One JSON object with all figures and all options that differ.

    Returns:
        What to print.

    Raises:
        UserError: There is no such folder, or nothing of that name to sort by.
    """
    from lit_pretrain.cli.runs.run_list import differing_options, list_runs, parent_name

    check_local(folder)
    listed = list_runs(Path(folder))
    # Runs of two stages differ in nearly all options, which says nothing about either.
    stages: dict[str, list[ListedRun]] = {}
    for run in listed.runs:
        if run.trained:
            stages.setdefault(run.stage, []).append(run)
    differs = {
        run.name: options
        for runs in stages.values()
        for run, options in zip(runs, differing_options([run.options for run in runs]), strict=True)
    }
    rows = [
        RunRow(
            name=run.name,
            stage=run.stage,
            state=run.state,
            steps=run.steps,
            max_steps=run.max_steps,
            tokens=run.tokens,
            loss=run.loss,
            train_loss=run.train_loss,
            bits_per_byte=run.bits_per_byte,
            tokens_per_second=run.tokens_per_second,
            time=run.time,
            parent=parent_name(run, Path(folder)),
            started=run.started,
            path=run.path,
            reason=run.reason,
            contradicts=run.contradicts,
            differs=differs.get(run.name, {}),
        )
        for run in listed.runs
    ]
    rows = _sorted(rows, sort)
    if json_output:
        content = {"runs": rows, "damaged": listed.damaged, "foreign": listed.foreign}
        return json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n"
    return _table(rows, listed, folder)


def _sorted(rows: Sequence[RunRow], field: str) -> list[RunRow]:
    options = {name for row in rows for name in row["differs"]}
    if field not in COLUMNS and field not in options:
        hint = did_you_mean(field, [*COLUMNS, *sorted(options)])
        raise UserError(
            f"--sort {field}: runs are sorted by {', '.join(COLUMNS)}, or by an option in which"
            f" they differ.{hint}"
        )

    def rank(row: RunRow) -> tuple[int, float, str]:
        value = row["differs"].get(field) if field in options else dict(row)[field]
        if isinstance(value, (int, float)) and not math.isnan(value):
            return 0, float(value), ""
        text = isinstance(value, float) or value is None
        return (2, 0.0, "") if text else (1, 0.0, str(value))

    return sorted(rows, key=rank)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------ for people


def _table(rows: Sequence[RunRow], listed: RunList, folder: str) -> str:
    """Write a line of figures and a line of words for each run."""
    width = shutil.get_terminal_size().columns
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    apart = sum(widths) + 2 * (len(widths) - 1) > width  # a name has a line of its own
    if apart:
        widths[0] = 2
    lines, options = list[str](), _option_texts(rows)
    for i, row in enumerate(cells):
        if apart and i:
            lines.append(row[0])
        first = "" if apart and i else row[0]
        left = [first, row[1]]
        lines.append(
            "  ".join(
                [text.ljust(w) for text, w in zip(left, widths, strict=False)]
                + [text.rjust(w) for text, w in zip(row[2:], widths[2:], strict=True)]
            ).rstrip()
        )
        if i:
            words = [_words(rows[i - 1]), *options[i - 1]]
            # An option and its value stay on one line where they fit.
            text = "; ".join(
                word.replace(" ", _FIXED) if len(word) < width // 2 else word for word in words
            )
            lines += [line.replace(_FIXED, " ") for line in _wrapped(text, width, indent="    ")]
    if not rows:
        lines = [f"no runs in {folder}"]
    if any(row["loss"] is None and row["train_loss"] is not None for row in rows):
        lines += _wrapped("* loss of training: there is no validation yet", width)
    for name, why in listed.damaged.items():
        lines.append(f"damaged: {name}: {why}")
    if listed.foreign:
        lines.append(f"no runs in: {', '.join(listed.foreign)}")
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cells(row: RunRow) -> tuple[str, ...]:
    from lit_pretrain.report.charts import clock, short

    loss, training = row["loss"], row["train_loss"]
    tokens, bits = row["tokens"], row["bits_per_byte"]
    rate, time = row["tokens_per_second"], row["time"]
    done, length = row["steps"], row["max_steps"]
    return (
        row["name"],
        row["state"],
        f"{done}" if done >= length else f"{done}/{length}",
        "" if tokens is None else short(tokens),
        f"{loss:.4f}" if loss is not None else "" if training is None else f"{training:.4f}*",
        "" if bits is None else f"{bits:.4f}",
        "" if rate is None else short(rate),
        "" if time is None else clock(time),
    )


def _option_texts(rows: Sequence[RunRow]) -> list[list[str]]:
    """Write for each run its values of the options that tell it from the others of its stage.

    Where there are many, those with the most different values are written, and the rest is counted.
    """
    from lit_pretrain.cli.runs.run_list import shortened

    texts: list[dict[str, str]] = [{} for _ in rows]
    different = dict[str, int]()
    for name in dict.fromkeys(name for row in rows for name in row["differs"]):
        # A run's network is that of its parent, which is named.
        network = name.startswith("model.net.")
        having = [
            i
            for i, row in enumerate(rows)
            if name in row["differs"] and not (network and row["parent"] is not None)
        ]
        values = shortened([rows[i]["differs"][name] for i in having])
        different[name] = len(set(values))
        for i, value in zip(having, values, strict=True):
            texts[i][name] = f"{name} {value}"
    telling = sorted(different, key=lambda name: -different[name])
    order = sorted(different, key=lambda name: not name.startswith(("model.", "data.")))
    found = list[list[str]]()
    for its in texts:
        most = len(its) if len(its) <= _MOST_OPTIONS else _MOST_OPTIONS - 1
        chosen = [name for name in telling if name in its][:most]
        rest = len(its) - most
        found.append([its[name] for name in order if name in chosen])
        if rest:
            found[-1].append(f"… {rest} more options (--json)")
    return found


def _words(row: RunRow) -> str:
    """Write stage, parent, what ended the run before its time, and what it contradicts."""
    words = [row["stage"]]
    if row["parent"] is not None:
        words.append(f"from {row['parent']}")
    if row["reason"] is not None:
        words.append(row["reason"])
    if row["contradicts"] is not None:
        low, high = row["contradicts"]
        words.append(f"loss outside its forecast ({low:.3f}–{high:.3f})")
    return ", ".join(words)


def main(argv: list[str]) -> int:
    """Run `lit_pretrain runs [FOLDER]`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("runs", __doc__)
    parser.add_argument("folder", nargs="?", default="runs", help="Folder of the runs.")
    parser.add_argument(
        "--sort",
        default="started",
        help="Sort by this: "
        + ", ".join(COLUMNS)
        + ", or an option in which runs of a stage differ.",
    )
    parser.add_argument("--json", action="store_true", help="Print all of it as JSON.")
    options = parser.parse_args(argv)
    sys.stdout.write(show_runs(options.folder, options.sort, options.json))
    return 0


VERB = Verb(main, example="lit_pretrain runs")
