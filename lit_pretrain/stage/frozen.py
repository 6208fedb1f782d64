"""Frozen: a second network beside the one that is trained, for a reference or a teacher."""

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import LabelScores
from lit_pretrain.stage.shard import shard_


class Frozen:
    """A network that is only read. It is no module of the stage, so checkpoints, optimizers and DDP never see it.

    Args:
        config: Its shape.
        fill: Gives a whole network its weights.
        mesh: Shards it over this mesh; None where nothing is sharded.
        device: Where it computes.
    """

    def __init__(
        self, config: ModelConfig, fill: Callable[[Transformer], None], *, mesh: Optional[DeviceMesh], device: torch.device
    ) -> None:
        with torch.device("meta" if mesh is not None else "cpu"):
            net = Transformer(config)
        if mesh is not None:
            net = shard_(net, mesh, device=device, fill=fill)
        else:
            fill(net)
            net = net.to(device)
        self.net = net.requires_grad_(False).eval()

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor, doc_BT: Tensor) -> Tensor:
        """Hidden states (B, T, D) that its head reads."""
        hidden_BTD: Tensor = self.net(tokens_BT, doc_BT)
        return hidden_BTD


@torch.no_grad()
def label_logp(net: Transformer, tokens_BT: Tensor, doc_BT: Tensor, labels_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each label (B, T) under a network as it is, without a gradient; 0 where ignored."""
    hidden_BTD, cap = tempered(net(tokens_BT, doc_BT), net.config.logit_softcap, temperature)
    return LabelScores(hidden_BTD, net.head_weight, labels_BT, logit_softcap=cap).logp()


def tempered(hidden_BTD: Tensor, softcap: Optional[float], temperature: float) -> tuple[Tensor, Optional[float]]:
    """Hidden states and cap whose logits are those of the given ones divided by a temperature: c/T tanh(h/T / (c/T)) = c tanh(h/c) / T."""
    if temperature == 1.0:
        return hidden_BTD, softcap
    return hidden_BTD / temperature, None if softcap is None else softcap / temperature
