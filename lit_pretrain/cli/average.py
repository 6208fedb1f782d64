"""Average checkpoints into a run: what a decay of the learning rate would have ended with."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError
from lit_pretrain.files import is_remote

if TYPE_CHECKING:
    from lit_pretrain.chat.model_tokenizer import ModelTokenizer


def average(
    places: list[str], out: str, *, last: int | None, weights: str, accept: tuple[str, ...] = ()
) -> int:
    """Average checkpoints, and write the network as a run.

    Args:
        places: One run folder, whose last checkpoints are averaged; or several checkpoints, and run
            folders that stand for their newest one.
        out: Folder to write; it must not exist.
        last: Number of checkpoints of the one run; None for all.
        weights: See `checkpoint_weights`.
        accept: Fields of the contract that may differ from the record.

    Raises:
        UserError: There are not two checkpoints, or they do not belong together.
    """
    from lit_pretrain.report.run_folder import check_new_folder

    check_new_folder(out)
    from lit_pretrain.checkpoint.layout import config_of
    from lit_pretrain.checkpoint.lineage import lineage_of
    from lit_pretrain.checkpoint.weighted_mean import average_checkpoints, checkpoint_weights
    from lit_pretrain.checkpoint.weights import read_adapter_record, read_record
    from lit_pretrain.checkpoint.write_run import RunContent, inherited_facts, write_run
    from lit_pretrain.data_lineage import NO_DATA

    paths = _checkpoints(places, last)
    records = [read_record(path) for path in paths]
    shares = checkpoint_weights(weights, [record.step for record in records])
    language = _check_belong_together(paths, accept)
    tensors, score = average_checkpoints(paths, shares)
    newest = paths[-1]
    adapter = read_adapter_record(newest)
    if adapter is not None:
        base = adapter.find_base(newest)
        adapter = dataclasses.replace(adapter, base=base, base_from_run=os.path.relpath(base, out))
    run = RunContent(
        config=config_of(newest),
        tensors=tensors,
        step=records[-1].step,
        language=language,
        facts={
            **inherited_facts(newest.parent.parent),
            "verb": "average",
            "parent": str(newest),
            "averaged": {str(path): share for path, share in zip(paths, shares, strict=True)},
        },
        data=NO_DATA,
        parent=lineage_of(newest),
        adapter=adapter,
        score=score,
    )
    write_run(Path(out), run)
    for path, share in zip(paths, shares, strict=True):
        print(f"{share:8.4f}  {path}")
    print(f"done: {out}, the average of {len(paths)} checkpoints ({weights})")
    return 0


def _checkpoints(places: list[str], last: int | None) -> list[Path]:
    """Find the checkpoints to average, oldest first."""
    from lit_pretrain.checkpoint.layout import check_sound, checkpoints, resolve, step_of
    from lit_pretrain.checkpoint.remote_run import fetched
    from lit_pretrain.step_size import counted

    if last is not None and last < 2:
        raise UserError(f"--last {last}: an average needs at least 2 checkpoints")
    if len(places) == 1 and is_remote(places[0]) and step_of(Path(places[0])) is None:
        places = [str(fetched(places[0], which="all"))]
    resolve(places[0])
    if len(places) == 1 and step_of(Path(places[0])) is None and Path(places[0]).is_dir():
        found = checkpoints(Path(places[0]))
        if len(found) < (last or 2):
            raise UserError(
                f"{places[0]} keeps {counted(len(found), 'checkpoints')}; an average of"
                f" {last or 'at least 2'} needs as many: keep more with --keep_checkpoints and"
                " --checkpoint_every, or average fewer with --last"
            )
        found = found[-(last or len(found)) :]
        for path in found:
            check_sound(path)
        return found
    if last is not None:
        raise UserError("--last chooses among the checkpoints of one run; name that run alone")
    if len(places) < 2:
        raise UserError(
            f"{places[0]} is one checkpoint; name its run with --last, or more checkpoints"
        )
    found = [resolve(place) for place in places]
    twice = next((path for i, path in enumerate(found) if path in found[:i]), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; its weight is for --weights to set")
    return found


def _check_belong_together(paths: list[Path], accept: tuple[str, ...]) -> ModelTokenizer | None:
    """Refuse checkpoints whose networks, tokenizers, data or bases differ."""
    from lit_pretrain.chat.model_tokenizer import check_model_tokenizer
    from lit_pretrain.checkpoint.layout import config_of
    from lit_pretrain.checkpoint.lineage import check_files
    from lit_pretrain.checkpoint.weights import read_adapter_record
    from lit_pretrain.report.run_folder import read_provenance

    def facts_of(path: Path) -> dict[str, object]:
        adapter = read_adapter_record(path)
        return {
            "the shape of the network (model.net)": config_of(path)["model"]["net"],
            "the data (hash of the manifest)": read_provenance(path.parent.parent)["manifest_hash"],
            "the adapter": None if adapter is None else adapter.adapter,
            "the base of the adapter": None if adapter is None else adapter.base_hash,
        }

    newest = paths[-1]
    expected, language = facts_of(newest), check_files(newest, accept=accept)
    for path in paths[:-1]:
        found = facts_of(path)
        for what, value in expected.items():
            if found[what] != value:
                raise UserError(
                    f"{path} and {newest} do not belong together: {what} differs ({found[what]};"
                    f" {value}); average checkpoints of one run, or of runs on the same data"
                )
        own = check_files(path, accept=accept)
        if language is not None and own is not None:
            check_model_tokenizer(
                language.record(),
                own.record(),
                owner=str(newest),
                other=str(path),
                accept=accept,
            )
    return language


def main(argv: list[str]) -> int:
    """Run `lit_pretrain average RUN OUT`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("average", __doc__)
    parser.add_argument(
        "places",
        type=str,
        nargs="+",
        help=(
            "A run folder, whose checkpoints are averaged, or several checkpoints; then the folder"
            " to write, which must not exist."
        ),
    )
    parser.add_argument(
        "--last",
        type=int | None,
        default=None,
        help="How many of the run's checkpoints to average. Default: all that it keeps.",
    )
    parser.add_argument(
        "--weights",
        type=str,
        default="equal",
        help=(
            "equal: as after a linear decay over the checkpoints. 1-sqrt: as after a decay by"
            " 1 - sqrt(progress). ema:HALF_LIFE: weights that halve with every HALF_LIFE optimizer"
            " steps before the newest. The first two take the checkpoints as evenly spaced."
        ),
    )
    parser.add_argument(
        "--accept",
        type=list[str],
        default=[],
        help="Fields of the contract that may differ from the record: tokenizer, template, …",
    )
    options = parser.parse_args(argv)
    *places, out = options.places
    if not places:
        raise UserError(
            f"average needs what to average and where to write it; found only {out}: lit_pretrain"
            " average RUN OUT"
        )
    return average(
        places, out, last=options.last, weights=options.weights, accept=tuple(options.accept)
    )


VERB = Verb(main, example="lit_pretrain average runs/quickstart runs/averaged --last 3")
