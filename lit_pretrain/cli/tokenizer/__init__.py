"""Examine a tokenizer: `report` (bytes per token beside others, unused ids, coverage)."""

from lit_pretrain.cli.command.verb import Group, Verb, print_findings


def _report(argv: list[str]) -> int:
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("tokenizer report", VERB.parts["report"].help)
    parser.add_argument(
        "path", type=str, help="A prepared dataset, a tokenizer.json, or a folder that holds one."
    )
    parser.add_argument(
        "--against",
        type=str,
        nargs="+",
        default=[],
        help="Tokenizers to compare with: likewise, or tiktoken's encodings by name.",
    )
    parser.add_argument(
        "--text",
        type=str,
        nargs="+",
        default=[],
        help="UTF-8 files to compare on instead of the training split.",
    )
    parser.add_argument(
        "--sample_bytes",
        type=int,
        default=1_000_000,
        help="UTF-8 bytes to compare on, per source or file.",
    )
    parser.add_argument("--json", action="store_true", help="Print the figures as JSON.")
    options = parser.parse_args(argv)

    from lit_pretrain.cli.tokenizer.tokenizer_report import tokenizer_report, tokenizer_table

    found = tokenizer_report(
        options.path, against=options.against, text=options.text, sample_bytes=options.sample_bytes
    )
    print_findings(found, lambda: tokenizer_table(found), as_json=options.json)
    return 0


VERB = Group(
    {
        "report": Verb(
            _report,
            example="lit_pretrain tokenizer report data/embedded --against gpt2",
            help="What a tokenizer, of a dataset or by itself, makes of text, beside others.",
        )
    }
)
