"""The checks at the end of an exchange: the same logits, the same token ids.

Axes: B rows, T tokens, V vocabulary.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer

PROBE_ROWS, PROBE_LENGTH = 4, 64
"""Size of the random tokens on which networks are compared."""
TEXTS = (
    "In 1234567 days, I'll say \"WE'RE here\" — naïve café, Straße.",
    "def f(x):\n    return x + 1\n\n\n\t# 3.14159  done \r\n",
    "cafe\u0301 \ufb01 \u212b",
    "你好，世界 🦊👩‍👩‍👧 ١٢٣",
)
"""Texts on which tokenizers are compared: digits, contractions, runs of white space, letters that a
normalisation changes, and scripts without spaces.
"""


def probe_tokens(shape: ModelConfig) -> Tensor:
    """Draw the tokens of a comparison: (4, 64), or as many as the network has positions."""
    length = min(PROBE_LENGTH, shape.max_seq_len)
    return torch.randint(
        shape.vocab_size, (PROBE_ROWS, length), generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def logits_of(net: Transformer, tokens_BT: Tensor) -> Tensor:
    """Compute the logits (B, T, V) of a network of ours."""
    logits_BTV: Tensor = net.logits(net(tokens_BT))
    return logits_BTV


def hf_logits(folder: Path, tokens_BT: Tensor) -> Tensor | None:
    """Compute the logits of a folder by transformers, in fp32; None if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")  # its types differ between versions
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits_BTV: Tensor = model(tokens_BT).logits
    return logits_BTV


def check_same_logits(
    expected_BTV: Tensor,
    found_BTV: Tensor,
    *,
    what: str,
    tolerance: float,
    mend: str,
    say: Callable[[str], None] = print,
) -> float:
    """Report how much logits differ, and refuse a difference beyond the tolerance.

    Args:
        expected_BTV: Logits of one network.
        found_BTV: Logits of the other.
        what: The two networks, in words.
        tolerance: Largest difference to accept, relative to the largest logit.
        mend: What the user may do about a larger one.
        say: Receives the line with the figures.

    Returns:
        The largest difference.

    Raises:
        UserError: It is too large.
    """
    difference = (expected_BTV - found_BTV).abs().max().item()
    largest = expected_BTV.abs().max().item()
    say(
        f"logits of {expected_BTV.shape[0]} × {expected_BTV.shape[1]} random tokens, {what}:"
        f" largest difference {difference:.3g}, largest logit {largest:.3g}"
    )
    if not difference <= tolerance * largest:  # a NaN fails, too
        raise UserError(
            f"{what}: the logits differ by {difference / largest:.3g} of the largest, more than"
            f" {tolerance:g}; nothing is written. {mend}"
        )
    return difference


def other_ids(folder: Path, tokenizer: Tokenizer) -> str | None:
    """Compare the ids that transformers gives a few texts with those of our tokenizer.

    transformers 5 gives some architectures a tokenizer of its own, whatever tokenizer.json says:
    Qwen2 gets that of Qwen2.

    Args:
        folder: It holds config.json and the tokenizer's files.
        tokenizer: Ours.

    Returns:
        None if the ids are the same or transformers is not installed, else what differs.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")  # its types differ between versions
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    differing = sum(
        list(theirs(text, add_special_tokens=False).input_ids) != tokenizer.encode(text)
        for text in TEXTS
    )
    if not differing:
        return None
    return (
        f"AutoTokenizer of transformers {transformers.__version__} makes a {type(theirs).__name__}"
        f" of it, with other ids for {differing} of {len(TEXTS)} texts"
    )
