"""Tokenizer files: find the tokenizer of a folder, and the tokens that separate documents."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import load_json

TOKENIZER_FILENAME = "tokenizer.json"
CONFIG_FILENAME = "tokenizer_config.json"
MAP_FILENAME = "special_tokens_map.json"

_KNOWN_SEPARATORS = (
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|endoftext|>", "<|endoftext|>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
)
"""Pairs (bos, eos) of published tokenizers, tried in this order if no file names the tokens."""


def read_tokenizer_file(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Find a tokenizer.json, given itself or its folder, and read its text.

    Raises:
        UserError: It does not exist or cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        file = file / TOKENIZER_FILENAME
    try:
        return file, file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        )
        raise UserError(f"tokenizer {file} {reason}; {_other_kind(file.parent)}") from None


def stated_separators(folder: Path) -> tuple[str | None, str | None]:
    """Return (bos, eos) as tokenizer_config.json states them, else special_tokens_map.json.

    Raises:
        UserError: One of these files is damaged.
    """
    bos = eos = None
    for name in (CONFIG_FILENAME, MAP_FILENAME):
        config = _json_object(folder / name)
        bos, eos = (_spelling(config, key, folder / name) for key in ("bos_token", "eos_token"))
        if bos or eos:
            break
    return bos, eos


_TURN = re.compile(
    r"<\|?/?(?:im_(?:start|end|sep)|(?:start|end)_of_turn|turn|eo[tm](?:_id)?|end_?turn|END_OF_TURN_TOKEN"
    r"|START_OF_TURN_TOKEN|(?:start|end)_header_id|role_(?:start|end)|end|return|call|user|assistant"
    r"|system|assistant_end|end_of_message|turn_end|header_end)\|?>|\[/?INST\]|<turn\|>"
)
"""Tokens that begin or end a turn of a chat in published instruct models."""
_ENDS_OF_TEXT = (
    "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "<|EOS_TOKEN|>",
    "<|END_OF_TEXT_TOKEN|>", "<|eos|>", "[EOS]", "<|end_of_document|>",
)  # fmt: skip
_BEGINS_OF_TEXT = {"<|end_of_text|>": "<|begin_of_text|>", "</s>": "<s>", "<eos>": "<bos>"}


def is_ours(folder: Path) -> bool:
    """Tell whether this package wrote a folder, whose separators are then stated on purpose."""
    return any((folder / name).is_file() for name in ("lineage.json", "manifest.json"))


def document_separators(
    bos: str | None, eos: str | None, special_tokens: Collection[str]
) -> tuple[str | None, str | None]:
    """Replace separators that end a turn of a chat by the end of a text, where there is one.

    An instruct model states the end of a turn as its eos token, because that is where its answers
    end. Documents that end with it would teach that a text is a turn.

    Args:
        bos: The bos token as the tokenizer's folder states it.
        eos: The eos token likewise.
        special_tokens: Special tokens of the tokenizer.
    """
    turns = [token is not None and _TURN.fullmatch(token) is not None for token in (bos, eos)]
    end = next((token for token in _ENDS_OF_TEXT if token in special_tokens), None)
    if not any(turns) or end is None:
        return bos, eos
    begin = _BEGINS_OF_TEXT.get(end)
    if bos is not None and turns[0]:
        bos = begin if begin in special_tokens else end
    return bos, end if turns[1] or eos is None else eos


def separators(
    special_tokens: Collection[str], bos: str | None, eos: str | None, where: str
) -> tuple[str, str]:
    """Return the tokens that start and end a document: those given, else the usual names.

    Args:
        special_tokens: Special tokens of the tokenizer.
        bos: The first token of documents, if the user or a file states it. One of the two serves
            as both.
        eos: The last token of documents, likewise.
        where: Names the file in messages.

    Raises:
        UserError: Neither is given and no pair of the usual names is there.
    """
    if bos is None and eos is None:
        for pair in _KNOWN_SEPARATORS:
            if all(token in special_tokens for token in pair):
                return pair
        if not special_tokens:
            raise UserError(
                f"{where} has no special token, and documents need one to separate them. Add one to"
                " it with the `tokenizers` library (`Tokenizer.from_file(...)`,"
                " `add_special_tokens(['<|endoftext|>'])`, `save(...)`), or train a tokenizer."
            )
        raise UserError(
            f"{where} names no token that separates documents: it has neither a {CONFIG_FILENAME}"
            f" nor a {MAP_FILENAME} beside it that says bos_token or eos_token, and none of the"
            f" usual names ({listed({t for pair in _KNOWN_SEPARATORS for t in pair})}). Set"
            " `tokenizer.bos` and `tokenizer.eos`, or one of them, in the prepare config to its"
            f" special tokens: {listed(special_tokens)}"
        )
    one = bos or eos
    assert one is not None
    return bos or one, eos or one


def _spelling(config: Mapping[str, Any], key: str, file: Path) -> str | None:
    """Return the spelling of a token in tokenizer_config.json: a string, or an object with one."""
    token = config.get(key)
    spelling = token.get("content") if isinstance(token, dict) else token
    if spelling is not None and not isinstance(spelling, str):
        raise UserError(
            f"{file}: {key} is {token!r}; it must be the spelling of one token, such as"
            ' "<|endoftext|>", or an object with it as its content'
        )
    return spelling


def _json_object(file: Path) -> Mapping[str, Any]:
    """Read the JSON object in a file; an empty one if there is no file."""
    try:
        value = load_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def listed(tokens: Iterable[str]) -> str:
    """List spellings for a message, at most 12: some tokenizers reserve hundreds of tokens."""
    spellings = sorted(tokens)
    return (
        ", ".join(spellings[:12])
        + (f" and {len(spellings) - 12} more" if len(spellings) > 12 else "")
        or "none"
    )


def _other_kind(folder: Path) -> str:
    """Say what to do about a missing tokenizer.json, by the files in its folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [
        n
        for n in names
        if n.endswith((".tiktoken", ".model")) or n in ("vocab.json", "vocab.txt", "merges.txt")
    ]
    if not others:
        return "give a tokenizer.json or a folder that holds one"
    return (
        f"{folder} holds {', '.join(others)}, which is another tokenizer's format (tiktoken,"
        " SentencePiece, ...). Convert it with the `transformers` library:"
        f" AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER) writes a"
        " tokenizer.json"
    )
