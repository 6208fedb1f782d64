"""Look inside: `order` and `batch` (what a step reads), `data` (a dataset), `run` (a run)."""

import sys
from collections.abc import Callable

from lit_pretrain.cli.command.verb import Group, Verb


def _order(argv: list[str]) -> int:
    from lit_pretrain.cli.inspect.views import order

    return _show("order", order, argv)


def _data(argv: list[str]) -> int:
    from lit_pretrain.cli.inspect.dataset_view import data

    return _show("data", data, argv)


def _run(argv: list[str]) -> int:
    from lit_pretrain.cli.inspect.views import run

    return _show("run", run, argv)


def _batch(argv: list[str]) -> int:
    from lit_pretrain.cli.inspect.batch_view import show_batch  # the one view that needs torch

    return show_batch(argv)


def _show(name: str, view: Callable[..., str], argv: list[str]) -> int:
    from lit_pretrain.cli.command.parser import run_function

    sys.stdout.write(
        run_function(f"inspect {name}", VERB.parts[name].help, view, argv, as_positional=True)
    )
    return 0


VERB = Group(
    {
        "order": Verb(
            _order,
            example="lit_pretrain inspect order runs/quickstart --step 1",
            help="Which documents of which sources an optimizer step reads.",
        ),
        "data": Verb(
            _data,
            example="lit_pretrain inspect data data/embedded",
            help="What a prepared dataset holds, what its steps left out, and documents of it.",
        ),
        "run": Verb(
            _run,
            example="lit_pretrain inspect run runs/quickstart",
            help="What a run was, how it ended, and the runs, folders and sources it came from.",
        ),
        "batch": Verb(
            _batch,
            example="lit_pretrain inspect batch --config configs/pretrain/quickstart.yaml",
            help="The rows of a step as text, with what is learned; takes the options of training.",
        ),
    }
)
