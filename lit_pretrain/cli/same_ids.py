"""Same ids: whether transformers reads an exported folder's tokenizer as ours encodes."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Optional

from lit_pretrain.data.tokenizer import Tokenizer

TEXTS = (
    "In 1234567 days, I'll say \"WE'RE here\" — naïve café, Straße.",
    "def f(x):\n    return x + 1\n\n\n\t# 3.14159  done \r\n",
    "cafe\u0301 \ufb01 \u212b",  # which normalisation would change
    "你好，世界 🦊👩‍👩‍👧 ١٢٣",
)
"""Digits, contractions, runs of white space, letters that a normalisation changes, scripts without spaces."""


def other_ids(folder: Path, tokenizer: Tokenizer) -> Optional[str]:
    """Compare the ids of a few texts.

    transformers 5 gives some architectures a tokenizer of their own, whatever tokenizer.json says: Qwen2 that of Qwen2.

    Args:
        folder: Holds config.json and the tokenizer's files.
        tokenizer: Ours.

    Returns:
        None if they are the same or transformers is not installed, else what is read instead.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")  # its types differ between versions
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    differing = sum(list(theirs(text, add_special_tokens=False).input_ids) != tokenizer.encode(text) for text in TEXTS)
    if not differing:
        return None
    made = f"AutoTokenizer of transformers {transformers.__version__} makes a {type(theirs).__name__} of it"
    return f"{made}, with other ids for {differing} of {len(TEXTS)} texts"
