"""Label scores: what the network says about the labels, computed only when an objective asks."""

from torch import Tensor

from .linear_cross_entropy import linear_cross_entropy, linear_logp


class LabelScores:
    """The last hidden states, the output head and the labels of a micro-batch, with no logits until they are needed.

    Args:
        hidden_BTD: Hidden states after the final norm.
        head_weight_VD: Weight of the output head.
        labels_BT: Target ids; `IGNORE_INDEX` where unsupervised.
        logit_softcap: If given, logits become `cap * tanh(logits / cap)` (Gemma 2).
    """

    def __init__(self, hidden_BTD: Tensor, head_weight_VD: Tensor, labels_BT: Tensor, *, logit_softcap: float | None = None) -> None:
        self.hidden_BTD = hidden_BTD
        self.head_weight_VD = head_weight_VD
        self.labels_BT = labels_BT
        self.logit_softcap = logit_softcap

    def cross_entropy(self, *, z_loss: float = 0.0, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of the supervised labels.

        Returns:
            The differentiable sum in nats, z and smoothing terms included, and the detached plain negative log-likelihood per
            token (B, T), fp32 and 0 where ignored.
        """
        total, nll_N = linear_cross_entropy(
            self.hidden_BTD.flatten(0, 1),
            self.head_weight_VD,
            self.labels_BT.flatten(),
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            softcap=self.logit_softcap,
        )
        return total, nll_N.view_as(self.labels_BT)

    def logp(self) -> Tensor:
        """Differentiable log-probability of each label (B, T), in nats, 0 where ignored."""
        logp_N = linear_logp(self.hidden_BTD.flatten(0, 1), self.head_weight_VD, self.labels_BT.flatten(), softcap=self.logit_softcap)
        return logp_N.view_as(self.labels_BT)
