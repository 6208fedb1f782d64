"""HeldOut: the loss and the objective's metrics of rows that are not trained on.

Axes: V vocabulary, S sources.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_pretrain.batch import AnyBatch, DataContract, PromptBatch
from lit_pretrain.objective import BitsPerByte, Means
from lit_pretrain.stage.step_loss import StepLoss


class HeldOut:
    """Measure the rows of the validation and the test split, over all and by source.

    Args:
        contract: What the data promises: its sources, and the bytes of every token.
        vocab_size: Of the network, which may be larger than the tokenizer's.
        names: Metrics that are means over rows; None measures bits per byte.
        device: Where rows are measured.
        group: The ranks that hold different rows; None for all.
    """

    def __init__(
        self,
        contract: DataContract,
        *,
        vocab_size: int,
        names: tuple[str, ...] | None,
        device: torch.device,
        group: object | None,
    ) -> None:
        self._sources = contract.sources
        padding = vocab_size - contract.vocab_size
        self._token_bytes_V = torch.tensor(
            list(contract.token_bytes) + [0] * padding, device=device
        )
        sources = len(contract.sources)
        self._metrics: dict[str, BitsPerByte | Means] = {}
        for split in ("val", "test"):
            metric = (
                BitsPerByte(sources, process_group=group)
                if names is None
                else Means(names, sources, process_group=group)
            )
            self._metrics[split] = metric.to(device)

    def measure(self, split: str, batch: Sequence[AnyBatch], loss: StepLoss) -> None:
        """Add rows, by the loss of their labels or by what the objective reports."""
        metric = self._metrics[split]
        for micro in batch:
            complete, teacher_BTD = loss.complete(micro)
            _, _, found = loss(complete, None, teacher_BTD)
            if isinstance(metric, Means):
                metric.update(found, micro.source_B)
            else:
                metric.update(
                    found["nll_BT"], complete.labels_BT, micro.source_B, self._token_bytes_V
                )

    def add_answers(
        self, split: str, prompts: Sequence[PromptBatch], answered: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Add what the answers to prompts were worth."""
        metric = self._metrics[split]
        assert isinstance(metric, Means)
        for prompt, values in zip(prompts, answered, strict=True):
            metric.update(dict(values), prompt.source_B)

    def results(self, split: str) -> dict[str, Tensor]:
        """Return the metrics over all and, where a source had rows, by source; then begin anew."""
        values = self._metrics[split].compute()
        self._metrics[split].reset()
        found = {}
        for key in (key for key in values if not key.endswith("_S")):
            found[f"{split}/{key}"] = values[key].float()
            if f"{key}_S" not in values:
                continue
            # torchmetrics makes a scalar of a tensor with one element, here of a single source.
            for source, value in zip(self._sources, values[f"{key}_S"].reshape(-1), strict=True):
                if not math.isnan(value.item()):
                    found[f"{split}_{key}/{source}"] = value.float()
        return found
