"""Parent: whether the data speaks the language of the weights that a run starts from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from lit_pretrain.checkpoint.parent import Parent
from lit_pretrain.cli.data_choice import Data
from lit_pretrain.cli.lineage import check_files
from lit_pretrain.cli.messages import warn
from lit_pretrain.data.language import check_language
from lit_pretrain.data.tokenizer_files import FILENAME as TOKENIZER
from lit_pretrain.errors import UserError


def check_parent(parent: Parent, data: Data, *, accept: Sequence[str] = (), mend: Optional[str] = None) -> None:
    """Refuse data whose token ids, separators or conversations mean something else to the parent.

    Args:
        parent: The parent.
        data: The data.
        accept: Fields that may differ.
        mend: What to do about another tokenizer; null: prepare the data again.

    Raises:
        UserError: They differ, or the parent's own files are no longer those of its record; names each field and both values.
    """
    language = check_files(parent.path, accept=tuple(accept))
    if language is None and parent.tokenizer_hash is None:
        warn(f"{parent.path} holds no {TOKENIZER}: whether the data's token ids mean the same to it cannot be checked")
        return
    expected: dict[str, object] = {"tokenizer": parent.tokenizer_hash}
    if language is not None:
        own = language.tokenizer
        expected = {"tokenizer": own.hash, "vocabulary": own.vocab_size, "bos_id": own.bos_id, "eos_id": own.eos_id}
        if language.template is not None and data.template_hash is not None:
            expected["template"] = language.template.hash
    if parent.tokenizer_hash is not None and expected["tokenizer"] != parent.tokenizer_hash and "tokenizer" not in accept:
        raise UserError(
            f"{tokenizer_folder(parent)} does not fit its own checkpoint {parent.path}:\n  tokenizer (sha256 of tokenizer.json): expected "
            f"{parent.tokenizer_hash}, found {expected['tokenizer']}\nPut its tokenizer back, or accept it by name: --accept '[tokenizer]'"
        )
    tokenizer = data.tokenizer
    found = {
        "tokenizer": data.tokenizer_hash, "vocabulary": data.vocab_size, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id,
        "template": data.template_hash,
    }  # fmt: skip
    if expected["tokenizer"] == found["tokenizer"]:
        mend = (
            "Leave data.template: auto, which takes the parent's."
            if expected.get("template", found["template"]) != found["template"]
            else ""
        )
    check_language(
        expected, found, owner=f"the parent {parent.path}", other=f"the data {data.where}", accept=accept,
        mend=_prepare_again(parent) if mend is None else mend,
    )  # fmt: skip


def _prepare_again(parent: Parent) -> str:
    return (
        f"Prepare the data with the parent's: lit_pretrain prepare ... --tokenizer.kind file --tokenizer.path {tokenizer_folder(parent)}."
    )


def tokenizer_folder(parent: Parent) -> Path:
    """Where the tokenizer of a parent lies."""
    return parent.path if parent.tokenizer_hash is None else parent.path.parent.parent
