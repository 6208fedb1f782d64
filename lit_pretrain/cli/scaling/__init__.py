"""Scaling laws: `sweep` (runs), `fit` (a law), `isoflop`, `forecast` (a loss), `plot`."""

import importlib

from lit_pretrain.cli.command.verb import Group, Verb


def _part(name: str, options: str, help: str) -> Verb:
    """Declare a part whose module in `cli/scaling` is imported only when the part runs."""

    def run(argv: list[str]) -> int:
        return int(importlib.import_module(f"lit_pretrain.cli.scaling.scaling_{name}").main(argv))

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
        ),
        "isoflop": _part(
            "isoflop",
            "runs/scaling",
            "Find the best model size at each FLOP budget, and how it grows.",
        ),
        "forecast": _part(
            "forecast",
            "--published besiroglu --flops 1e21",
            "Forecast the loss of a run before it is trained.",
        ),
        "plot": _part(
            "plot",
            "runs/scaling --out figures",
            "Draw the figures of a fit and of an IsoFLOP analysis.",
        ),
    }
)
