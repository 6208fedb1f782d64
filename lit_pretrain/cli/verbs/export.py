"""Write a run as a Hugging Face folder: `export --to hf RUN OUT`."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain export RUN OUT`."""
    from lit_pretrain.cli.hf_exchange import export
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("export", __doc__)
    parser.add_function_arguments(export, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return export(**options)


VERB = Verb(main, example="lit_pretrain export --to hf runs/quickstart exported/quickstart")
