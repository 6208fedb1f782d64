"""Step sums: what the micro-batches of one optimizer step report, added up on the device.

Nobody reads them until a window of steps ends. Axes: B rows, S sources, M metrics.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def step_seed(seed: int, step: int, rank: int) -> int:
    """Derive a 63-bit seed for one optimizer step on one rank.

    The random numbers of a step follow from nothing else, so a resumed run draws the same ones.
    """
    digest = hashlib.sha256(f"{seed}\x00{step}\x00{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class StepSums:
    """Sums over the micro-batches of one rank, kept on the device. S sources, M metrics.

    Args:
        names: The objective's `metric_names`.
        sources: How many sources the data has.
        device: Where the sums are kept.
    """

    def __init__(self, names: Sequence[str], sources: int, device: torch.device) -> None:
        self.names = tuple(names)
        # fp32 by name: in bf16-true the default is bf16, which counts to 256.
        self.nats_S, self.tokens_S, self.terms_S = (
            torch.zeros(sources, device=device, dtype=torch.float32) for _ in range(3)
        )
        self.means_M2 = torch.zeros(len(names), 2, device=device, dtype=torch.float32)

    def add(self, metrics: dict[str, Tensor], source_B: Tensor) -> None:
        """Add what an objective returned for one micro-batch."""
        self.nats_S.index_add_(0, source_B, metrics["loss_B"].detach().float())
        self.tokens_S.index_add_(0, source_B, metrics["tokens_B"].float())
        self.terms_S.index_add_(0, source_B, metrics.get("terms_B", metrics["tokens_B"]).float())
        if self.names:
            self.means_M2 += torch.stack([metrics[name] for name in self.names]).float()

    def as_dict(self) -> dict[str, Tensor]:
        """Return loss, terms and supervised tokens by source, and sum and count of each metric."""
        return {
            "nats_S": self.nats_S,
            "tokens_S": self.tokens_S,
            "terms_S": self.terms_S,
            "means_M2": self.means_M2,
        }

    def means(self, total: Tensor) -> dict[str, float]:
        """Turn the sum of `packed()` over ranks into numbers; NaN where nothing was counted."""
        loss, terms, tokens, *rest = total.tolist()
        pairs = zip(self.names, rest[::2], rest[1::2], strict=True)
        found = {
            "loss": (loss, terms),
            **{name: (value, count) for name, value, count in pairs},
            "tokens_per_term": (tokens, terms),
        }
        return {
            name: value / count if count else float("nan") for name, (value, count) in found.items()
        }

    def packed(self) -> Tensor:
        """Pack loss, terms, tokens and metrics into one fp64 tensor, to be reduced at once."""
        return torch.cat(
            [
                torch.stack([self.nats_S.sum(), self.terms_S.sum(), self.tokens_S.sum()]),
                self.means_M2.flatten(),
            ]
        ).double()
