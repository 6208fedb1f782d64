"""Lineage as the command line writes it: the record of a stage, and the stages behind a parent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from lit_pretrain.chat.model_tokenizer import ModelTokenizer, check_model_tokenizer
from lit_pretrain.checkpoint.find import step_of
from lit_pretrain.checkpoint.hf_import import HF_CONFIG
from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import PROVENANCE


def home_of(place: Union[str, Path]) -> Path:
    """The folder of an artefact from what names it: of a checkpoint its run, else the folder
    itself.
    """
    path = Path(place)
    return path if path.is_dir() and step_of(path) is None else path.parent.parent


def lineage_of(place: Union[str, Path]) -> Lineage:
    """The lineage of a run, a checkpoint, an export or a Hugging Face folder, as far as it is
    known.

    Raises:
        UserError: Its record is damaged.
    """
    home = home_of(place)
    found = Lineage.read(home)
    if found is not None:
        return found
    language = ModelTokenizer.found(home)
    record = {} if language is None else language.record()
    if (home / HF_CONFIG).is_file():
        stage = {
            "name": str(home),
            "verb": "Hugging Face folder",
            "started": None,
            "revision": None,
            "parent": None,
            "data": None,
        }
        return Lineage(record, (stage,))
    file = home / PROVENANCE
    if not file.is_file():
        raise UserError(f"{place} belongs to no run: {file} is missing")
    facts = json.loads(file.read_text(encoding="utf-8"))
    return Lineage(record, (stage_record(str(home), facts, None),))


def stage_record(
    name: str, facts: Mapping[str, Any], data: Optional[Mapping[str, Any]]
) -> dict[str, Any]:
    """The record of one stage.

    Args:
        name: The folder that it made.
        facts: Of its provenance.
        data: Of its data.
    """
    kept = {key: facts.get(key) for key in ("verb", "started", "revision", "parent")}
    return {"name": name, **kept, "data": data}


def check_files(
    place: Union[str, Path], *, accept: tuple[str, ...] = ()
) -> Optional[ModelTokenizer]:
    """The language of an artefact, whose files must be those that its record speaks of.

    Args:
        place: A run, a checkpoint, an export or a Hugging Face folder.
        accept: Fields that may differ.

    Returns:
        None if it holds no tokenizer.

    Raises:
        UserError: The files were changed since; names each field.
    """
    home = home_of(place)
    language, record = ModelTokenizer.found(home), Lineage.read(home)
    if language is not None and record is not None:
        check_model_tokenizer(
            record.language, language.record(), owner=f"the record of {home}",
            other=f"the tokenizer or template beside it in {home}",
            accept=accept, mend="Put the files back that belong to it.",
        )  # fmt: skip
    return language
