"""Turn raw text into a dataset: tokenizer, LitData shards and their manifest."""

import signal
import sys
from types import FrameType
from typing import Optional


def main(argv: list[str]) -> int:
    """Run `lit_pretrain prepare`."""
    from lit_pretrain.cli.parser import make_parser
    from lit_pretrain.prepare.config import PrepareConfig

    parser = make_parser("prepare", __doc__)
    parser.add_class_arguments(PrepareConfig)
    config = parser.instantiate_classes(parser.parse_args(argv))
    del config["config"]

    from lit_pretrain.prepare.pipeline import prepare
    from lit_pretrain.prepare.report import left_out, table

    signal.signal(signal.SIGTERM, _exit)
    try:
        manifest = prepare(PrepareConfig(**config))
    except KeyboardInterrupt:
        print("prepare: interrupted; nothing was kept", file=sys.stderr)
        return 128 + signal.SIGINT
    print(table(manifest))
    for line in left_out(manifest):
        print(line)
    return 0


def _exit(number: int, frame: Optional[FrameType]) -> None:
    """Leaves through the clean-up handlers, with the code of a process that the signal ended."""
    raise SystemExit(128 + number)
