"""First step: what must hold before anything is learned, looked at once in a run."""

import math
from typing import Optional

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, PolicyBatch
from lit_pretrain.errors import UserError
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import Objective
from lit_pretrain.stage.frozen import label_logp
from lit_pretrain.stage.reference import Place, evaluating


def check_policy(net: Transformer, batch: PolicyBatch, *, temperature: float, same_policy: bool, step: int) -> None:
    """The policy that sampled is the network that learns, or every ratio to it is wrong from the beginning.

    Args:
        net: What learns.
        batch: Answers, with the log-probabilities that the rollout engine found for them.
        temperature: At which it sampled.
        same_policy: Whether the engine computes with the network itself.
        step: For the message.

    Raises:
        RuntimeError: The log-probabilities differ by more than arithmetic explains.
    """
    assert batch.old_logp_BT is not None
    with evaluating(net):
        logp_BT = label_logp(net, batch.tokens_BT, batch.doc_BT, batch.labels_BT, temperature)
    gap = (logp_BT - batch.old_logp_BT).abs().sum() / (batch.labels_BT != IGNORE_INDEX).sum().clamp(min=1)
    if gap.item() > (0.1 if _half(net) or not same_policy else 1e-3):
        raise RuntimeError(
            f"step {step}: the log-probabilities of the rollout engine and of the network differ by {gap.item():.4g} nats "
            "a token: they are not the same policy"
        )


def check_start(objective: Objective, means: dict[str, float], *, net: Transformer, place: Place, parent: Optional[str]) -> None:
    """At step 0 a policy is its own reference, and the loss is known.

    Args:
        objective: What knows it.
        means: `StepSums.means` of the step, over all ranks.
        net: What learns; its precision decides how exact a start can be.
        place: Where the reference comes from.
        parent: What training starts from.

    Raises:
        UserError: A column of the data is of another network.
        RuntimeError: A reference that we made is.
    """
    # Kernels differ with the shape of a batch and with compilation: by about as much as the last digits of the precision.
    if math.isnan(means["loss"]):
        return
    wrong = objective.start(means, tolerance=(5e-2 if _half(net) else 1e-3) * max(1.0, means["tokens_per_term"]))
    if wrong is not None and place == "column":
        raise UserError(
            f"step 0: the column ref_logp of the data is not of the network that training starts from ({parent}): {wrong}; "
            "compute it again with that network, tokenizer and template, or leave it out"
        )
    if wrong is not None:
        raise RuntimeError(f"step 0: the reference is not what training starts from: {wrong}")


def _half(net: Transformer) -> bool:
    weight: Tensor = net.token_embedding.weight
    return torch.is_autocast_enabled(weight.device.type) or weight.dtype != torch.float32
