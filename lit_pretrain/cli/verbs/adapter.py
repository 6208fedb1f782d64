"""Exchange adapters with peft: `adapter export RUN OUT`, `adapter import FOLDER OUT BASE`."""

from collections.abc import Callable

from lit_pretrain.cli.verb import Group, Verb


def _export(argv: list[str]) -> int:
    from lit_pretrain.cli.peft_exchange import export

    return _call("export", export, argv)


def _import(argv: list[str]) -> int:
    from lit_pretrain.cli.peft_exchange import import_

    return _call("import", import_, argv)


def _call(name: str, function: Callable[..., int], argv: list[str]) -> int:
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser(f"adapter {name}", VERB.parts[name].help)
    parser.add_function_arguments(function, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return function(**options)


VERB = Group(
    {
        "export": Verb(
            _export,
            example="lit_pretrain adapter export runs/lora exported/lora",
            help="Write the adapter of a run as peft reads it.",
        ),
        "import": Verb(
            _import,
            example="lit_pretrain adapter import exported/lora runs/imported runs/quickstart",
            help="Make an adapter of peft a run, to generate with, measure, merge or start from.",
        ),
    }
)
