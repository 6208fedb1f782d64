"""Make a Hugging Face folder a run: `import FOLDER OUT`."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain import FOLDER OUT`."""
    from lit_pretrain.cli.export import import_hf
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("import", __doc__)
    parser.add_function_arguments(import_hf, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return import_hf(**options)


VERB = Verb(main, example="lit_pretrain import exported/quickstart runs/imported")
