"""`scaling critical-batch`: branch a run into larger batches, and see which still cost no loss."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import aligned, big, write_text
from lit_pretrain.cli.sweep.fit_options import FitOptions, parse_as_plan
from lit_pretrain.cli.sweep.launch import LaunchSettings
from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.batch_sizes import BatchSizes
    from lit_pretrain.cli.sweep.planned_runs import PlannedRun
    from lit_pretrain.scaling.batch_rules import BranchOutcome

WINDOWS = 16
"""Points of the curve of a branch, the same in tokens for all of them."""
DEFAULT_STEPS = 128
"""Steps of the run's own batch in a branch, unless --window says otherwise."""


@dataclass(kw_only=True)
class CriticalBatchSettings(LaunchSettings):
    """Options of `lit_pretrain scaling critical-batch`."""

    run: str
    """The run whose checkpoint is branched."""
    step: int | None = None
    """Optimizer steps that the checkpoint has made. Default: the newest."""
    factors: str = "1,2,4,8"
    """Batches to try, as multiples of the run's own at that step; 1 is always among them."""
    window: float | None = None
    """Tokens that every branch reads, rounded up to whole steps of all of them. Default: 128 steps
    of the run's own batch.
    """
    tolerance: float = 0.01
    """How much more validation loss counts as none."""
    out: str = ""
    """Folder for the branches, with their configs and logs, and for critical_batch.json and .png.
    Default: beside the run, with its name, the step and "-critical-batch".
    """


class Branched(NamedTuple):
    """The checkpoint that is branched, and what all branches share."""

    checkpoint: Path
    step: int
    config: FitOptions
    """Of the run."""
    batch: BatchSizes
    """Tokens of its steps."""
    own: int
    """Tokens of a step there."""
    window: int
    """Tokens of every branch."""
    share: float
    """Of the peak rate that the run has reached."""


class Branch(NamedTuple):
    """One branch."""

    factor: float
    planned: PlannedRun
    batch_tokens: int
    steps: int


def main(argv: list[str]) -> int:
    """Run `lit_pretrain scaling critical-batch`."""
    parser = make_parser(
        "scaling critical-batch",
        "Continue a run from one of its checkpoints with several batches, each with the rate that"
        " goes with it, and name the largest whose loss at equal tokens is still as low.",
    )
    parser.add_class_arguments(CriticalBatchSettings, skip={"run"})
    parser.add_argument("run", type=str, help="The run whose checkpoint is branched.")
    given = parser.instantiate(parser.parse_args(argv))
    settings = CriticalBatchSettings(
        **{name: given[name] for name in CriticalBatchSettings.__dataclass_fields__}
    )

    from lit_pretrain.cli.sweep.planned_runs import check_launch, cost_of, make_runs, missing_runs
    from lit_pretrain.files import check_local, check_output

    check_launch(settings)
    check_local(settings.run)
    factors = _factors(settings.factors)
    if not 0 <= settings.tolerance < math.inf:
        raise UserError(f"--tolerance {settings.tolerance:g} must be finite and not negative")
    branched = _branched(settings, factors)
    settings.out = settings.out or (
        f"{str(Path(settings.run)).rstrip('/')}-step-{branched.step}-critical-batch"
    )
    if not settings.dry_run:
        check_output(Path(settings.out) / "critical_batch.json", f"--out={settings.out}")
    branches = [_branch(branched, factor, settings) for factor in factors]
    planned = [branch.planned for branch in branches]
    missing = missing_runs(Path(settings.out), planned)
    names = {run.name for run in missing}
    print(
        f"from {branched.checkpoint}: {big(branched.window)} tokens in every branch",
        _plan_table(branches, names),
        cost_of(planned, missing, settings),
        sep="\n\n",
        flush=True,
    )
    if settings.dry_run:
        return 0
    if missing:
        written = make_runs(settings, missing, alike=True)
        if written:
            print(written)
            return 0
    _conclude(branched, branches, settings)
    return 0


def _factors(text: str) -> list[float]:
    """Read the factors, smallest first; the run's own batch is always among them."""
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError:
        raise UserError(f"--factors {text}: numbers with commas are needed, such as 1,2,4,8") from (
            None
        )
    wrong = [f"{factor:g}" for factor in sorted(found) if not 0 < factor < math.inf]
    if wrong:
        raise UserError(f"--factors {text}: {', '.join(wrong)} must be positive and finite")
    if not found - {1.0}:
        raise UserError(f"--factors {text}: name at least one factor beside 1")
    return sorted(found | {1.0})


# ------------------------------------------------------------------ planning


