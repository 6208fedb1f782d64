"""PreferenceData: pairs of answers, one better than the other, for DPO, SimPO, ORPO, CPO and reward models."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Optional

import torch

from lit_pretrain.batch import PreferenceBatch
from lit_pretrain.data.messages import BadRow, Conversation, Preference, Row
from lit_pretrain.data.padded import pad_rows
from lit_pretrain.data.post_training import PostTrainingData
from lit_pretrain.data.render import Rendered, truncate
from lit_pretrain.data.row_source import SPLITS, Tally
from lit_pretrain.data.samples import Sample


class Pair(NamedTuple):
    """Both answers with their prompt, each as it is read by the network."""

    chosen: Rendered
    rejected: Rendered
    ref_logp: Optional[tuple[float, float]]
    margin: Optional[float]


class PreferenceData(PostTrainingData):
    """Pairs of a chosen and a rejected answer to the same prompt; what follows the prompt counts.

    `global_batch_rows` and `micro_batch_size` count pairs; `seq_len` limits a prompt with one of its answers.

    Args:
        global_batch_rows: Pairs per optimizer step over all devices; micro-batches are accumulated
            to reach it.
        micro_batch_size: The most pairs that one device processes at once.
        common: What all post-training data take.
    """

    kind: ClassVar[str] = "preference"
    unit: ClassVar[str] = "pairs"
    sequences_per_row: int = 2

    def __init__(self, *, global_batch_rows: Optional[int] = 32, micro_batch_size: int = 4, **common: Any) -> None:
        super().__init__(global_batch_rows=global_batch_rows, micro_batch_size=micro_batch_size, **common)

    @cached_property
    def provides(self) -> frozenset[str]:  # as a property, it would look at every row for every batch
        """Labels and pairs, and the columns that every row has, those held out too."""
        items = [item for split in SPLITS for item in self.encoded.items(split)]
        columns = {"ref_logp": all(item.ref_logp is not None for item in items), "margin": all(item.margin is not None for item in items)}
        return frozenset({"labels", "pairs"} | {name for name, there in columns.items() if there})

    def encode(self, rows: Sequence[Row]) -> Sequence[Pair | BadRow]:
        """Both answers rendered and cut; a pair goes if one of them does."""
        pairs = [row for row in rows if isinstance(row, Preference)]
        sides = []
        for name in ("chosen", "rejected"):
            whole = [Conversation(messages=row.prompt + getattr(row, name), prompt=len(row.prompt), tools=row.tools) for row in pairs]
            sides.append(self.renderer.render(whole, train_on="completion"))
        encoded: list[Pair | BadRow] = []
        for row, chosen, rejected in zip(pairs, *sides, strict=True):
            try:
                both = []
                for side in (chosen, rejected):
                    if isinstance(side, BadRow):
                        raise side
                    both.append(truncate(side, self.seq_len, self.truncation))
                encoded.append(Pair(both[0], both[1], row.ref_logp, row.margin))
            except BadRow as bad:
                encoded.append(bad)
        return encoded

    def note(self, row: Row, item: Pair, tally: Tally) -> None:
        """Count what was cut, too."""
        super().note(row, item, tally)
        if item.chosen.cut or item.rejected.cut:
            tally.noted["truncated"] += 1

    def collate(self, samples: Sequence[Sample]) -> list[PreferenceBatch]:
        """Pairs, the chosen ones in the first half of the rows."""
        size, provides = self.micro_batch_size, self.provides
        return [self._micro_batch(samples[i : i + size], provides) for i in range(0, len(samples), size)]

    def _micro_batch(self, samples: Sequence[Sample], provides: frozenset[str]) -> PreferenceBatch:
        pairs: list[Optional[Pair]] = [sample.items[0] if sample.items else None for sample in samples]
        sequences = [pair and pair.chosen for pair in pairs] + [pair and pair.rejected for pair in pairs]
        rows = pad_rows(sequences, pad_id=self.pad_id, seq_len=self.seq_len)
        ref = margin = None
        if "ref_logp" in provides:
            known = [pair.ref_logp or (0.0, 0.0) if pair else (0.0, 0.0) for pair in pairs]
            ref = torch.tensor([k[0] for k in known] + [k[1] for k in known], dtype=torch.float32)
        if "margin" in provides:
            margin = torch.tensor([pair.margin or 0.0 if pair else 0.0 for pair in pairs], dtype=torch.float32)
        source, index = ([sample.source for sample in samples] * 2, [sample.number for sample in samples] * 2)
        return PreferenceBatch(*rows, torch.tensor(source), torch.tensor(index), ref, margin)

    def reference_batches(self) -> list[PreferenceBatch]:
        """Every pair once, those held out too, in a fixed order: what a reference has to look at."""
        pairs = [item for split in SPLITS for item in self.encoded.items(split)]
        return self.collate([Sample(n, 0, (pair,)) for n, pair in enumerate(pairs)])

    def take_reference(self, logp_B2: torch.Tensor) -> None:
        """Take over the reference's log-probabilities of all pairs, in the order of `reference_batches`."""
        sources = [held for split in SPLITS for held in self.encoded.splits[split]]
        assert len(logp_B2) == sum(len(held.items) for held in sources), "a column of other pairs"
        known = iter(logp_B2.tolist())
        for held in sources:
            held.items[:] = [pair._replace(ref_logp=tuple(next(known))) for pair in held.items]
        self.__dict__.pop("provides", None)

    def exposure(self, steps: int) -> str:
        """What the run reads, and how long the answers are: a preference for length shows here first."""
        items = self.encoded.items("train")
        lengths = [sum(int(getattr(item, side).learned.sum()) for item in items) / len(items) for side in ("chosen", "rejected")]
        return super().exposure(steps) + f"\nanswers have {lengths[0]:.1f} (chosen) and {lengths[1]:.1f} (rejected) tokens on average"
