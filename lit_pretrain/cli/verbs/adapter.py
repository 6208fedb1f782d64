"""Exchange adapters with peft: `adapter export RUN OUT`, `adapter import FOLDER OUT BASE`."""

from collections.abc import Callable


def main(argv: list[str]) -> int:
    """Run `lit_pretrain adapter WHAT`."""
    from lit_pretrain.cli.parser import make_parser, nearest
    from lit_pretrain.cli.peft_exchange import export, import_
    from lit_pretrain.errors import UserError

    actions: dict[str, Callable[..., int]] = {"export": export, "import": import_}
    if not argv or argv[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name}  {(function.__doc__ or '').splitlines()[0]}" for name, function in actions.items())
        print(f"usage: lit_pretrain adapter WHAT [options]\n\n{listing}\n\n`lit_pretrain adapter WHAT --help` lists the options.")
        return 0 if argv else 2
    if argv[0] not in actions:
        near = nearest(argv[0], list(actions))
        raise UserError(
            f"there is no action {argv[0]!r}" + (f"; did you mean {near!r}?" if near else "") + f" Actions: {', '.join(actions)}"
        )
    function = actions[argv[0]]
    parser = make_parser(f"adapter {argv[0]}", (function.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(function, as_positional=True)
    options = parser.parse_args(argv[1:]).as_dict()
    options.pop("config", None)
    return function(**options)
