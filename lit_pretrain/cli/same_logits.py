"""Same logits: two networks on the same random tokens, the check at the end of every exchange."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig

ROWS, LENGTH = 4, 64
"""Random tokens on which networks are compared."""


def probe(shape: ModelConfig) -> Tensor:
    """The tokens, (4, 64) or as long as the network allows."""
    length = min(LENGTH, shape.max_seq_len)
    return torch.randint(shape.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))


def hf_logits(folder: Path, tokens_BT: Tensor) -> Optional[Tensor]:
    """Logits of transformers' own network of a folder, in fp32; None where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")  # its types differ between versions
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits: Tensor = model(tokens_BT).logits
    return logits


def check_same(
    expected: Tensor, found: Tensor, *, what: str, tolerance: Optional[float], rounded: bool, say: Callable[[str], None] = print
) -> float:
    """Print how much logits differ, and refuse what is beyond the tolerance.

    Args:
        expected: Logits of one network.
        found: Those of the other.
        what: The two, in words.
        tolerance: Largest difference relative to the largest logit; None: 1e-4 in float32, 0.1 in 16 bits.
        rounded: Whether weights were rounded to 16 bits.
        say: Where the figures go.

    Returns:
        The largest difference.

    Raises:
        UserError: It is too large.
    """
    difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    say(
        f"logits of {expected.shape[0]} × {expected.shape[1]} random tokens, {what}: largest difference {difference:.3g}, "
        f"largest logit {largest:.3g}"
    )
    accepted = tolerance if tolerance is not None else 0.1 if rounded else 1e-4
    if not difference <= accepted * largest:
        raise UserError(
            f"{what}: the logits differ by {difference / largest:.3g} of the largest, more than {accepted:g}; nothing is written. "
            + ("Use --dtype float32, or accept it with --tolerance" if rounded else "Accept it with --tolerance only if you know why")
        )
    return difference
