"""Step look: what happened in one optimizer step, seen while it is computed again.

Axes: B rows, T tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor, nn

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.callbacks.layer_statistics import LayerFigures, WeightSums
from lit_pretrain.data.data_module import BaseData, RowPart
from lit_pretrain.errors import CollapsedError, DivergedError
from lit_pretrain.parallel.strategy import local_part
from lit_pretrain.stage.guard import Spike
from lit_pretrain.stage.stage import Stage
from lit_pretrain.tokenizer.tokenizer import Tokenizer

BEFORE, AFTER = 24, 8
"""Tokens shown in front of and behind one with a large loss."""


class DocumentLoss(NamedTuple):
    """The loss of one document of the step."""

    sample: int
    source: str
    origin: str
    note: str
    """Which answer of its sample it is; empty if it is the only one."""
    nats: float
    """Sum over its labels."""
    tokens: int
    """Its labels."""

    @property
    def mean(self) -> float:
        """Return nats per token."""
        return self.nats / self.tokens


class TokenLoss(NamedTuple):
    """A label of the step and its loss."""

    nats: float
    text: str
    before: str
    after: str
    origin: str
    sample: int
    place: int
    """In the row."""


class RowLoss(NamedTuple):
    """What the objective reports of one row of the step."""

    sample: int
    note: str
    loss: float
    terms: float


class RowFindings(NamedTuple):
    """What was seen of one row of the step."""

    loss: RowLoss
    documents: list[DocumentLoss]
    tokens: list[TokenLoss]
    """The largest loss first."""


class NotFinite(NamedTuple):
    """The first output that is not finite."""

    module: str
    kind: str
    """Class of the module."""
    sample: int | None
    place: int | None
    """In the row; None where the output has no such axis."""
    origin: str
    inputs_finite: bool
    weights_finite: bool


@dataclass
class StepFindings:
    """What was seen of the step."""

    loss: float = math.nan
    grad_norm: float = math.nan
    stopped: str | None = None
    """Why the run makes no update in this step; None if it makes one."""
    layers: dict[int, LayerFigures] = field(default_factory=dict)
    roles: dict[str, LayerFigures] = field(default_factory=dict)
    documents: list[DocumentLoss] = field(default_factory=list)
    """The largest loss per token first."""
    tokens: list[TokenLoss] = field(default_factory=list)
    """The largest loss first."""
    rows: list[RowLoss] = field(default_factory=list)
    """The largest loss first."""
    not_finite: NotFinite | None = None
    bad_gradients: list[str] = field(default_factory=list)
    """Parameters whose gradient is not finite, in the order of the network."""


class BadOutput(NamedTuple):
    """An output that is not finite, as a hook sees it."""

    module: str
    kind: str
    where: tuple[int, ...]
    """Index of its first number that is not finite."""
    shape: tuple[int, ...]
    inputs_finite: bool
    weights_finite: bool


class StepLook(L.Callback):
    """Look at one step, and let training go on to the end of its window.

    Args:
        step: The step, counted from 0.
        last: Steps that are made in all.
        data: What the step reads.
        tokens: How many tokens with the largest loss are kept.
    """

    def __init__(self, step: int, *, last: int, data: BaseData, tokens: int) -> None:
        self.step, self.last, self.data, self.count = step, last, data, tokens
        self.found: StepFindings | None = None
        """Complete once the step is over; on all ranks."""
        self._weights: WeightSums | None = None
        self._rows: list[RowFindings] = []
        self._not_finite: NotFinite | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Be ready for the step."""
        if trainer.global_step == self.step and self.found is None:
            self._weights = WeightSums(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, stage: Any, *args: Any) -> None:
        """Look at gradients and rows while the weights are those that the step has read."""
        if self._weights is not None:
            assert isinstance(stage, Stage)
            self._weights.before_update()
            self._look_at_rows(stage)

    def on_train_batch_end(self, trainer: L.Trainer, stage: Any, *args: Any) -> None:
        """Look at the update, and stop when the window is over."""
        if self._weights is not None:
            self._finish(trainer, stage, stopped=None)
        trainer.should_stop |= trainer.global_step >= self.last

    def on_exception(self, trainer: L.Trainer, stage: Any, error: BaseException) -> None:
        """Look at a step that ends the run, or from which it goes back."""
        seen = self._weights is not None and bool(self._rows)
        if seen and isinstance(error, (DivergedError, CollapsedError, Spike)):
            self._finish(trainer, stage, stopped=str(error))

    def _finish(self, trainer: L.Trainer, stage: Any, *, stopped: str | None) -> None:
        assert self._weights is not None
        weights, self._weights = self._weights, None
        norm, scale = (float(stage.sums[name]) for name in ("grad_norm", "grad_scale"))
        layers, roles = weights.by_layer_and_role(scale)
        found = StepFindings(
            grad_norm=norm, stopped=stopped, layers=layers, roles=roles,
            bad_gradients=[
                name
                for name, _ in stage.net.named_parameters()
                if name in weights.not_finite
            ],
        )  # fmt: skip
        everybody = stage.gather_from_ranks((self._rows, self._not_finite))
        self.found = self._joined(found, everybody)

    # ------------------------------------------------------------------ rows

    def _look_at_rows(self, stage: Stage) -> None:
        seen: list[BadOutput] = []
        with first_not_finite(stage, seen):
            for micro, metrics, nll_BT in stage.step_again():
                parts = self.data.row_parts(micro)
                if seen and self._not_finite is None:
                    self._not_finite = self._placed(seen[0], micro, parts)
                terms_B = metrics.get("terms_B", metrics["tokens_B"])
                for b, sample in enumerate(micro.index_B.tolist()):
                    if sample < 0:
                        continue
                    note = self.data.row_note(micro, b)
                    loss = RowLoss(sample, note, float(metrics["loss_B"][b]), float(terms_B[b]))
                    documents, tokens = self._tokens_of(micro, b, nll_BT, parts[b], note)
                    self._rows.append(RowFindings(loss, documents, tokens))

    def _tokens_of(
        self, micro: Any, b: int, nll_BT: Tensor | None, parts: list[RowPart], note: str
    ) -> tuple[list[DocumentLoss], list[TokenLoss]]:
        """Cut a row into documents, and find its tokens with the largest loss."""
        if nll_BT is None:
            return [], []
        labels, ids = micro.labels_BT[b].tolist(), micro.tokens_BT[b].tolist()
        nll, sample = nll_BT[b].double().tolist(), int(micro.index_B[b])
        source = self.data.sources[int(micro.source_B[b])]
        documents: list[DocumentLoss] = []
        tokens: list[TokenLoss] = []
        for part in parts:
            learned = [t for t in range(part.begin, part.end) if labels[t] != IGNORE_INDEX]
            if not learned:
                continue
            nats = math.fsum(nll[t] for t in learned) if all_finite(nll, learned) else math.nan
            documents.append(DocumentLoss(sample, source, part.origin, note, nats, len(learned)))
            for t in sorted(learned, key=lambda t: -_rank(nll[t]))[: self.count]:
                before = ids[max(part.begin, t + 1 - BEFORE) : t + 1]
                after = ids[t + 2 : min(t + 2 + AFTER, part.end)]
                tokens.append(
                    TokenLoss(
                        nats=nll[t],
                        text=shown(self.data.tokenizer, [labels[t]]),
                        before=shown(self.data.tokenizer, before),
                        after=shown(self.data.tokenizer, after),
                        origin=part.origin,
                        sample=sample,
                        place=t,
                    )
                )
        tokens.sort(key=lambda token: -_rank(token.nats))
        return documents, tokens[: self.count]

    def _placed(self, bad: BadOutput, micro: Any, parts: list[list[RowPart]]) -> NotFinite:
        """Say of the first output that is not finite in which document it lies."""
        B, T = micro.tokens_BT.shape
        found = NotFinite(
            bad.module, bad.kind, None, None, "", bad.inputs_finite, bad.weights_finite
        )
        if bad.shape[:2] != (B, T):  # such as that of a device that holds a part of the tokens
            return found
        row, place = bad.where[:2]
        origins = [part.origin for part in parts[row] if part.begin <= place < part.end]
        return found._replace(
            sample=int(micro.index_B[row]), place=place, origin="; ".join(origins)
        )

    def _joined(
        self, found: StepFindings, everybody: list[tuple[list[RowFindings], NotFinite | None]]
    ) -> StepFindings:
        """Join what all ranks have seen; ranks that share rows have seen the same."""
        rows = {
            (row.loss.sample, row.loss.note, i): row
            for own, _ in everybody
            for i, row in _numbered(own)
        }
        found.rows = sorted((row.loss for row in rows.values()), key=lambda loss: -_rank(loss.loss))
        total, terms = (math.fsum(values) for values in zip(
            *((row.loss, row.terms) for row in found.rows), strict=True
        ))  # fmt: skip
        found.loss = total / terms if terms else math.nan
        documents = [document for row in rows.values() for document in row.documents]
        found.documents = sorted(documents, key=lambda document: -_rank(document.mean))
        tokens = [token for row in rows.values() for token in row.tokens]
        found.tokens = sorted(tokens, key=lambda token: -_rank(token.nats))[: self.count]
        found.not_finite = next((bad for _, bad in everybody if bad), None)
        return found


