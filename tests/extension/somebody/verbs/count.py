"""Count the documents of a prepared dataset."""

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.corpus.manifest import Manifest


def main(arguments: list[str]) -> int:
    """Run the verb."""
    parser = make_parser("count", "Count the documents of a prepared dataset.")
    parser.add_argument("data", help="Folder of the dataset.")
    manifest = Manifest.load(parser.parse_args(arguments).data)
    splits = [split for source in manifest.sources.values() for split in source.splits.values()]
    print(sum(split.documents for split in splits))
    return 0


VERB = Verb(main, example="lit_pretrain count data/embedded")
