"""ModelTokenizer: the tokenizer and the chat template of a network, and their identity."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from lit_pretrain.chat.render import Renderer
from lit_pretrain.chat.template import TEMPLATE_FILENAME as TEMPLATE
from lit_pretrain.chat.template import ChatTemplate, Refused, template_of
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer
from lit_pretrain.tokenizer.tokenizer_files import TOKENIZER_FILENAME


class ModelTokenizerRecord(TypedDict, total=False):
    """Identity of tokenizer and template, as every artefact stores it; empty where unknown."""

    tokenizer: str
    vocabulary: int
    bos_id: int
    eos_id: int
    template: str | None
    stop_ids: list[int]


MODEL_TOKENIZER_FIELDS = {
    "tokenizer": "sha256 of tokenizer.json",
    "vocabulary": "number of token ids",
    "bos_id": "id that begins a document",
    "eos_id": "id that ends one",
    "template": "sha256 of the chat template",
    "stop_ids": "ids that end what is generated",
}
"""Meaning of the fields of `ModelTokenizerRecord`, for messages."""


@dataclass(frozen=True)
class ModelTokenizer:
    """Tokenizer and chat template of an artefact."""

    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    """None for a base model, which was trained on documents and not on conversations."""

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> ModelTokenizer:
        """Load from a run, an export, a prepared dataset or a Hugging Face folder.

        Raises:
            UserError: The folder holds no tokenizer, or the template is broken.
        """
        return cls(Tokenizer.load(folder), template_of(Path(folder)))

    @classmethod
    def found(cls, folder: str | os.PathLike[str]) -> ModelTokenizer | None:
        """Load as `of` does; None if the folder holds no tokenizer."""
        return cls.of(folder) if (Path(folder) / TOKENIZER_FILENAME).is_file() else None

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generated text: the end of a document and the end of a turn."""
        return (
            frozenset({self.tokenizer.eos_id})
            if self.template is None
            else Renderer(self.tokenizer, self.template).stop_ids
        )

    @cached_property
    def adds_bos(self) -> bool:
        """Whether a prompt begins with bos: always without a template, else if the template has it.

        A base model has seen documents only, and each of them began with bos.
        """
        if self.template is None:
            return True
        try:
            text = self.template.render(
                [{"role": "user", "content": "Question"}],
                bos=self.tokenizer.bos,
                eos=self.tokenizer.eos,
            ).text
        except Refused as error:
            raise UserError(
                f"the chat template {self.template.name} does not take a question: {error}"
            ) from None
        return text.startswith(self.tokenizer.bos)

    def record(self) -> ModelTokenizerRecord:
        """Return the identity of tokenizer and template, as every artefact stores it."""
        return {
            "tokenizer": self.tokenizer.hash,
            "vocabulary": self.tokenizer.vocab_size,
            "bos_id": self.tokenizer.bos_id,
            "eos_id": self.tokenizer.eos_id,
            "template": None if self.template is None else self.template.hash,
            "stop_ids": sorted(self.stop_ids),
        }

    def save(self, folder: Path) -> None:
        """Write tokenizer and template to a folder."""
        self.tokenizer.save(folder)
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template.source, encoding="utf-8")


def check_model_tokenizer(
    expected: Mapping[str, object],
    found: Mapping[str, object],
    *,
    owner: str,
    other: str,
    accept: Sequence[str] = (),
    mend: str = "",
) -> None:
    """Refuse to combine artefacts whose tokenizers or templates differ.

    Args:
        expected: The record of one artefact.
        found: The record of the other; a field that either lacks is not compared.
        owner: What the first artefact is, for messages.
        other: What the second artefact is.
        accept: Fields that may differ.
        mend: How to remove the difference, besides accepting it.

    Raises:
        UserError: Names the fields that differ and both values, and how to accept them.
    """
    unknown = sorted(set(accept) - set(MODEL_TOKENIZER_FIELDS))
    if unknown:
        raise UserError(
            f"--accept {', '.join(unknown)}: there is no such field; there are"
            f" {', '.join(MODEL_TOKENIZER_FIELDS)}"
        )
    wrong = [
        name
        for name in MODEL_TOKENIZER_FIELDS
        if name in expected
        and name in found
        and expected[name] != found[name]
        and name not in accept
    ]
    if wrong:
        lines = "".join(
            f"\n  {name} ({MODEL_TOKENIZER_FIELDS[name]}): expected {expected[name]}, found"
            f" {found[name]}"
            for name in wrong
        )
        raise UserError(
            f"{other} does not fit {owner}:{lines}\n{mend + ' ' if mend else ''}If the difference"
            f" is meant, accept it by name: --accept '[{', '.join(wrong)}]'"
        )