def _numbered(rows: list[RowFindings]) -> Iterator[tuple[int, RowFindings]]:
    """Number the rows that look alike, such as the answers of one group."""
    seen: dict[tuple[int, str], int] = {}
    for row in rows:
        key = (row.loss.sample, row.loss.note)
        seen[key] = seen.get(key, -1) + 1
        yield seen[key], row


def all_finite(values: Sequence[float], places: Sequence[int]) -> bool:
    """Tell whether the values at some places are finite."""
    return all(math.isfinite(values[t]) for t in places)


def _rank(nats: float) -> float:
    """Let what is not a number come first."""
    return math.inf if math.isnan(nats) else nats


def shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode tokens, with what cannot be printed spelt out."""
    text = tokenizer.decode(ids, skip_special=False)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextmanager
def first_not_finite(stage: Stage, seen: list[BadOutput]) -> Iterator[None]:
    """Find the first module whose output is not finite, in the order of computation.

    Args:
        stage: Its network is watched within the block.
        seen: Receives what is found.
    """
    handles = [
        module.register_forward_hook(partial(_see, name, seen))
        for name, module in stage.net.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _see(name: str, seen: list[BadOutput], module: nn.Module, inputs: Any, output: Any) -> None:
    if seen or not isinstance(output, Tensor) or not output.is_floating_point():
        return
    bad = ~output.detach().isfinite()
    if not bad.any():
        return
    where = tuple(int(i) for i in bad.nonzero()[0])
    weights = [p for p in module.parameters(recurse=False)]
    given = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    kind = type(module).__name__
    seen.append(BadOutput(name, kind, where, tuple(output.shape), _finite(given), _finite(weights)))


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(local_part(t).isfinite().all()) for t in tensors)
