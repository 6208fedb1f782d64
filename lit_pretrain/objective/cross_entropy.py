"""Cross-entropy: the sum of -log p(label) over the supervised tokens, in nats."""

from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.errors import UserError

from .label_scores import LabelScores
from .objective import Objective


class CrossEntropy(Objective):
    """Next-token cross-entropy, for pretraining and supervised fine-tuning alike: only the labels differ.

    Args:
        z_loss: Weight of the PaLM auxiliary loss, `z_loss * log(Z)^2` per token, which keeps the softmax normaliser near 1
            (Chowdhery et al. 2022, section 5; they use 1e-4). 0 switches it off.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1).
    """

    needs = frozenset({"labels"})
    bits_per_byte = True

    def __init__(self, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not z_loss >= 0.0:
            raise UserError(f"CrossEntropy: z_loss must be zero or positive, found {z_loss}; PaLM uses 1e-4.")
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"CrossEntropy: label_smoothing must lie in [0, 1), found {label_smoothing}.")
        self.z_loss = z_loss
        self.label_smoothing = label_smoothing

    def forward(self, scores: LabelScores, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum the loss of the supervised tokens.

        Returns:
            The loss sum in nats (with its z and smoothing terms), the count of supervised tokens, and the metrics
            `nll_BT` (plain nats per token, without z-loss and smoothing; 0 where ignored), `loss_B` and `tokens_B` (its sum and
            the count of supervised tokens per row).
        """
        total, nll_BT = scores.cross_entropy(z_loss=self.z_loss, label_smoothing=self.label_smoothing)
        tokens_B = (batch.labels_BT != IGNORE_INDEX).sum(dim=1)
        return total, tokens_B.sum(), {"nll_BT": nll_BT, "loss_B": nll_BT.sum(dim=1), "tokens_B": tokens_B}

    def extra_repr(self) -> str:
        """The settings, for `print(objective)`."""
        return f"z_loss={self.z_loss}, label_smoothing={self.label_smoothing}"
