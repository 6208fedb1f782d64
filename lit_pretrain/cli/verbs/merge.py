"""Put the adapter of a run into its base: a run of whole weights."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain merge RUN OUT`."""
    from lit_pretrain.cli.merging import merge
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("merge", __doc__)
    parser.add_function_arguments(merge, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return merge(**options)


VERB = Verb(main, example="lit_pretrain merge runs/lora runs/merged")
