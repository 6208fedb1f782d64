"""Parts: the input cut into tasks, by nothing but the files and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lit_pretrain.prepare.inputs import InputFile, Inputs


@dataclass(frozen=True)
class Part:
    """Consecutive files of one source: what one task reads, and one run of chunks in the dataset."""

    source: str
    """Name of the source."""
    number: int
    """Within the source, from 0."""
    files: tuple[InputFile, ...]
    """In reading order."""

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file.bytes for file in self.files)


def cut(inputs: Mapping[str, Inputs], part_bytes: int) -> list[Part]:
    """Cuts every source into parts of about `part_bytes`; a file is never cut, so a larger one is a part of its own.

    The number of workers has no say, so that it cannot show in the result.
    """
    parts: list[Part] = []
    for source, found in inputs.items():
        files: list[InputFile] = []
        number = size = 0
        for file in found.files:
            if files and size + file.bytes > part_bytes:
                parts.append(Part(source, number, tuple(files)))
                number, files, size = number + 1, [], 0
            files.append(file)
            size += file.bytes
        if files:
            parts.append(Part(source, number, tuple(files)))
    return parts
