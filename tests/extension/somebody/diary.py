"""DiaryReader: a reader in a file outside lit_pretrain."""

from collections.abc import Iterable
from pathlib import Path

from lit_pretrain.prepare.read.reader import FileReader, RawText


class DiaryReader(FileReader):
    """Read diaries, whose entries follow lines of three stars."""

    suffixes = (".diary",)

    def records(self, path: Path, name: str) -> Iterable[RawText]:
        """Read one entry after the other."""
        for number, entry in enumerate(path.read_text(encoding="utf-8").split("***\n"), start=1):
            yield RawText(f"{name}:{number}", entry)
