"""Complete prompts with a trained run, streaming to the terminal."""

from lit_pretrain.cli.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain generate`."""
    from lit_pretrain.cli.generation import generate_text
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("generate", __doc__)
    parser.add_function_arguments(generate_text)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return generate_text(**options)


VERB = Verb(main, example="lit_pretrain generate --run runs/quickstart --prompt 'def '")
