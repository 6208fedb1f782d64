"""Lineage: lineage.json names the tokenizer of an artefact and the stages that led to it.

The record names the raw sources of every stage and is copied from parent to child, so that an
artefact answers for its data when the folders of its parents are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lit_pretrain.checkpoint.layout import HF_CONFIG, artefact_folder
from lit_pretrain.data_lineage import DataRecord
from lit_pretrain.errors import UserError
from lit_pretrain.files import read_sealed_json, seal_json
from lit_pretrain.redaction import redact
from lit_pretrain.report.run_folder import PROVENANCE, Provenance, read_provenance

if TYPE_CHECKING:
    from lit_pretrain.chat.model_tokenizer import ModelTokenizer

LINEAGE_FILENAME = "lineage.json"
LINEAGE_VERSION = 1


class _StageFields(TypedDict):
    name: str
    """The folder that the stage wrote."""
    verb: str | None
    started: str | None
    revision: str | None
    parent: str | None
    data: DataRecord | None
    """`NO_DATA` if the stage read none; None if its data is not known."""


class StageRecord(_StageFields, total=False):
    """Record one stage of a lineage; an export adds what it measured."""

    weights: str
    """sha256 of the exported weights by content."""
    logit_difference: float
    """Largest difference between the logits of the run and of its export."""


@dataclass(frozen=True)
class Lineage:
    """Record the language and all stages of a run, an adapter, a merged run or an export."""

    language: Mapping[str, Any]
    """Tokenizer hash, vocabulary, special ids and template hash (`ModelTokenizer.record`); empty
    if it is not known.
    """
    stages: tuple[StageRecord, ...]
    """The artefact's own stage first, then its parent's, and so on."""

    def dump(self) -> str:
        """Return the text of lineage.json."""
        return seal_json(
            {
                "format_version": LINEAGE_VERSION,
                "language": dict(self.language),
                "stages": redact(list(self.stages)),
            }
        )

    @classmethod
    def read(cls, folder: Path) -> Lineage | None:
        """Read the lineage of a folder; None if it has none, like a Hugging Face folder.

        Raises:
            UserError: It is damaged, or of another version.
        """
        file = folder / LINEAGE_FILENAME
        if not file.is_file():
            return None
        mend = "copy it again from where the folder came from"
        try:
            raw = read_sealed_json(file, known=("format_version", "language", "stages"))
        except UserError as error:
            raise UserError(f"{error}; {mend}") from None
        version = raw.get("format_version")
        if version is not None and version != LINEAGE_VERSION:
            raise UserError(
                f"{file} has format_version {version!r}; this lit_pretrain reads {LINEAGE_VERSION}"
            )
        language, stages = raw.get("language"), raw.get("stages")
        if (
            version is None
            or not isinstance(language, dict)
            or not (isinstance(stages, list) and all(map(_is_stage, stages)))
        ):
            raise UserError(f"{file} is damaged: it is not the record of a lineage; {mend}")
        return cls(language, tuple(stages))

    @classmethod
    def begin(
        cls, language: ModelTokenizer | None, stage: StageRecord, parent: Lineage | None
    ) -> Lineage:
        """Record a new stage in front of those of its parent."""
        return cls(
            {} if language is None else language.record(),
            (stage, *(() if parent is None else parent.stages)),
        )


def _is_stage(value: object) -> bool:
    """Tell whether a JSON value has all that the record of a stage needs."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    # More than these is no damage: an export adds what it measured.
    if not value.keys() >= _StageFields.__annotations__.keys():
        return False
    data = value["data"]
    return data is None or (
        isinstance(data, dict)
        and data.keys() >= DataRecord.__required_keys__
        and isinstance(data["sources"], dict)
        and all(isinstance(source, dict) for source in data["sources"].values())
        and isinstance(data["gate"], list)
        and all(isinstance(record, dict) for record in data["gate"])
    )


def stage_record(name: str, provenance: Provenance, data: DataRecord | None) -> StageRecord:
    """Record one stage.

    Args:
        name: The folder that the stage wrote.
        provenance: The provenance of that folder.
        data: The record of its data; `NO_DATA` if it read none, None if the data is not known.
    """
    return {
        "name": name,
        "verb": provenance.get("verb"),
        "started": provenance.get("started"),
        "revision": provenance.get("revision"),
        "parent": provenance.get("parent"),
        "data": data,
    }


def lineage_of(place: str | Path) -> Lineage:
    """Return the lineage of a run, a checkpoint, an export or a Hugging Face folder.

    A folder without lineage.json gets a lineage of one stage, as far as its files show it.

    Raises:
        UserError: Its record is damaged, or the place belongs to no run.
    """
    folder = artefact_folder(place)
    found = Lineage.read(folder)
    if found is not None:
        return found
    # It takes a third of a second to import, which `inspect --help` need not wait for.
    from lit_pretrain.chat.model_tokenizer import ModelTokenizer

    language = ModelTokenizer.found(folder)
    if (folder / HF_CONFIG).is_file():
        return Lineage.begin(
            language, stage_record(str(folder), {"verb": "Hugging Face folder"}, None), None
        )
    if not (folder / PROVENANCE).is_file():
        if Path(place).is_file():  # a script's checkpoint
            return Lineage.begin(None, stage_record(str(place), {"verb": "script"}, None), None)
        raise UserError(f"{place} belongs to no run: {folder / PROVENANCE} is missing")
    return Lineage.begin(language, stage_record(str(folder), read_provenance(folder), None), None)


def check_files(place: str | Path, *, accept: tuple[str, ...] = ()) -> ModelTokenizer | None:
    """Read tokenizer and template of an artefact, and check that its record names them.

    Args:
        place: A run, a checkpoint, an export or a Hugging Face folder.
        accept: Fields that may differ.

    Returns:
        None if it holds no tokenizer.

    Raises:
        UserError: The files have changed since the record was written; names each field.
    """
    from lit_pretrain.chat.model_tokenizer import ModelTokenizer, check_model_tokenizer

    folder = artefact_folder(place)
    language, record = ModelTokenizer.found(folder), Lineage.read(folder)
    if language is not None and record is not None:
        check_model_tokenizer(
            record.language,
            language.record(),
            owner=f"the record of {folder}",
            other=f"the tokenizer or template beside it in {folder}",
            accept=accept,
            mend="Put the files back that belong to it.",
        )
    return language


def source_lines(data: DataRecord) -> list[str]:
    """Describe the raw sources of a stage's data and its evaluation sets, one line each."""
    lines = []
    for name, source in data["sources"].items():
        facts = [text for text in (source.get("kind"), source.get("format")) if text]
        if licence := source.get("licence"):
            facts.append(f"licence {licence}")
        if (documents := source.get("documents")) is not None:
            facts.append(f"{documents:,} documents")
        if (tokens := source.get("tokens")) is not None:
            facts.append(f"{tokens:,} tokens")
        if origin := source.get("origin") or source.get("path"):
            facts.append(f"from {origin}")
        if sha256 := source.get("sha256"):
            facts.append(f"sha256 {sha256[:16]}")
        lines.append(f"source {name}: {', '.join(facts)}")
    if skipped := data.get("skipped"):
        lines.append(f"left out of the order: steps {skipped}")
    for record in data["gate"]:
        hits = f"{record['documents_hit']:,} documents hit, {record['action']}"
        lines.append(f"decontaminated against {record['name']}: {hits}")
    return lines
