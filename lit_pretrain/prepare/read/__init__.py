"""Reading: the documents of input files, one at a time, in an order that does not depend on the
machine.

Each format has a file of its own and yields what `records` defines; `reader` applies the policies
that all share.
"""

from lit_pretrain.prepare.read.reader import Reader
from lit_pretrain.prepare.read.records import BadRecord, ReadCounts, ReadPolicy, check_bad

__all__ = ["BadRecord", "ReadCounts", "ReadPolicy", "Reader", "check_bad"]
