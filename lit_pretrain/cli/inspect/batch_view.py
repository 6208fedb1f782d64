"""Batch view: the rows of a step as text.

It shows what is learned, where documents end and what was left out.
"""

import os
import sys
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.cli.train.resolve import build
from lit_pretrain.cli.train.train_cli import DATA_PAGE, TrainCLI, TrainParser
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError
from lit_pretrain.skips import Skips
from lit_pretrain.tokenizer.tokenizer import Tokenizer

LEARNED, GIVEN, SPECIAL, END = "\x1b[32m", "\x1b[2m", "\x1b[36m", "\x1b[0m"
_OPEN, _CLOSE = "⟦", "⟧"
"""Enclose what is learned where there is no colour."""


class BatchCLI(TrainCLI):
    """The data of a training command, and nothing else of it."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add which rows are shown, beside the options of a run."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--step", type=int, default=0, help="The optimizer step, counted from 0."
        )
        parser.add_argument("--rows", type=int, default=2, help="How many of its rows to print.")
        parser.add_argument(
            "--color", type=bool | None, default=None, help="Default: on a terminal."
        )
        assert isinstance(parser, TrainParser)
        parser.first_page = {
            "Rows": ("step", "rows", "color", "config", "from", "print_config"),
            "Data": DATA_PAGE,
        }

    def before_instantiate_classes(self) -> None:
        """Take the tokenizer from the parent, as a run does."""
        self.take_tokenizer()
        self.data = build(self.config.data)
        self.data.leave_out(Skips.parse(self.config.skip_steps))

    def instantiate_classes(self) -> None:
        """Make nothing: rows need no network."""


def show_batch(argv: list[str]) -> int:
    """Run `lit_pretrain inspect batch`, which takes the options of `posttrain`."""
    cli = BatchCLI("inspect batch", argv)
    step, rows = cli.config.step, cli.config.rows
    if step < 0:
        raise UserError(f"--step={step}: the first step is 0")
    if rows < 1:
        raise UserError(f"--rows={rows} must be at least 1")
    color = cli.config.color
    if color is None:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    batches = cli.data.step_batches(step, rows)
    print(cli.data.exposure(max(1, step)))
    print(
        f"step {step}, its first {rows} {cli.data.unit}; "
        + ("what is learned is green" if color else f"what is learned stands in {_OPEN}{_CLOSE}")
    )
    for batch in batches:
        for line in _lines(batch, cli.data, color=color):
            print(line)
    return 0


def _lines(batch: Any, data: BaseData, *, color: bool) -> list[str]:
    """Write a micro-batch as lines."""
    lines = []
    for b in range(len(batch.index_B)):
        labels = batch.labels_BT[b]
        learned = int((labels != IGNORE_INDEX).sum())
        head = [f"sample {int(batch.index_B[b])}", data.sources[int(batch.source_B[b])]]
        head += [note] if (note := data.row_note(batch, b)) else []
        lines += ["", f"{', '.join(head)}: {learned} of {len(labels)} places learned"]
        lines += _row(
            batch.tokens_BT[b].tolist(),
            labels.tolist(),
            batch.doc_BT[b].tolist(),
            data.tokenizer,
            color=color,
        )
    return lines


def _row(
    tokens: list[int], labels: list[int], doc: list[int], tokenizer: Tokenizer, *, color: bool
) -> list[str]:
    """Write the documents of a row, each with its places and its text."""
    lines = []
    begin = 0
    while begin < len(tokens):
        end = begin
        while end < len(tokens) and doc[end] == doc[begin]:
            end += 1
        learned = [False, *(label != IGNORE_INDEX for label in labels[begin:end])]
        if end == len(tokens) and not any(learned) and begin:
            lines.append(f"  places {begin} to {end - 1}: padding")
        else:
            ids = tokens[begin:end]
            if learned[-1]:  # the last token of a document that is packed is a label only
                ids.append(labels[end - 1])
            lines.append(
                f"  document {doc[begin]}, places {begin} to {end - 1}, positions 0 to"
                f" {end - begin - 1}:"
            )
            lines += [
                "    " + line for line in _text(ids, learned, tokenizer, color=color).split("\n")
            ]
        begin = end
    return lines


def _text(ids: list[int], learned: list[bool], tokenizer: Tokenizer, *, color: bool) -> str:
    """Write tokens as text, stretch by stretch of the same kind."""
    special = set(tokenizer.special_tokens.values())
    pieces = []
    begin = 0
    while begin < len(ids):
        end = begin
        kind = (learned[begin], ids[begin] in special)
        while end < len(ids) and (learned[end], ids[end] in special) == kind:
            end += 1
        text = "".join(
            c if c.isprintable() or c in "\n\t" else repr(c)[1:-1]
            for c in tokenizer.decode(ids[begin:end], skip_special=False)
        )
        if color:
            paint = LEARNED if kind[0] else SPECIAL if kind[1] else GIVEN
            pieces.append(
                "\n".join(f"{paint}{line}{END}" if line else "" for line in text.split("\n"))
            )
        else:
            opens = kind[0] and not (begin and learned[begin - 1])
            closes = kind[0] and not (end < len(ids) and learned[end])
            pieces.append((_OPEN if opens else "") + text + (_CLOSE if closes else ""))
        begin = end
    return "".join(pieces)
