"""Serve a trained run over HTTP as OpenAI's interface, on this machine unless told otherwise."""

from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError


def main(argv: list[str]) -> int:
    """Run `lit_pretrain serve`."""
    from lit_pretrain.cli.command.parser import make_parser
    from lit_pretrain.cli.serve.server import serve

    if any(arg.partition("=")[0].replace("-", "_") == "__api_key" for arg in argv):
        raise UserError(
            "--api_key: every user of this machine can read a command line; write the key into a"
            " file and give --api_key_file FILE, or set LIT_PRETRAIN_API_KEY"
        )
    parser = make_parser("serve", __doc__)
    parser.add_function_arguments(serve)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return serve(**options)


VERB = Verb(main, example="lit_pretrain serve --run runs/sft")
