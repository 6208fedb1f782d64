"""Time of a moving average of the weights, as a share of an optimizer step.

    python scripts/bench_average.py                   # 6 layers of width 384, 8 rows of 512 tokens
    python scripts/bench_average.py --layers 2 --width 64 --rows 1 --repeats 9

Steps and updates of the average take turns, so that a busy machine slows both alike; medians are
compared. A half-life of fewer than 50 steps pays the share at every step, a longer one less often.
"""

import statistics
import time

import torch
from bench_network import make_network, network_options

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.cli.train.precision import cpu_has_bf16
from lit_pretrain.optim import MuonAdamW
from lit_pretrain.optim.weight_average import UPDATES, WeightAverage
from lit_pretrain.roles import parameter_roles


def main() -> None:
    """Measure, and print a line."""
    options = network_options(__doc__, rows=8)
    net = make_network(options)
    optimizer = MuonAdamW().build(net.named_parameters(), parameter_roles(net))
    average = WeightAverage(optimizer, half_life=UPDATES, batch=BatchSizes.one(1))
    assert average.every == 1
    tokens_BT = torch.randint(options.vocabulary, (options.rows, options.length))
    seconds: dict[str, list[float]] = {"step": [], "update": []}
    for repeat in range(options.repeats + 1):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            logits_BTV = net.logits(net(tokens_BT))
            loss = torch.nn.functional.cross_entropy(
                logits_BTV.flatten(0, 1).float(), tokens_BT.flatten()
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        average.update()
        if repeat:  # the first warms up
            seconds["step"].append(ended - began)
            seconds["update"].append(time.perf_counter() - ended)
    step, update = (statistics.median(values) for values in seconds.values())
    print(
        f"step {step * 1e3:.1f} ms, update of the average {update * 1e3:.2f} ms:"
        f" {update / step:.2%} at every step, {update / step / 40:.3%} with a half-life of"
        f" {40 * UPDATES:,} steps"
    )


if __name__ == "__main__":
    main()
