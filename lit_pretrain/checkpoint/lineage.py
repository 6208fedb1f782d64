"""Lineage: what every artefact says of its language and of all stages that made it, down to the
raw sources; it outlives their folders.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from lit_pretrain.errors import UserError

LINEAGE_FILENAME = "lineage.json"
LINEAGE_VERSION = 1


@dataclass(frozen=True)
class Lineage:
    """The record of a run, an adapter, a merged run or an export."""

    language: Mapping[str, Any]
    """Tokenizer hash, vocabulary, special ids and template hash
    (`data.language.Language.record`); empty where it is not known.
    """
    stages: tuple[Mapping[str, Any], ...]
    """The artefact's own stage first, then its parent's, and so on. Each has name, verb, started,
    revision, parent and data; data is null where nothing was read or is not known, else where,
    hash, sources and gate (`DataRecord` of data/data_record.py).
    """

    def dump(self) -> str:
        """The text of lineage.json."""
        return (
            json.dumps(
                {
                    "format_version": LINEAGE_VERSION,
                    "language": dict(self.language),
                    "stages": list(self.stages),
                },
                indent=1,
                ensure_ascii=False,
            )
            + "\n"
        )

    @classmethod
    def read(cls, folder: Path) -> Optional["Lineage"]:
        """That of a folder; None if it has none, as runs of earlier versions and folders from
        elsewhere.

        Raises:
            UserError: It is damaged, or of another version.
        """
        file = folder / LINEAGE_FILENAME
        if not file.is_file():
            return None
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            version = raw["format_version"]
            if version == LINEAGE_VERSION:
                return cls(raw["language"], tuple(raw["stages"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({type(error).__name__}: {error}); copy it again from where the"
                " folder came from"
            ) from None
        raise UserError(
            f"{file} has format_version {version!r}; this lit_pretrain reads {LINEAGE_VERSION}"
        )


def source_lines(data: Mapping[str, Any]) -> list[str]:
    """A line for each raw source of a stage's data."""
    lines = []
    for name, source in data["sources"].items():
        told = [str(source[key]) for key in ("kind", "format") if source.get(key)]
        told += [f"licence {source['licence']}"] if source.get("licence") else []
        told += (
            [f"{source['documents']:,} documents"] if source.get("documents") is not None else []
        )
        told += [f"{source['tokens']:,} tokens"] if source.get("tokens") is not None else []
        told += (
            [f"from {source.get('origin') or source.get('path')}"]
            if source.get("origin") or source.get("path")
            else []
        )
        told += [f"sha256 {source['sha256'][:16]}"] if source.get("sha256") else []
        lines.append(f"source {name}: {', '.join(told)}")
    for record in data["gate"]:
        hits = f"{record['documents_hit']:,} documents hit, {record['action']}"
        lines.append(f"held against {record['name']}: {hits}")
    return lines