def _branched(settings: CriticalBatchSettings, factors: Sequence[float]) -> Branched:
    """Find the checkpoint, and read what the run does there."""
    from lit_pretrain.batch_sizes import BatchSizes
    from lit_pretrain.checkpoint.layout import checkpoint_name, checkpoints, step_of
    from lit_pretrain.checkpoint.layout import resolve as resolve_checkpoint
    from lit_pretrain.checkpoint.resume_contract import skips_of
    from lit_pretrain.checkpoint.weights import read_record
    from lit_pretrain.cli.train.resolve import settings_of
    from lit_pretrain.optim import Schedule
    from lit_pretrain.plain_data import read_config
    from lit_pretrain.report.run_folder import CONFIG, no_run

    run = Path(settings.run)
    if not (run / CONFIG).is_file():
        raise no_run(run, f"it has no {CONFIG}")
    kept = {step_of(path): path for path in checkpoints(run)}
    if settings.step is not None and settings.step not in kept:
        steps = ", ".join(f"{step:,}" for step in kept) or "none"
        raise UserError(
            f"--step {settings.step}: {run} keeps no {checkpoint_name(settings.step)}; it keeps"
            f" those of the steps {steps} (keep more with --checkpoint_every and"
            " --keep_checkpoints)"
        )
    checkpoint = resolve_checkpoint(str(run if settings.step is None else kept[settings.step]))
    record = read_record(checkpoint)
    config = read_config(run / CONFIG)
    data = settings_of(config["data"])
    if "batch_schedule" not in data:
        kind = str(config["data"].get("class_path", "data")).rpartition(".")[2]
        raise UserError(
            f"{run} trains on {kind}, whose steps are counted in rows; a critical batch is measured"
            " of runs on prepared text"
        )
    for name, value in (config["model"].get("transfer") or {}).items():
        if name in ("base_batch_tokens", "base_tokens") and value is not None:
            raise UserError(
                f"model.transfer.{name}={value:g} of {run} moves its rates with"
                f" {'the batch' if 'batch' in name else 'the length'}, and a branch would move them"
                " again: branch a run whose transfer is over width and depth alone"
            )
    batch = BatchSizes.of(data, skips_of(record.contract))
    # Those of the last step that was made: the next one may have another batch, or no rate.
    last = max(0, record.step - 1)
    own = batch.size(last)
    share = Schedule(**config["model"]["schedule"]).factor(last, int(config["max_steps"]), batch)
    sizes = [branch_tokens(factor, own, int(data["seq_len"])) for factor in factors]
    window = DEFAULT_STEPS * own if settings.window is None else settings.window
    if not 0 < window < math.inf:
        raise UserError(f"--window {window:g} must be a positive number of tokens")
    whole = math.lcm(*sizes)
    return Branched(
        checkpoint, record.step, config, batch, own, math.ceil(window / whole) * whole, share
    )


def branch_tokens(factor: float, own: int, seq_len: int) -> int:
    """Return the tokens of a step of a branch: whole rows."""
    # The decimal that was given: in binary, 2.2 × 1,440 is no whole number.
    size = Fraction(repr(factor)) * own
    if size % seq_len:
        rows = own // seq_len
        raise UserError(
            f"--factors: {factor:g} × {own:,} tokens are {float(size) / seq_len:g} rows of"
            f" {seq_len:,}: a step is whole rows, so a factor is a multiple of 1/{rows}"
        )
    return int(size)


