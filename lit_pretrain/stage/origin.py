"""Origin: the weights that a stage starts from, and which of them it trains."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lit_pretrain.adapter import LoRA, freeze_, train_rows_
from lit_pretrain.adapter.new_tokens import NewTokens
from lit_pretrain.checkpoint.layout import is_hf_folder, resolve
from lit_pretrain.checkpoint.network import find_parent, model_config
from lit_pretrain.checkpoint.weights import load_weights, read_score, weights_identity
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.parallel.mesh import weights_mesh
from lit_pretrain.stage.checks import DATA_KINDS
from lit_pretrain.stage.reference import Frozen
from lit_pretrain.transfer import ParameterScale, Transfer


def can_compile(device: torch.device) -> str | None:
    """Return None if `torch.compile` has what it needs for the device, else the reason why not."""
    if device.type == "cpu":
        wanted = os.environ.get("CXX")
        found = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")
        if found is None:
            return "no C++ compiler found (g++ or clang++, or set CXX)"
        # What is compiled is a Python extension; Debian keeps the headers in a package of their
        # own.
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        return None if header.is_file() else f"{header} is missing (on Debian: python3-dev)"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return (
            None
            if major >= 7
            else f"Triton needs compute capability 7.0, this device has {major}.{minor}"
        )
    return f"not tried on {device.type}"


def why_no_float8(device: torch.device) -> str | None:
    """Return None if a device computes products in fp8, else the reason why not.

    A CPU does, slowly: for trials of the numbers.
    """
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"not tried on {'AMD devices' if device.type == 'cuda' else device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 9):
        return None
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability"
        f" {capability[0]}.{capability[1]}, and products in fp8 need 8.9 (Ada, Hopper or later)"
    )


def why_not_compiled(
    mode: Literal["auto", "on", "off"], device: torch.device, provides: frozenset[str]
) -> str | None:
    """Return None if a stage compiles its network, else the reason why it does not.

    Args:
        mode: The stage's option `compile`.
        device: Where the network computes.
        provides: `DataContract.provides`.

    Raises:
        UserError: Compilation is switched on and impossible.
    """
    if mode == "off":
        return "model.compile=off"
    reason = can_compile(device)
    if reason is not None and mode == "on":
        raise UserError(f"model.compile=on, but {reason}")
    if reason is None and mode == "auto" and provides & DATA_KINDS:
        return (
            "padded rows differ in length from batch to batch, and every length would be compiled;"
            " model.compile=on does so"
        )
    return reason


class Origin:
    """Random weights of a seed or those of a parent, with an adapter or some of them frozen.

    Args:
        config: Shape of the network.
        seed: Of what is drawn: all weights without a parent, those of the adapter, and whatever the
            parent lacks.
        parent: A run, a checkpoint or a Hugging Face folder.
        adapter: What is trained beside the frozen network, if anything.
        freeze: Regular expressions over names of parameters that are not trained.
        new_tokens: Tokens that the parent does not have.
        transfer: The base that the first weights of a network without a parent follow from.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int,
        parent: str | None,
        adapter: LoRA | None,
        freeze: tuple[str, ...],
        new_tokens: NewTokens | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        self.config = config
        self.transfer = transfer
        self.seed = seed
        self.parent = parent
        self.adapter = adapter
        self.freeze = freeze
        self.new_tokens = new_tokens
        self.base_hash: str | None = None
        """Identity of the weights beneath the adapter, on the ranks that have filled a network."""
        self.average = False
        """Whether the parent's average of weights is taken, and not its last ones."""

    def fill_base(self, net: Transformer) -> None:
        """Give a whole, unsharded network the weights that training starts from."""
        net.reset_parameters(torch.Generator().manual_seed(self.seed), self.transfer)
        if self.parent is not None:
            load_weights(net, self.parent, average=self.average, new_tokens=self.new_tokens)

    def fill(self, net: Transformer) -> None:
        """Give a whole, unsharded network its first weights, and its adapter if there is one."""
        self.fill_base(net)
        if self.adapter is not None:
            assert self.parent is not None
            self.base_hash = weights_identity(self.parent)
        self.adapt(net)

    def adapt(self, net: Transformer) -> None:
        """Freeze what is not trained, and add the adapter."""
        if self.adapter is not None:
            self.adapter.apply(net, torch.Generator().manual_seed(self.seed))
            if self.new_tokens is not None:
                train_rows_(net, self.new_tokens.first, len(self.new_tokens.spelt))
        elif self.freeze:
            freeze_(net, self.freeze)

    def name(self) -> str:
        """Name what decides the weights without an adapter: the parent, or seed and shape."""
        if self.parent is not None and self.new_tokens is not None:
            return f"{weights_identity(self.parent)} with {self.new_tokens}"
        return (
            weights_identity(self.parent)
            if self.parent is not None
            else f"seed {self.seed} of {self.config}"
            + (f" from {self.transfer}" if self.transfer is not None else "")
        )

    def frozen(self, where: str | None, *, mesh: DeviceMesh | None, device: torch.device) -> Frozen:
        """Make a network that is only read, from a run or a folder.

        None stands for the weights that training starts from, without an adapter.

        Raises:
            UserError: It has another vocabulary.
        """
        config = self.config
        if where is not None:
            config = model_config(find_parent(where).shape)
            if config.vocab_size != self.config.vocab_size:
                raise UserError(
                    f"{where} has {config.vocab_size} token ids and the network has"
                    f" {self.config.vocab_size}: log-probabilities over other vocabularies cannot"
                    " be compared; use a network with the same tokenizer and model.net.vocab_size"
                )

        def fill(net: Transformer) -> None:
            if where is None:
                self.fill_base(net)
            else:
                load_weights(net, where)

        return Frozen(config, fill, mesh=mesh, device=device)


SCORE_STD = 0.02
"""Deviation of a score head's first weights, that of transformers' classification heads."""


def score_scale(config: ModelConfig, transfer: Transfer | None) -> ParameterScale:
    """Return what a transfer changes in a score head: what it changes in an untied head.

    Behind a tied head the hidden states are scaled already (`ModelConfig.logit_scale`).
    """
    if transfer is None or config.logit_scale is not None:
        return ParameterScale()
    m = transfer.width_ratio(config.width)
    return ParameterScale(init=1 / m, rate=1 / m, fan_in=m)


def make_score_head(
    width: int,
    *,
    scale: ParameterScale,
    seed: int,
    init_from: str | None,
    average: bool,
    mesh: DeviceMesh | None,
    device: torch.device,
) -> tuple[nn.Linear, bool]:
    """Make the score head, and tell whether its weights are those of the parent.

    A reward model goes on training; any other parent gets a new head.
    """
    head = nn.Linear(width, 1, bias=False)
    stored = (
        None
        if init_from is None or is_hf_folder(Path(init_from))
        else read_score(resolve(init_from), average=average)
    )
    with torch.no_grad():
        if stored is not None:
            head.weight.copy_(stored)
        else:
            # A seed of its own: the network's first weights must not depend on whether there is a
            # head.
            std = SCORE_STD * scale.init
            head.weight.normal_(0.0, std, generator=torch.Generator().manual_seed(seed + 1))
    if mesh is not None:
        fully_shard(head.to(device), mesh=weights_mesh(mesh))
    return head, stored is not None
