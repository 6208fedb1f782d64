"""Load the network, tokenizer and template of a run, for the verbs that need no Trainer's options.

Warnings of libraries that users cannot act on are silenced here, too.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.chat.render import Renderer
    from lit_pretrain.model.transformer import Transformer
    from lit_pretrain.tokenizer.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16"]
Weights = Literal["trained", "average"]
"""The weights as training left them, or their moving average (model.ema_half_life)."""


def load_run(
    run: str,
    checkpoint: str,
    device: str,
    dtype: Dtype = "float32",
    *,
    accept: Sequence[str] = (),
    weights: Weights = "trained",
) -> tuple[Transformer, Tokenizer, Path]:
    """Load the network of a run, ready to write, and its tokenizer.

    Args:
        run: A run folder, or one checkpoint of a run.
        checkpoint: For a run folder: last or best.
        device: auto, cpu, cuda or mps.
        dtype: Of the weights, and so of the arithmetic.
        accept: Fields of the contract in which the run's files may differ from its record.
        weights: The last ones, or their moving average.

    Returns:
        Network, tokenizer and the checkpoint.

    Raises:
        UserError: There is no such run, checkpoint or device; or its tokenizer or template was
            changed.
    """
    from lit_pretrain.checkpoint.layout import resolve

    path = resolve(run, which=checkpoint)
    from lit_pretrain.checkpoint.lineage import check_files

    check_files(path, accept=tuple(accept))
    import torch

    from lit_pretrain.checkpoint.network import load_network
    from lit_pretrain.tokenizer.tokenizer import Tokenizer

    place = choose_device(device)
    net = load_network(path, average=weights == "average").to(place, getattr(torch, dtype)).eval()
    return net, Tokenizer.load(str(path.parent.parent)), path


def choose_device(wanted: str) -> str:
    """Choose a device of this machine: cpu, cuda or mps.

    Args:
        wanted: One of these, or auto for the fastest there is; gpu is whichever GPU there is, as
            in `--trainer.accelerator`.

    Raises:
        UserError: There is no such device here.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpu = next((name for name, found in there.items() if found), None)
    if wanted == "auto":
        return gpu or "cpu"
    if wanted == "gpu" and gpu is not None:
        return gpu
    if wanted == "cpu" or there.get(wanted):
        return wanted
    if wanted != "gpu" and wanted not in there:
        raise UserError(f"--device={wanted} is unknown; give auto, cpu, gpu, cuda or mps")
    found = "no GPU" if wanted == "gpu" else f"no {wanted.upper()} device"
    raise UserError(f"--device={wanted}, but torch finds {found}; leave it out to use the CPU")


def load_renderer(tokenizer: Tokenizer, folder: Path, template: str) -> tuple[Renderer, bool]:
    """Build the renderer of conversations, and tell whether the run brought its template.

    Args:
        tokenizer: The run's.
        folder: The run's folder.
        template: auto, or as `data.template`.

    Raises:
        UserError: There is no such template, or it does not fit the tokenizer.
    """
    from lit_pretrain.chat.render import Renderer
    from lit_pretrain.chat.template import TEMPLATE_FILENAME, find_template

    own = (folder / TEMPLATE_FILENAME).is_file()
    return Renderer(tokenizer, find_template(template, folder)), own or template != "auto"


def quiet_libraries() -> None:
    """Silence what users cannot act on."""
    warnings.filterwarnings(
        "ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*"
    )
    warnings.filterwarnings(
        "ignore", message=r".*does not have many workers which may be a bottleneck.*"
    )
    warnings.filterwarnings(
        "ignore", message=r".*Trying to infer the `batch_size` from an ambiguous collection.*"
    )
    warnings.filterwarnings("ignore", message=r".*The `srun` command is available.*")
    # What is logged was summed over ranks before (torchmetrics), buffers never change, and every
    # rank reads its share of rows by number.
    warnings.filterwarnings(
        "ignore", message=r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*"
    )
    warnings.filterwarnings("ignore", message=r".*`broadcast_buffers` is deprecated.*")
    logging.getLogger("litdata.streaming.dataset").addFilter(
        lambda record: "disabled the `drop_last` option" not in record.getMessage()
    )
    # Of the first compiled step on a machine that has CUDA's files and no GPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: "No CUDA runtime is found" not in record.getMessage()
    )
    threading.excepthook = _quiet_hook
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _quiet_hook(found: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, but not of TensorBoard's: its next write raises the same."""
    if type(found.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(found)
