"""Scaling laws: `scaling sweep` (makes runs), `fit` (a law), `isoflop` (best sizes), `forecast` (a run to come), `plot` (figures)."""

import importlib

PARTS = {
    "sweep": "Runs of several sizes at several FLOP budgets: what they take, and making those that are missing.",
    "fit": "The law that runs follow, with intervals.",
    "isoflop": "The best model size at each FLOP budget, and how it grows.",
    "forecast": "The loss of a run that has not been made.",
    "plot": "The figures of a fit and of an IsoFLOP analysis.",
}


def main(argv: list[str]) -> int:
    """Run `lit_pretrain scaling WHAT`."""
    if not argv or argv[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<8}  {line}" for name, line in PARTS.items())
        print(f"usage: lit_pretrain scaling WHAT [options]\n\n{listing}\n\n`lit_pretrain scaling WHAT --help` lists the options.")
        return 0 if argv else 2
    if argv[0] not in PARTS:
        import difflib

        from lit_pretrain.errors import UserError

        near = difflib.get_close_matches(argv[0], PARTS, n=1)
        raise UserError(
            f"scaling has no part {argv[0]!r}" + (f"; did you mean {near[0]!r}?" if near else "") + f" Parts: {', '.join(PARTS)}"
        )
    return int(importlib.import_module(f"lit_pretrain.cli.scaling.{argv[0]}").main(argv[1:]))
