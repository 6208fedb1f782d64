"""Step loss: what network and objective compute of the micro-batches of a step or of a validation.

Axes: B rows, T tokens, D width, V vocabulary, S sources, P devices that share rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lit_pretrain.batch import AnyBatch, DataContract, PromptBatch
from lit_pretrain.model.gather import gather_tokens
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import BitsPerByte, LabelScores, Means, Objective
from lit_pretrain.objective.objective import check_sums
from lit_pretrain.stage.reference import Frozen, Reference


class StepLoss:
    """Run network and objective on micro-batches.

    Args:
        net: The network that is trained or measured.
        objective: What is minimised.
        temperature: Divides the logits.
        score_head: The head of a reward model.
        reference: Gives rows the log-probabilities of another network.
        teacher: Gives rows the hidden states of another network.
    """

    def __init__(
        self,
        net: Transformer,
        objective: Objective,
        *,
        temperature: float = 1.0,
        score_head: nn.Linear | None = None,
        reference: Reference | None = None,
        teacher: Frozen | None = None,
    ) -> None:
        self.net = net
        self.objective = objective
        self.temperature = temperature
        self.score_head = score_head
        self.reference = reference
        self.teacher = teacher
        self._learned = self._sums

    def compile_objective(self) -> None:
        """Compile the head and the objective, for micro-batches that are learned from."""
        self._learned = torch.compile(self._sums, dynamic=False)

    def __call__(
        self,
        batch: AnyBatch,
        step_counts: Tensor | None = None,
        teacher_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the objective's sum, the number of its terms, and what it reports.

        Args:
            batch: A micro-batch as `complete` returns it.
            step_counts: What the objective counts over the whole step.
            teacher_BTD: The teacher's hidden states.
        """
        # For a few evaluation batches another compiled graph costs more than it gains.
        sums = self._learned if torch.is_grad_enabled() else self._sums
        return sums(self.hidden(batch), batch, step_counts, teacher_BTD)

    def complete(self, micro: AnyBatch) -> tuple[AnyBatch, Tensor | None]:
        """Add the reference's column to a micro-batch, and compute the teacher's hidden states.

        Where devices share rows, its labels are cut to the tokens whose hidden states are here.
        """
        if self.reference is not None:
            micro = self.reference.fill(micro)
        if self.net.parts is not None:
            micro = micro._replace(labels_BT=self.net.parts.take(micro.labels_BT))
        return micro, (
            None if self.teacher is None else self.teacher.hidden(micro.tokens_BT, micro.doc_BT)
        )

    def counts(self, batch: Sequence[AnyBatch]) -> Tensor | None:
        """Sum what the objective counts over the micro-batches of this device."""
        counts = [self.objective.counts(micro) for micro in batch]
        found = [count for count in counts if count is not None]
        return torch.stack(found).sum(dim=0) if found else None

    def hidden(self, batch: AnyBatch) -> Tensor:
        """Run the network up to its head, (B, T, D)."""
        if not self.objective.measured_half:
            hidden_BTD: Tensor = self.net(batch.tokens_BT, batch.doc_BT)
            return hidden_BTD
        half = len(batch.tokens_BT) // 2
        # The half with a gradient first: autocast keeps casts of weights, and one made without a
        # gradient would hide it from the other.
        learned = self.net(batch.tokens_BT[:half], batch.doc_BT[:half])
        with torch.no_grad():
            measured = self.net(batch.tokens_BT[half:], batch.doc_BT[half:])
        return torch.cat([learned, measured])

    def _sums(
        self,
        hidden_BTD: Tensor,
        batch: AnyBatch,
        step_counts: Tensor | None,
        teacher_BTD: Tensor | None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        teacher = None
        if self.teacher is not None and teacher_BTD is not None:
            net = self.teacher.net
            teacher = LabelScores(
                teacher_BTD,
                net.head_weight,
                batch.labels_BT,
                logit_softcap=net.config.logit_softcap,
            )
        scores = LabelScores(
            hidden_BTD, self.net.head_weight, batch.labels_BT,
            logit_softcap=self.net.config.logit_softcap, temperature=self.temperature,
            score_head=self.score_head, teacher=teacher, step_counts=step_counts,
        )  # fmt: skip
        return check_sums(self.objective, self.objective(scores, batch))

    @torch.no_grad()
    def again(
        self,
        batch: Sequence[AnyBatch],
        step_counts: Tensor | None,
        context: Callable[[], AbstractContextManager[None]],
    ) -> Iterator[tuple[AnyBatch, dict[str, Tensor], Tensor | None]]:
        """Run micro-batches once more, uncompiled, and look at every label.

        Args:
            batch: The micro-batches of a step.
            step_counts: What the objective counts over the whole step.
            context: The precision of the forward pass.

        Yields:
            A micro-batch with its labels whole, what the objective reports of it, and the loss of
            each label in nats, (B, T), 0 where there is none; None for an objective that gives rows
            a score.
        """
        parts = self.net.parts
        for micro in batch:
            with context():
                complete, teacher_BTD = self.complete(micro)
                hidden_BTD = self.hidden(complete)
                metrics = self._sums(hidden_BTD, complete, step_counts, teacher_BTD)[2]
                nll_BT = metrics.get("nll_BT")
                if nll_BT is None and self.score_head is None:
                    nll_BT = -LabelScores(
                        hidden_BTD, self.net.head_weight, complete.labels_BT,
                        logit_softcap=self.net.config.logit_softcap, temperature=self.temperature,
                    ).logp()  # fmt: skip
                if parts is not None:  # this device has seen its own tokens of the rows
                    for name in ("loss_B", "tokens_B", "terms_B"):
                        if name in metrics:
                            own_B1 = metrics[name][:, None]
                            whole_BP = gather_tokens(own_B1, parts.group, parts.devices)
                            metrics[name] = whole_BP.sum(dim=1)
                    nll_BT = None if nll_BT is None else parts.gather(nll_BT)
            yield micro, metrics, nll_BT


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
