"""Train a classifier of texts by examples (`train`), a filter of `prepare`; `report` on it."""

from typing import Any

from lit_pretrain.cli.command.verb import Group, Verb, print_findings


def _add_reading(parser: Any) -> None:
    """Add how examples are read to a parser."""
    parser.add_argument(
        "--text_field",
        type=str,
        default="text",
        help="Field of .jsonl and .parquet that holds the text.",
    )
    parser.add_argument(
        "--separator",
        type=str | None,
        default=None,
        help=(
            "What separates the texts within a .txt or .md file, such as '\\n\\n'. Default: a file"
            " is one text."
        ),
    )
    parser.add_argument("--json", action="store_true", help="Print the report as JSON.")
    parser.add_argument(
        "--html", type=str | None, default=None, help="Also write the report to this page."
    )


def _train(argv: list[str]) -> int:
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("classifier train", VERB.parts["train"].help)
    parser.add_argument(
        "--positive",
        type=str,
        nargs="+",
        required=True,
        help="Texts that are wanted: files (.txt, .md, .jsonl, .parquet, also packed) or folders.",
    )
    parser.add_argument(
        "--negative",
        type=str,
        nargs="+",
        required=True,
        help="Texts that they are told from: a sample of what is to be filtered serves well.",
    )
    parser.add_argument(
        "--out", type=str, required=True, help="The file to write: NAME.safetensors."
    )
    parser.add_argument(
        "--max_bytes",
        type=int,
        default=10_000_000,
        help="UTF-8 bytes of each side to learn from; more are left out by their hash.",
    )
    _add_reading(parser)
    options = parser.parse_args(argv)

    from pathlib import Path

    from lit_pretrain.cli.classifier.examples import read_examples
    from lit_pretrain.cli.classifier.train_classifier import train_classifier
    from lit_pretrain.errors import UserError
    from lit_pretrain.files import check_output, writing

    if options.max_bytes < 1:
        raise UserError(f"--max_bytes {options.max_bytes} must be at least 1")
    for option, place in (("out", options.out), ("html", options.html)):
        if place is not None:
            check_output(Path(place).expanduser(), f"--{option}={place}")
    sides = [
        read_examples(
            f"--{name}",
            options[name],
            text_field=options.text_field,
            separator=options.separator,
            max_bytes=options.max_bytes,
        )
        for name in ("positive", "negative")
    ]
    classifier = train_classifier(*sides)
    with writing(f"--out={options.out}"):
        classifier.save(Path(options.out).expanduser())
    return _show(options, options.out, ())


def _report(argv: list[str]) -> int:
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("classifier report", VERB.parts["report"].help)
    parser.add_argument("path", type=str, help="The file of a classifier.")
    parser.add_argument(
        "--text",
        type=str,
        nargs="+",
        default=[],
        help="Files or folders of texts to score, for the threshold that keeps a share of them.",
    )
    _add_reading(parser)
    options = parser.parse_args(argv)
    if options.html is not None:
        from pathlib import Path

        from lit_pretrain.files import check_output

        check_output(Path(options.html).expanduser(), f"--html={options.html}")
    return _show(options, options.path, options.text)


def _show(options: Any, path: str, text: Any) -> int:
    """Print the report, and write its page."""
    from lit_pretrain.cli.classifier.classifier_report import (
        classifier_report,
        classifier_table,
        write_html,
    )

    found = classifier_report(
        path, text=text, text_field=options.text_field, separator=options.separator
    )
    if options.html is not None:
        write_html(found, options.html)
    print_findings(found, lambda: classifier_table(found), as_json=options.json)
    return 0


VERB = Group(
    {
        "train": Verb(
            _train,
            example=(
                "lit_pretrain classifier train --positive good/ --negative raw/ --out"
                " quality.safetensors"
            ),
            help="Train a classifier on texts that are wanted and on others.",
        ),
        "report": Verb(
            _report,
            example="lit_pretrain classifier report quality.safetensors --text raw/",
            help="What a classifier is worth, and which threshold keeps what.",
        ),
    }
)
