"""Look inside: `inspect order` and `inspect batch` (what a step reads), `inspect data` (a dataset), `inspect run` (a run, its lineage)."""

import ast
import sys
from pathlib import Path

VIEWS = {"order": "cli/inspection.py", "data": "cli/dataset/view.py", "run": "cli/inspection.py"}
"""Where the function of each view lies. The listing reads its docstring without importing it, as that of the verbs does."""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain inspect WHAT`."""
    if not argv or argv[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<6} {_line(name)}" for name in VIEWS)
        listing += "\n  batch  The rows of a step as text, with what is learned; takes the options of a training command."
        print(f"usage: lit_pretrain inspect WHAT [options]\n\n{listing}\n\n`lit_pretrain inspect WHAT --help` lists the options.")
        return 0 if argv else 2
    from lit_pretrain.cli.parser import make_parser, nearest
    from lit_pretrain.errors import UserError

    if argv[0] == "batch":
        from lit_pretrain.cli.batch_view import show_batch  # the one view that needs torch

        return show_batch(argv[1:])
    if argv[0] not in VIEWS:
        names = [*VIEWS, "batch"]
        near = nearest(argv[0], names)
        raise UserError(f"there is no view {argv[0]!r}" + (f"; did you mean {near!r}?" if near else "") + f"; views: {', '.join(names)}")
    import importlib

    module = importlib.import_module(f"lit_pretrain.{VIEWS[argv[0]].removesuffix('.py').replace('/', '.')}")
    parser = make_parser(f"inspect {argv[0]}", _line(argv[0]))
    parser.add_function_arguments(getattr(module, argv[0]), as_positional=True)
    options = parser.parse_args(argv[1:]).as_dict()
    options.pop("config", None)
    sys.stdout.write(getattr(module, argv[0])(**options))
    return 0


def _line(view: str) -> str:
    """The first line of the docstring of a view's function."""
    tree = ast.parse((Path(__file__).parents[2] / VIEWS[view]).read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == view)
    return (ast.get_docstring(function) or "").splitlines()[0]
