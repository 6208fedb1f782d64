"""Look inside: `inspect order` and `inspect batch` (what a step reads), `inspect data` (a dataset), `inspect run` (a run, its lineage)."""

import sys


def main(argv: list[str]) -> int:
    """Run `lit_pretrain inspect WHAT`."""
    from lit_pretrain.cli.inspection import VIEWS
    from lit_pretrain.cli.parser import nearest
    from lit_pretrain.errors import UserError

    listing = "\n".join(f"  {name:<6} {function.__doc__.splitlines()[0]}" for name, function in VIEWS.items() if function.__doc__)
    listing += "\n  batch  The rows of a step as text, with what is learned; takes the options of a training command."
    usage = f"usage: lit_pretrain inspect WHAT [options]\n\n{listing}\n\n`lit_pretrain inspect WHAT --help` lists the options."
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] == "batch":
        from lit_pretrain.cli.batch_view import show_batch  # the one view that needs torch

        return show_batch(argv[1:])
    if argv[0] not in VIEWS:
        names = [*VIEWS, "batch"]
        near = nearest(argv[0], names)
        raise UserError(f"there is no view {argv[0]!r}" + (f"; did you mean {near!r}?" if near else "") + f" Views: {', '.join(names)}")
    from lit_pretrain.cli.parser import make_parser

    function = VIEWS[argv[0]]
    parser = make_parser(f"inspect {argv[0]}", (function.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(function, as_positional=True)
    options = parser.parse_args(argv[1:]).as_dict()
    options.pop("config", None)
    sys.stdout.write(function(**options))
    return 0
