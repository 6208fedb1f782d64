"""Scaling laws: `sweep` (runs), `fit` (a law), `isoflop`, `forecast` (a loss), `plot`."""

import importlib

from lit_pretrain.cli.verb import Group, Verb


def _part(name: str, options: str, help: str) -> Verb:
    """A part with a file of its own in `cli/scaling`, which is imported when it runs."""

    def run(argv: list[str]) -> int:
        return int(importlib.import_module(f"lit_pretrain.cli.scaling.scaling_{name}").main(argv))

    return Verb(run, example=f"lit_pretrain scaling {name} {options}", help=help)


VERB = Group(
    {
        "sweep": _part(
            "sweep",
            "--config configs/scaling/embedded_cpu.yaml --dry_run",
            "Runs of several sizes at several FLOP budgets: their cost, and making those missing.",
        ),
        "fit": _part(
            "fit",
            "runs/scaling --out runs/scaling/law.json",
            "The law that runs follow, with intervals.",
        ),
        "isoflop": _part(
            "isoflop",
            "runs/scaling",
            "The best model size at each FLOP budget, and how it grows.",
        ),
        "forecast": _part(
            "forecast",
            "--published besiroglu --flops 1e21",
            "The loss of a run that has not been made.",
        ),
        "plot": _part(
            "plot",
            "runs/scaling --out figures",
            "The figures of a fit and of an IsoFLOP analysis.",
        ),
    }
)
