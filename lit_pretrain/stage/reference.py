"""Reference: the log-probabilities that a policy is compared with, from the cheapest place that has them.

A precomputed column costs nothing; an adapter that is switched off costs a forward pass; a frozen copy costs a forward pass and the memory
of a network.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Optional

import torch
from torch import Tensor

from lit_pretrain.adapter import LoRA
from lit_pretrain.batch import AnyBatch, LabelledBatch, PolicyBatch, PreferenceBatch
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.stage.frozen import Frozen, label_logp

Place = Literal["column", "adapter", "copy"]


def resolve_place(provides: frozenset[str], *, adapter: bool, named: bool) -> Place:
    """Where the reference comes from.

    Args:
        provides: `DataContract.provides`.
        adapter: Whether the network carries an adapter.
        named: Whether the reference is another network than the one that training starts from.
    """
    if "ref_logp" in provides:
        return "column"
    return "adapter" if adapter and not named else "copy"


class Reference:
    """Fills in the reference's log-probabilities where a batch has none.

    Args:
        place: Where they come from.
        net: The network that is trained.
        adapter: Its adapter; needed where the place is `adapter`.
        make_copy: Makes the frozen copy; called where the place is `copy`.
        temperature: At which policies sample, whose log-probabilities are compared.
    """

    def __init__(
        self, place: Place, net: Transformer, adapter: Optional[LoRA], make_copy: Callable[[], Frozen], temperature: float = 1.0
    ) -> None:
        self.place = place
        self.net = net
        self.adapter = adapter
        self.copy = make_copy() if place == "copy" else None
        self.temperature = temperature

    def fill(self, batch: AnyBatch) -> AnyBatch:
        """The batch with its reference column; as it came if it has one."""
        if isinstance(batch, PreferenceBatch | LabelledBatch):
            return batch if batch.ref_logp_B is not None else batch._replace(ref_logp_B=self._logp(batch).sum(dim=1))
        if isinstance(batch, PolicyBatch):
            return batch if batch.ref_logp_BT is not None else batch._replace(ref_logp_BT=self._logp(batch))
        return batch

    def _logp(self, batch: AnyBatch) -> Tensor:
        assert self.place != "column", "data that provides ref_logp has it in every batch"
        if self.copy is not None:
            return label_logp(self.copy.net, batch.tokens_BT, batch.doc_BT, batch.labels_BT, self.temperature)
        assert self.adapter is not None
        with self.adapter.disabled(self.net), evaluating(self.net):
            return label_logp(self.net, batch.tokens_BT, batch.doc_BT, batch.labels_BT, self.temperature)


@contextmanager
def evaluating(net: torch.nn.Module) -> Iterator[None]:
    """Dropout off within this context."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)
