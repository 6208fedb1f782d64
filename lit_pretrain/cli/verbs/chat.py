"""Talk with a trained run in the terminal, or through a pipe."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain chat`."""
    from lit_pretrain.cli.chatting import chat
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("chat", __doc__)
    parser.add_function_arguments(chat)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return chat(**options)


VERB = Verb(main, example="lit_pretrain chat --run runs/sft")
