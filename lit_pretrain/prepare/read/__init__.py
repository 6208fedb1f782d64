"""Reading: the documents of a source's files, in an order that does not depend on the machine.

`file_reader` says what a reader is and lists ours; every other module holds readers for formats
that belong together. `source_reader` applies the policies that all formats share.
"""
