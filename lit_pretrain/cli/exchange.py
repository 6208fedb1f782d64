"""Run writer: a run folder that no training made, appearing whole or not at all."""

import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from torch import Tensor

from lit_pretrain.callbacks.checkpoints import PlainCheckpointIO
from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.contract import KEY
from lit_pretrain.checkpoint.find import CHECKPOINTS_FOLDER, checkpoint_name
from lit_pretrain.checkpoint.lineage import LINEAGE_FILENAME as LINEAGE
from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.checkpoint.weights import PREFIX, SCORE
from lit_pretrain.cli.lineage import stage_record
from lit_pretrain.errors import UserError
from lit_pretrain.files import atomic_path, write_file
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.report.run_folder import CONFIG, PROVENANCE, provenance
from lit_pretrain.tokenizer.tokenizer import Tokenizer


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder: filled under another name beside it, then renamed.

    Raises:
        UserError: There is something already, or it cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")
    try:
        with atomic_path(out) as scratch:
            scratch.mkdir()
            fill(scratch)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error


def write_run(
    out: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    step: int,
    language: Optional[ModelTokenizer],
    facts: Mapping[str, Any],
    record: Mapping[str, Any],
    data: Optional[Mapping[str, Any]],
    behind: Sequence[Mapping[str, Any]],
    score: Optional[Tensor] = None,
    check: Callable[[Path], None] = lambda run: None,
) -> None:
    """Write a run that others can start from, generate with and measure.

    Args:
        out: The folder; it must not exist.
        config: Its config.yaml.
        tensors: Of the network, by the names of its state dict.
        step: Number of the checkpoint.
        language: Its tokenizer and template; a Hugging Face folder may have none.
        facts: For provenance.json, beside versions, revision and command.
        record: Further entries of the checkpoint.
        score: The score head of a reward model.
        data: What it says of its data in its lineage; None: that is not known.
        behind: The stages behind it.
        check: Called with the finished folder before it gets its name; an error leaves nothing.
    """
    contract = {} if language is None else {"data.tokenizer": language.tokenizer.hash}

    def fill(folder: Path) -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
        write_file(folder / CONFIG, text)
        if language is not None:
            language.save(folder)
        made = provenance(**facts, started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        write_file(folder / PROVENANCE, json.dumps(made, indent=1) + "\n")
        lineage = Lineage(
            {} if language is None else language.record(),
            (stage_record(str(out), made, data), *behind),
        )
        write_file(folder / LINEAGE, lineage.dump())
        state = {PREFIX + name: tensor for name, tensor in tensors.items()} | (
            {} if score is None else {SCORE: score}
        )
        checkpoint = {"state_dict": state, KEY: {"step": step, "contract": contract}, **record}
        PlainCheckpointIO().save_checkpoint(
            checkpoint, folder / CHECKPOINTS_FOLDER / checkpoint_name(step)
        )
        check(folder)

    write_folder(out, fill)


# Same ids: whether transformers reads an exported folder's tokenizer as ours encodes.


TEXTS = (
    "In 1234567 days, I'll say \"WE'RE here\" — naïve café, Straße.",
    "def f(x):\n    return x + 1\n\n\n\t# 3.14159  done \r\n",
    "cafe\u0301 \ufb01 \u212b",  # which normalisation would change
    "你好，世界 🦊👩‍👩‍👧 ١٢٣",
)
"""Digits, contractions, runs of white space, letters that a normalisation changes, scripts
without spaces.
"""


def other_ids(folder: Path, tokenizer: Tokenizer) -> Optional[str]:
    """Compare the ids of a few texts.

    transformers 5 gives some architectures a tokenizer of their own, whatever tokenizer.json says:
    Qwen2 that of Qwen2.

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
    differing = sum(
        list(theirs(text, add_special_tokens=False).input_ids) != tokenizer.encode(text)
        for text in TEXTS
    )
    if not differing:
        return None
    made = (
        f"AutoTokenizer of transformers {transformers.__version__} makes a {type(theirs).__name__}"
        " of it"
    )
    return f"{made}, with other ids for {differing} of {len(TEXTS)} texts"


# Same logits: two networks on the same random tokens, the check at the end of every exchange.


PROBE_ROWS, PROBE_LENGTH = 4, 64
"""Random tokens on which networks are compared."""


def probe_tokens(shape: ModelConfig) -> Tensor:
    """The tokens, (4, 64) or as long as the network allows."""
    length = min(PROBE_LENGTH, shape.max_seq_len)
    return torch.randint(
        shape.vocab_size, (PROBE_ROWS, length), generator=torch.Generator().manual_seed(0)
    )


def hf_logits(folder: Path, tokens_BT: Tensor) -> Optional[Tensor]:
    """Logits of transformers' own network of a folder, in fp32; None where transformers is not
    installed.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")  # its types differ between versions
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits: Tensor = model(tokens_BT).logits
    return logits


def check_same(
    expected: Tensor,
    found: Tensor,
    *,
    what: str,
    tolerance: Optional[float],
    rounded: bool,
    say: Callable[[str], None] = print,
) -> float:
    """Print how much logits differ, and refuse what is beyond the tolerance.

    Args:
        expected: Logits of one network.
        found: Those of the other.
        what: The two, in words.
        tolerance: Largest difference relative to the largest logit; None: 1e-4 in float32, 0.1 in
            16 bits.
        rounded: Whether weights were rounded to 16 bits.
        say: Where the figures go.

    Returns:
        The largest difference.

    Raises:
        UserError: It is too large.
    """
    difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    say(
        f"logits of {expected.shape[0]} × {expected.shape[1]} random tokens, {what}: largest"
        f" difference {difference:.3g}, largest logit {largest:.3g}"
    )
    accepted = tolerance if tolerance is not None else 0.1 if rounded else 1e-4
    if not difference <= accepted * largest:
        raise UserError(
            f"{what}: the logits differ by {difference / largest:.3g} of the largest, more than"
            f" {accepted:g}; nothing is written. "
            + (
                "Use --dtype float32, or accept it with --tolerance"
                if rounded
                else "Accept it with --tolerance only if you know why"
            )
        )
    return difference
