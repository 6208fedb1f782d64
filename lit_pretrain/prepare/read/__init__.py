"""Reading: the documents of a source's files, in an order that does not depend on the machine.

`reader` says what a reader is and lists ours; the modules `*_reader` and `*_readers` hold them;
`read_source` reads the files of a source by one of them.
"""

from lit_pretrain.prepare.read.reader import (
    BadRecord,
    DamagedFile,
    FileReader,
    NoText,
    RawText,
    ReadPolicy,
)

__all__ = ["BadRecord", "DamagedFile", "FileReader", "NoText", "RawText", "ReadPolicy"]
