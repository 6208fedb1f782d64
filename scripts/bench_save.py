"""Bench of saving: how long an asynchronous save stops training, relative to a synchronous one.

    python scripts/bench_save.py --data data/embedded              # 4 layers × 768, 0.4 GB
    python scripts/bench_save.py --data data/embedded --width 256

In a run of `fit` both save the same state after each step, in turn, and medians are printed. What
is written beside training is waited for before the next save, so that the disk serves one of them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from lit_pretrain.__main__ import main as lit_pretrain
from lit_pretrain.callbacks.checkpoints import Checkpoints


def made(run: Path, *, asynchronous: bool) -> Checkpoints:
    return Checkpoints(
        run, every=0, keep=1, contract={}, asynchronous=asynchronous,
        on_saved=lambda seconds: None, on_written=lambda step: None,
    )  # fmt: skip


class InTurn(L.Callback):
    """Save after each step, in both ways, and count the seconds for which that stops training."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        self.bytes = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make what saves, beside the run's own."""
        run = Path(trainer.default_root_dir) / "saved"
        self.kinds = {kind: made(run, asynchronous=kind) for kind in (False, True)}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Let both save; which is the first takes turns as well."""
        own, first = trainer.strategy.checkpoint_io, trainer.global_step % 2 == 0
        for kind in (first, not first):
            callback = self.kinds[kind]
            trainer.strategy.checkpoint_io = callback.io
            began = time.perf_counter()
            path = callback.save(trainer)
            self.seconds[kind].append(time.perf_counter() - began)
            callback.wait(trainer)
            self.bytes = path.stat().st_size
        trainer.strategy.checkpoint_io = own

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table; the first saves of each kind do not count, which fill caches."""
        at_once, beside = (statistics.median(self.seconds[kind][1:]) for kind in (False, True))
        print(f"{self.bytes / 1e6:,.0f} MB, {len(self.seconds[True]) - 1} saves of each kind")
        print(f"synchronous   {at_once:8.4f} s")
        print(f"asynchronous  {beside:8.4f} s, of which training waits")
        print(f"ratio         {beside / at_once:8.4f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/embedded", help="a prepared dataset")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--saves", type=int, default=9, help="of each kind, beside the first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        return lit_pretrain([
            "fit", f"--data.path={options.data}", f"--runs={runs}", "--name=bench",
            f"--model.net.n_layer={options.layers}", f"--model.net.width={options.width}",
            "--model.net.n_head=2", f"--model.net.ffn_width={3 * options.width}",
            "--model.optimizer=lit_pretrain.optim.AdamW", "--model.compile=off",
            "--data.seq_len=32", "--data.micro_batch_size=1", "--data.global_batch_tokens=32",
            "--data.val_tokens=32", f"--max_steps={options.saves + 1}", "--checkpoint_every=0",
            "--validate_every=0", "--sample_prompts=[]", "--trainer.callbacks+=bench_save.InTurn",
        ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
