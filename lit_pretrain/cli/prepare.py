"""Turn raw text into a dataset: tokenizer, LitData shards and their manifest."""

import signal
from types import FrameType

from lit_pretrain.cli.command.verb import Verb

FIRST_PAGE = {
    "Where from and where to": (
        "config", "sources", "sources.NAME.kind", "sources.NAME.path", "sources.NAME.glob",
        "sources.NAME.fields", "sources.NAME.licence", "out", "print_config",
    ),
    "What stays": (
        "filters", "dedup", "dedup.exact", "dedup.near", "pii", "pii.kinds", "decontaminate",
        "max_document_bytes", "too_large", "errors", "max_bad_fraction",
    ),
    "Tokenizer and splits": (
        "tokenizer.kind", "tokenizer.vocab_size", "tokenizer.pattern", "tokenizer.path",
        "splits.validation", "splits.test", "seed",
    ),
    "Machine": ("engine", "workers", "part_bytes", "chunk_tokens"),
}  # fmt: skip
"""What one sets in the first week, on the page of `--help`."""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain prepare`."""
    from lit_pretrain.cli.command.parser import make_parser
    from lit_pretrain.prepare.prepare_config import PrepareConfig

    parser = make_parser("prepare", __doc__)
    parser.add_class_arguments(PrepareConfig)
    parser.first_page = FIRST_PAGE
    config = parser.instantiate(parser.parse_args(argv))
    del config["config"]

    from lit_pretrain.prepare.pipeline import prepare
    from lit_pretrain.prepare.progress_table import dataset_table, funnel_table

    before = signal.signal(signal.SIGTERM, _leave)
    try:
        manifest = prepare(PrepareConfig(**config))
    finally:
        signal.signal(signal.SIGTERM, before)
    print(dataset_table(manifest))
    print(f"\n{funnel_table(manifest)}")
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave through the clean-up, with the code of a process that the signal ended."""
    raise SystemExit(128 + number)


VERB = Verb(main, example="lit_pretrain prepare --config configs/prepare/embedded.yaml")
