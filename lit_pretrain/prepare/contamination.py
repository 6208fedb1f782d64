"""Contamination: what becomes of a document that holds what a model will be examined on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lit_pretrain.data.decontaminate.config import DecontaminateConfig
from lit_pretrain.data.decontaminate.index import Hit
from lit_pretrain.prepare.document import Document


def removed_or_marked(document: Document, hits: Sequence[Hit], config: DecontaminateConfig) -> Document | None:
    """The document under the config's action: None to remove it, or with the names of the sets in its field `contamination`."""
    if not hits:
        return document
    if config.action == "remove":
        return None
    names = ",".join(sorted({hit.set for hit in hits}))
    return dataclasses.replace(document, fields={**document.fields, "contamination": names})
