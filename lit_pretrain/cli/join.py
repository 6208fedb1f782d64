"""Join finished datasets of one tokenizer to one, without encoding anything again."""

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain join OUT DATASET DATASET ...`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("join", __doc__)
    parser.add_argument("out", help="The directory of the new dataset; it must not exist.")
    parser.add_argument(
        "datasets",
        nargs="+",
        help="Directories that `prepare` made with the same tokenizer, splits and seed.",
    )
    options = parser.parse_args(argv)

    from lit_pretrain.prepare.join_datasets import join
    from lit_pretrain.prepare.progress_table import dataset_table

    print(dataset_table(join(options.out, options.datasets)))
    return 0


VERB = Verb(main, example="lit_pretrain join data/all data/2024_10 data/2024_18")
