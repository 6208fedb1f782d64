"""Scaling laws and batches: runs, fits and forecasts; `check-transfer`, `critical-batch`."""

import importlib

from lit_pretrain.cli.command.verb import Group, Verb


def _part(name: str, options: str, help: str, *, code: str | None = None) -> Verb:
    """Declare a part whose module in `cli/scaling` is imported only when the part runs.

    Args:
        name: The part's.
        options: Of the example.
        help: One line.
        code: module.function; `main` of scaling_<name> if not given.
    """
    module, _, function = (code or f"scaling_{name}.main").partition(".")

    def run(argv: list[str]) -> int:
        found = importlib.import_module(f"lit_pretrain.cli.scaling.{module}")
        return int(getattr(found, function)(argv))

    return Verb(run, example=f"lit_pretrain scaling {name} {options}", help=help)


VERB = Group(
    {
        "sweep": _part(
            "sweep",
            "--config configs/scaling/embedded_cpu.yaml --dry_run",
            "Plan the runs of several sizes at several FLOP budgets, and train the missing ones.",
        ),
        "fit": _part(
            "fit",
            "runs/scaling --out runs/scaling/law.json",
            "Fit the law that runs follow, with intervals.",
            code="scaling_laws.fit_law",
        ),
        "isoflop": _part(
            "isoflop",
            "runs/scaling",
            "Find the best model size at each FLOP budget, and how it grows.",
            code="scaling_laws.find_optimum",
        ),
        "forecast": _part(
            "forecast",
            "--published besiroglu --flops 1e21",
            "Forecast the loss of a run before it is trained.",
        ),
        "critical-batch": _part(
            "critical-batch",
            "runs/quickstart --factors 1,2,4",
            "Branch a run into larger batches, and name the largest that costs no loss.",
            code="scaling_critical_batch.main",
        ),
        "plot": _part(
            "plot",
            "runs/scaling --out figures",
            "Draw the figures of a fit and of an IsoFLOP analysis.",
        ),
        "check-transfer": _part(
            "check-transfer",
            "configs/pretrain/transfer.yaml",
            "Check whether rates carry over to other widths and depths.",
            code="scaling_check_transfer.main",
        ),
    }
)
