"""Parent: whether the data speaks the language of the weights that a run starts from."""

from pathlib import Path
from typing import Optional

from lit_pretrain.checkpoint.parent import Parent
from lit_pretrain.cli.messages import warn
from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.data.tokenizer_files import FILENAME as TOKENIZER
from lit_pretrain.errors import UserError


def check_tokenizer(parent: Parent, tokenizer_hash: str, data: str, mend: Optional[str] = None) -> None:
    """Refuse data whose token ids mean something else to the parent.

    Args:
        parent: The parent.
        tokenizer_hash: Of the data's tokenizer.
        data: Where the data lies.
        mend: What to do about it; null: prepare the data again.

    Raises:
        UserError: The tokenizers differ.
    """
    own = parent.tokenizer_hash
    if own is None:
        if not (parent.path / TOKENIZER).is_file():
            warn(f"{parent.path} holds no {TOKENIZER}: whether the data's token ids mean the same to it cannot be checked")
            return
        own = Tokenizer.load(parent.path).hash
    if own != tokenizer_hash:
        raise UserError(
            f"the tokenizer of {data} ({tokenizer_hash[:12]}) is not that of the parent {parent.path} ({own[:12]}): its weights know other "
            f"token ids. {mend or _prepare_again(parent)}"
        )


def _prepare_again(parent: Parent) -> str:
    return f"Prepare the data with the parent's: lit_pretrain prepare ... --tokenizer.kind file --tokenizer.path {tokenizer_folder(parent)}"


def tokenizer_folder(parent: Parent) -> Path:
    """Where the tokenizer of a parent lies."""
    return parent.path if parent.tokenizer_hash is None else parent.path.parent.parent
