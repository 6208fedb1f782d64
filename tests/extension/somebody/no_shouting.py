"""NoShouting: a filter in a file outside lit_pretrain."""

from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.filter import KEEP, Verdict, View, remove


class NoShouting:
    """Remove texts in capitals.

    Args:
        most: Largest share of capitals among the characters.
    """

    def __init__(self, *, most: float = 0.5) -> None:
        self.most = most

    def __call__(self, document: Document, view: View) -> Verdict:
        """See `Filter`."""
        capitals = sum(character.isupper() for character in view.text)
        return remove("shouting") if capitals > self.most * len(view.text) else KEEP
