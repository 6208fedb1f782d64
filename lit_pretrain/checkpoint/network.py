"""Networks: loaded whole from checkpoints and folders, and compared at the end of an exchange.

Axes: B rows, T tokens, V vocabulary.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.adapter import FIRST_ROW, ROWS, train_rows_
from lit_pretrain.adapter.new_tokens import NewTokens
from lit_pretrain.checkpoint.hf_import import read_shape
from lit_pretrain.checkpoint.layout import (
    STANDALONE_KEY,
    CheckpointRecord,
    config_of,
    is_hf_folder,
    resolve,
)
from lit_pretrain.checkpoint.resume_contract import flatten
from lit_pretrain.checkpoint.weights import (
    AdapterRecord,
    load_weights,
    read_adapter_record,
    read_metadata,
    read_stored,
    weights_identity,
)
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.report.run_folder import CONFIG
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


def model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Build the shape from the plain values of a saved config.

    Raises:
        UserError: They make no shape.
    """
    scaling = fields.get("rope_scaling")
    try:
        scaled = RopeScaling(**scaling) if scaling else None
        return ModelConfig(**{**fields, "rope_scaling": scaled})
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"model.net is not the shape of a network: {error}") from None


def stored_shape(checkpoint: Path) -> Mapping[str, Any]:
    """Read the fields of a network's `ModelConfig`: the checkpoint's own, or those of its run.

    Raises:
        UserError: It has none and does not lie in a run folder, or its contract has another one.
    """
    entries = read_metadata(checkpoint)
    if (own := entries.get(STANDALONE_KEY)) is not None:
        fields: Mapping[str, Any] = own["net"]
        return fields
    fields = config_of(checkpoint)["model"]["net"]
    if (record := CheckpointRecord.of(entries)) is not None:
        # config.yaml may have been edited since; the contract lies within the checkpoint.
        now = flatten({"model": {"net": fields}})
        wrong = [
            f"{key}: {value!r} in the checkpoint, {now.get(key)!r} in its run's {CONFIG}"
            for key, value in record.contract.items()
            if key.startswith("model.net.") and now.get(key) != value
        ]
        if wrong:
            raise UserError(f"{checkpoint} has another network: {'; '.join(wrong)}")
    return fields


def load_network(checkpoint: Path, *, average: bool = False) -> Transformer:
    """Load the network of a checkpoint, on the CPU in fp32.

    Args:
        checkpoint: A checkpoint within its run's folder, which holds the shape in config.yaml.
        average: Whether to take the moving average of its weights.
    """
    fields = stored_shape(checkpoint)
    # On no device: first weights would be drawn only to be overwritten.
    with torch.device("meta"):
        net = Transformer(model_config(fields))
    net.to_empty(device="cpu")
    load_weights(net, str(checkpoint), average=average)
    return net


def read_hf_network(folder: Path) -> Transformer:
    """Load the network of a Hugging Face folder, on the CPU in fp32."""
    net = Transformer(model_config(read_shape(folder))).eval()
    load_weights(net, str(folder))
    return net


def load_adapted(
    checkpoint: Path, *, base: str | None = None
) -> tuple[Transformer, AdapterRecord, str]:
    """Load an adapter's checkpoint, on the CPU in fp32, with the adapter beside its base.

    Args:
        checkpoint: A checkpoint within its run's folder, which holds the shape in config.yaml.
        base: Where the base lies, if it has moved since training.

    Returns:
        The network, the checkpoint's record of its adapter, and where the base was found.

    Raises:
        UserError: The checkpoint holds a whole network, or its base is gone or has changed.
    """
    record = read_adapter_record(checkpoint)
    if record is None:
        raise UserError(f"{checkpoint} is a whole network: there is no adapter in it")
    beneath = record.find_base(checkpoint) if base is None else base
    record.check_base(weights_identity(beneath), beneath, str(checkpoint))
    with torch.device("meta"):
        net = Transformer(model_config(stored_shape(checkpoint)))
    net.to_empty(device="cpu")
    stored = read_stored(checkpoint)
    rows = stored.get(f"token_embedding.{ROWS}")
    first = None if rows is None else int(stored[f"token_embedding.{FIRST_ROW}"])
    # Before the adapter is put in, whose tensors the base does not have.
    load_weights(net, beneath, new_tokens=None if first is None else NewTokens(first, ()))
    record.adapter.apply(net)
    if rows is not None and first is not None:
        train_rows_(net, first, len(rows))
    # Not strict: the checkpoint holds the adapter alone.
    net.load_state_dict(stored, strict=False)
    return net.eval(), record, beneath


@dataclass(frozen=True)
class Parent:
    """Describe the run or Hugging Face folder that a stage takes its first weights from."""

    path: Path
    """A checkpoint of ours, or a Hugging Face folder."""
    shape: Mapping[str, Any]
    """The fields of its `ModelConfig`."""
    tokenizer_hash: str | None
    """Identity of the tokenizer it was trained with; None for a Hugging Face folder, which holds
    the tokenizer itself.
    """


def find_parent(where: str) -> Parent:
    """Find a parent.

    Args:
        where: A run folder, one of its checkpoints, or a Hugging Face folder.

    Raises:
        UserError: It is none of these, or cannot be read.
    """
    folder = Path(where)
    if is_hf_folder(folder):
        return Parent(folder, read_shape(folder), None)
    path = resolve(where)
    record = CheckpointRecord.of(read_metadata(path))
    tokenizer_hash = None if record is None else record.contract.get("data.tokenizer")
    return Parent(path, stored_shape(path), tokenizer_hash)


# ------------------------------------------------------------------ comparison


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
        what: Names the two networks in messages.
        tolerance: Largest difference to accept, relative to the largest logit.
        mend: Tells the user what to do about a larger one.
        say: Prints the line with the figures.

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
