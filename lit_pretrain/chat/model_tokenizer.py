"""Language: what the text of a network looks like: its tokenizer, its chat template, the ids
that begin and end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_pretrain.chat.render import Renderer
from lit_pretrain.chat.template import TEMPLATE_FILENAME as TEMPLATE
from lit_pretrain.chat.template import ChatTemplate, Refused, template_of
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer
from lit_pretrain.tokenizer.tokenizer_files import TOKENIZER_FILENAME

MODEL_TOKENIZER_FIELDS = {
    "tokenizer": "sha256 of tokenizer.json",
    "vocabulary": "number of token ids",
    "bos_id": "id that begins a document",
    "eos_id": "id that ends one",
    "template": "sha256 of the chat template",
    "stop_ids": "ids that end what is generated",
}
"""What a language's record holds."""


@dataclass(frozen=True)
class ModelTokenizer:
    """Tokenizer and chat template of an artefact."""

    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    """None: a base model, which knows documents and no conversations."""

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> ModelTokenizer:
        """That of a run, an export, a prepared dataset or a Hugging Face folder.

        Raises:
            UserError: It holds no tokenizer, or a broken template.
        """
        return cls(Tokenizer.load(folder), template_of(Path(folder)))

    @classmethod
    def found(cls, folder: str | os.PathLike[str]) -> ModelTokenizer | None:
        """The same; None if the folder holds no tokenizer."""
        return cls.of(folder) if (Path(folder) / TOKENIZER_FILENAME).is_file() else None

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """What ends a generated text: the end of a document, and the end of a turn."""
        return (
            frozenset({self.tokenizer.eos_id})
            if self.template is None
            else Renderer(self.tokenizer, self.template).stop_ids
        )

    @cached_property
    def adds_bos(self) -> bool:
        """Whether a prompt begins with bos: always where the network has seen documents only,
        else if the template writes it.
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

    def record(self) -> dict[str, Any]:
        """The identity of the language, as it is stored with every artefact."""
        return {
            "tokenizer": self.tokenizer.hash,
            "vocabulary": self.tokenizer.vocab_size,
            "bos_id": self.tokenizer.bos_id,
            "eos_id": self.tokenizer.eos_id,
            "template": None if self.template is None else self.template.hash,
            "stop_ids": sorted(self.stop_ids),
        }

    def save(self, folder: Path) -> None:
        """Write tokenizer and template."""
        self.tokenizer.save(folder)
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template.source, encoding="utf-8")


def check_model_tokenizer(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    owner: str,
    other: str,
    accept: Sequence[str] = (),
    mend: str = "",
) -> None:
    """Refuse a hand-over between artefacts that speak differently.

    Args:
        expected: The record of one.
        found: That of the other; fields that either lacks are not compared.
        owner: What the first is, for messages.
        other: What the second is.
        accept: Fields that may differ.
        mend: What to do about it, besides accepting.

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