def _branch(branched: Branched, factor: float, settings: CriticalBatchSettings) -> Branch:
    """Write the config of a branch, and plan it."""
    import copy
    import dataclasses

    from lit_pretrain.cli.plan.question import ask
    from lit_pretrain.cli.sweep.planned_runs import PlannedRun, expected_speed
    from lit_pretrain.cli.train.resolve import settings_of
    from lit_pretrain.scaling.batch_rules import moved
    from lit_pretrain.scaling.plan import make_plan

    data = settings_of(branched.config["data"])
    size = branch_tokens(factor, branched.own, int(data["seq_len"]))
    steps = branched.window // size
    place = branched.batch.skips.place(branched.step)
    before = [
        (begin, tokens)
        for begin, tokens in zip(branched.batch.begins, branched.batch.sizes, strict=True)
        if begin < place
    ]
    goes_on = bool(before) and before[-1][1] == size
    spans = before if goes_on else [*before, (place, size)]
    sizes = dataclasses.replace(
        branched.batch,
        begins=tuple(begin for begin, _ in spans),
        sizes=tuple(tokens for _, tokens in spans),
    )
    config = copy.deepcopy(branched.config)
    for name in ("resume", "rewind_to", "tokenizer", "config"):
        config.pop(name, None)
    settings_of(config["data"]).update(sizes.settings)
    model = config["model"]
    optimizer = model["optimizer"]
    optimizer["init_args"] = moved(
        optimizer.get("init_args") or {}, factor=factor, share=branched.share
    )
    model["schedule"] |= {"kind": "constant", "warmup": "0"}
    config |= {
        "name": f"{factor:g}x", "runs": settings.out, "fork": str(branched.checkpoint),
        "max_steps": branched.step + steps, "validate_every": 0, "checkpoint_every": 0,
        "log_every": max(1, steps // WINDOWS), "evaluate_tasks": [], "evaluate_every": 0,
        "sample_prompts": [], "sample_every": 0, "profile": False,
    }  # fmt: skip
    try:
        question = ask(parse_as_plan(config, settings), bare=False)
        plan = make_plan(question)
    except UserError as error:
        raise type(error)(f"--factors: {factor:g}: {error}") from None
    speed, source = expected_speed(question)
    length = plan["length"]
    planned = PlannedRun(
        name=str(config["name"]), config=config,
        flops=length["flops"] * branched.window / length["tokens"],
        devices=question.layout.devices, shape=repr((question.net, question.layout)), speed=speed,
        speed_source=source,
    )  # fmt: skip
    return Branch(factor, planned, size, steps)


def _plan_table(branches: Sequence[Branch], missing: set[str]) -> str:
    rows: list[tuple[str, ...]] = [("branch", "batch", "steps", "FLOPs", "")]
    rows += [
        (
            its.planned.name,
            f"{its.batch_tokens:,}",
            f"{its.steps:,}",
            f"{its.planned.flops:.4g}",
            "" if its.planned.name in missing else "done",
        )
        for its in branches
    ]
    return "\n".join(aligned(rows, left=(0, 4)))


# ------------------------------------------------------------------ what came out


def _conclude(
    branched: Branched, branches: Sequence[Branch], settings: CriticalBatchSettings
) -> None:
    """Print the losses and the critical batch, and write table and picture."""
    from lit_pretrain.scaling.batch_rules import critical_factor

    outcomes = [_outcome(branched, branch, Path(settings.out)) for branch in branches]
    own = next(its.loss for its in outcomes if its.factor == 1)
    found = critical_factor(outcomes, settings.tolerance)
    rows: list[tuple[str, ...]] = [("factor", "batch", "steps", "val loss", "more", "")]
    rows += [
        (
            f"{its.factor:g}",
            f"{its.batch_tokens:,}",
            f"{its.steps:,}",
            f"{its.loss:.4f}",
            f"{its.loss - own:+.4f}",
            "as low" if its.loss <= own + settings.tolerance else "higher",
        )
        for its in outcomes
    ]
    print("\n" + "\n".join(aligned(rows, left=(5,))))
    size = next(its.batch_tokens for its in outcomes if its.factor == found)
    more = "; try larger factors" if found == outcomes[-1].factor else ""
    print(
        f"\nlargest batch as good as the run's own, within {settings.tolerance:g} nats after"
        f" {big(branched.window)} tokens: {size:,} tokens, factor {found:g}{more}"
    )
    record = {
        "checkpoint": str(branched.checkpoint), "step": branched.step,
        "window_tokens": branched.window, "tolerance": settings.tolerance,
        "critical": {"factor": found, "batch_tokens": size},
        "branches": [its._asdict() for its in outcomes],
    }  # fmt: skip
    folder = Path(settings.out)
    write_text(
        "--out", str(folder / "critical_batch.json"), json.dumps(record, indent=2, allow_nan=False)
    )
    _draw(outcomes, settings.tolerance, folder / "critical_batch.png")
    print(f"written: {folder / 'critical_batch.json'}, {folder / 'critical_batch.png'}")


def _outcome(branched: Branched, branch: Branch, out: Path) -> BranchOutcome:
    """Read what a finished branch has come to."""
    from lit_pretrain.report.run_folder import read_metrics
    from lit_pretrain.scaling.batch_rules import BranchOutcome

    lines = read_metrics(out / branch.planned.name)
    losses = [line["val/loss"] for line in lines if "val/loss" in line]
    if not losses:
        raise UserError(f"{out / branch.planned.name} has no validation: remove it, and run again")
    curve = [
        ((line["step"] - branched.step) * float(branch.batch_tokens), line["train/loss"])
        for line in lines
        if "train/loss" in line
    ]
    return BranchOutcome(branch.factor, branch.batch_tokens, branch.steps, losses[-1], curve)


def _draw(outcomes: Sequence[BranchOutcome], tolerance: float, file: Path) -> None:
    """Draw the loss of every batch, and how each branch came to it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from lit_pretrain.files import atomic_path, writing
    from lit_pretrain.report.charts import COLOURS

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    own = next(its.loss for its in outcomes if its.factor == 1)
    sizes = [its.batch_tokens for its in outcomes]
    left.axhspan(own - tolerance, own + tolerance, color="#999999", alpha=0.2, label="tolerance")
    left.plot(sizes, [its.loss for its in outcomes], "o-", color=COLOURS[0])
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    left.set(
        xlabel="batch, tokens", ylabel="validation loss, nats per token",
        title="Loss after equal tokens",
    )  # fmt: skip
    left.legend(fontsize="small")
    for number, its in enumerate(outcomes):
        tokens, losses = [point[0] for point in its.curve], [point[1] for point in its.curve]
        colour = COLOURS[number % len(COLOURS)]
        right.plot(tokens, losses, color=colour, label=f"{its.factor:g} ×")
    right.set(
        xlabel="tokens since the checkpoint", ylabel="training loss, nats per token",
        title="How each batch got there",
    )  # fmt: skip
    right.legend(title="batch", fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    try:
        with writing(f"--out={file.parent}"), atomic_path(file) as scratch:
            figure.savefig(scratch, format="png", dpi=130)
    finally:
        plt.close(figure)
