"""What measuring the gradient noise scale costs, as a share of an optimizer step.

    python scripts/bench_noise_scale.py               # the quickstart's network, two micro-batches
    python scripts/bench_noise_scale.py --layers 2 --width 64 --rows 2 --repeats 15

Steps with and without a measurement take turns, so that a busy machine slows both alike; medians of
their processor time are compared. `at N = 10` is a tenth of it: what `--noise_scale_every 10` costs
a run.
"""

import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from bench_network import make_network, network_options

from lit_pretrain.callbacks.noise_scale import MeasuredStep
from lit_pretrain.cli.train.precision import cpu_has_bf16
from lit_pretrain.objective import linear_cross_entropy
from lit_pretrain.optim import MuonAdamW
from lit_pretrain.roles import parameter_roles


class OneProcess(SimpleNamespace):
    """Stands in for the strategy of a single process."""

    root_device = torch.device("cpu")

    def reduce(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the tensor: there is no other rank to add up."""
        return tensor


def main() -> None:
    """Measure, and print a line."""
    options = network_options(__doc__, rows=4, rows_help="of each of two micro-batches")
    net = make_network(options)
    optimizer = MuonAdamW().build(net.named_parameters(), parameter_roles(net))
    tokens_BT = torch.randint(options.vocabulary, (options.rows, options.length + 1))
    micro = SimpleNamespace(tokens_BT=tokens_BT[:, :-1])
    stage: Any = SimpleNamespace(
        named_parameters=net.named_parameters, named_modules=net.named_modules,
        batch=[micro, micro], denominators=[],
    )  # fmt: skip
    trainer: Any = SimpleNamespace(optimizers=[optimizer], strategy=OneProcess(), world_size=1)

    def step(measures: bool) -> float:
        began = time.process_time()
        stage.denominators = []
        measured = MeasuredStep(trainer, stage) if measures else None
        for _ in stage.batch:
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
                hidden_BTD = net(tokens_BT[:, :-1])
                labels_N = tokens_BT[:, 1:].flatten()
                loss = linear_cross_entropy(hidden_BTD.flatten(0, 1), net.head_weight, labels_N)[0]
            stage.denominators.append(torch.tensor(labels_N.numel()))
            loss.backward()
        if measured is not None:
            assert measured.end() is not None
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    step(measures=True)  # compiles
    pairs = [(step(measures=False), step(measures=True)) for _ in range(options.repeats)]
    plain, measured = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = statistics.median(with_it / without for without, with_it in pairs) - 1
    print(
        f"step {plain * 1e3:.0f} ms, with a measurement {measured * 1e3:.0f} ms: {more:+.1%}, at"
        f" N = 10 {more / 10:+.2%}"
    )


if __name__ == "__main__":
    main()
