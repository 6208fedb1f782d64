"""A document with a hit is left out, or says in which sets it stands."""

from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, DecontaminationHit
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.stages.clean import apply_action


def test_remove_or_mark() -> None:
    document = Document(text="t", origin="o", fields={"url": "u"})
    hits = [
        DecontaminationHit("b", 1, 1, "", ""),
        DecontaminationHit("a", 2, 1, "", ""),
        DecontaminationHit("b", 3, 1, "", ""),
    ]
    assert apply_action(document, hits, DecontaminateConfig()) is None
    marked = apply_action(document, hits, DecontaminateConfig(action="mark"))
    assert marked == Document(text="t", origin="o", fields={"url": "u", "contamination": "a,b"})
    assert apply_action(document, [], DecontaminateConfig()) is document
