"""Clean: everything that looks at one document at a time, from the raw files of a part to documents worth comparing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pretrain.prepare.config import PrepareConfig
from lit_pretrain.prepare.engine.stage import Advance
from lit_pretrain.prepare.funnel import Funnel
from lit_pretrain.prepare.inputs import Inputs
from lit_pretrain.prepare.parts import Part
from lit_pretrain.prepare.read import Reader
from lit_pretrain.prepare.rejects import Rejects
from lit_pretrain.prepare.store import DocumentWriter
from lit_pretrain.prepare.survivors import clean_file


@dataclass(frozen=True)
class CleanTask:
    """Reads one part: read → filters → decontaminate → pii."""

    config: PrepareConfig
    parts: tuple[Part, ...]
    bases: dict[str, Path]
    work: Path

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes clean/<number>.parquet; returns the funnel of the part, and samples of what it left behind."""
        part = self.parts[number]
        funnel = Funnel(["read"])
        rejects = Rejects(self.config.keep_rejects)
        reader = Reader(self.config.sources[part.source], Inputs(self.bases[part.source], part.files), self.config)
        with DocumentWriter(clean_file(self.work, number)) as writer:
            for document in reader:
                size = len(document.utf8)
                funnel.passed("read", size)
                writer.add(document)
                advance(size)
        funnel.steps["read"].removed.update(reader.skipped)
        funnel.steps["read"].changed.update(reader.changed)
        return {"funnel": funnel.dump(), "rejects": rejects.dump()}
