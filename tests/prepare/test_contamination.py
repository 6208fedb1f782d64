"""A document with a hit is left out, or says in which sets it stands."""

from lit_pretrain.data.decontaminate.config import DecontaminateConfig
from lit_pretrain.data.decontaminate.index import Hit
from lit_pretrain.prepare.contamination import removed_or_marked
from lit_pretrain.prepare.document import Document


def test_remove_or_mark() -> None:
    document = Document(text="t", origin="o", fields={"url": "u"})
    hits = [Hit("b", 1, 1, "", ""), Hit("a", 2, 1, "", ""), Hit("b", 3, 1, "", "")]
    assert removed_or_marked(document, hits, DecontaminateConfig()) is None
    marked = removed_or_marked(document, hits, DecontaminateConfig(action="mark"))
    assert marked == Document(text="t", origin="o", fields={"url": "u", "contamination": "a,b"})
    assert removed_or_marked(document, [], DecontaminateConfig()) is document
