"""Run writer: a run folder that no training made, appearing whole or not at all."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import yaml
from torch import Tensor

from lit_pretrain.callbacks.checkpoint_io import PlainCheckpointIO
from lit_pretrain.checkpoint.contract import KEY
from lit_pretrain.checkpoint.find import FOLDER, checkpoint_name
from lit_pretrain.checkpoint.weights import PREFIX, SCORE
from lit_pretrain.cli.lineage import stage_record
from lit_pretrain.data.language import Language
from lit_pretrain.errors import UserError
from lit_pretrain.report.folder import CONFIG, PROVENANCE, provenance, write_whole
from lit_pretrain.report.lineage import FILENAME as LINEAGE
from lit_pretrain.report.lineage import Lineage


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder: filled under another name beside it, then renamed.

    Raises:
        UserError: There is something already, or it cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        fill(scratch)
        os.rename(scratch, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_run(
    out: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    step: int,
    language: Optional[Language],
    facts: Mapping[str, Any],
    record: Mapping[str, Any],
    data: Optional[Mapping[str, Any]],
    behind: Sequence[Mapping[str, Any]],
    score: Optional[Tensor] = None,
    check: Callable[[Path], None] = lambda run: None,
) -> None:
    """Write a run that others can start from, generate with and measure.

    Args:
        out: The folder; it must not exist.
        config: Its config.yaml.
        tensors: Of the network, by the names of its state dict.
        step: Number of the checkpoint.
        language: Its tokenizer and template; a Hugging Face folder may have none.
        facts: For provenance.json, beside versions, revision and command.
        record: Further entries of the checkpoint.
        score: The score head of a reward model.
        data: What it says of its data in its lineage; None: that is not known.
        behind: The stages behind it.
        check: Called with the finished folder before it gets its name; an error leaves nothing.
    """
    contract = {} if language is None else {"data.tokenizer": language.tokenizer.hash}

    def fill(folder: Path) -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
        write_whole(folder / CONFIG, text)
        if language is not None:
            language.save(folder)
        made = provenance(**facts, started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        write_whole(folder / PROVENANCE, json.dumps(made, indent=1) + "\n")
        lineage = Lineage({} if language is None else language.record(), (stage_record(str(out), made, data), *behind))
        write_whole(folder / LINEAGE, lineage.dump())
        state = {PREFIX + name: tensor for name, tensor in tensors.items()} | ({} if score is None else {SCORE: score})
        checkpoint = {"state_dict": state, KEY: {"step": step, "contract": contract}, **record}
        PlainCheckpointIO().save_checkpoint(checkpoint, folder / FOLDER / checkpoint_name(step))
        check(folder)

    write_folder(out, fill)
