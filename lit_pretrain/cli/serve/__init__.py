"""Serve a trained run over HTTP as OpenAI's interface, on this machine unless told otherwise."""

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain serve`."""
    from lit_pretrain.cli.command.parser import make_parser
    from lit_pretrain.cli.serve.server import serve

    parser = make_parser("serve", __doc__)
    parser.add_function_arguments(serve)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return serve(**options)


VERB = Verb(main, example="lit_pretrain serve --run runs/sft")
