"""Samples: text that the network writes during and after training, in TensorBoard and in the summary."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.generate.text import complete


class Samples(L.Callback):
    """Completes a few prompts at validations and at the end, on rank 0.

    Args:
        run: The run's folder, which holds the tokenizer.
        every: Optimizer steps between samples (taken at the next validation); 0 takes only the last.
        prompts: What to complete; the empty prompt starts a document.
        tokens: Longest completion in tokens.
        on_done: Told how many seconds it took.
    """

    def __init__(self, run: Path, *, every: int, prompts: Sequence[str], tokens: int, on_done: Callable[[float], None]) -> None:
        if every < 0 or tokens < 1:
            raise UserError(f"sample_every={every} must not be negative and sample_tokens={tokens} at least 1")
        self.run = run
        self.every = every
        self.prompts = tuple(prompts)
        self.tokens = tokens
        self.on_done = on_done
        self.latest: dict[str, str] = {}
        self.writer: Any = None
        """TensorBoard's SummaryWriter, if there is one."""
        self._next = every

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write samples when they are due."""
        step = trainer.global_step
        due = step == trainer.max_steps or (self.every and step >= self._next)
        # A sharded network would have to gather on every rank for every token.
        if trainer.state.fn != "fit" or not due or not self.prompts or isinstance(trainer.strategy, ModelParallelStrategy):
            return
        self._next = step + self.every
        if not trainer.is_global_zero:
            return
        began = time.perf_counter()
        tokenizer = Tokenizer.load(str(self.run))
        texts = complete(pl_module.net, tokenizer, self.prompts, max_new_tokens=self.tokens, temperature=0.8, top_p=0.95, seed=0)
        self.latest = dict(zip(self.prompts, texts, strict=True))
        if self.writer is not None:
            for prompt, text in self.latest.items():
                self.writer.add_text(f"samples/{prompt.strip() or 'start'}", f"    {prompt}{text}".replace("\n", "\n    "), step)
        self.on_done(time.perf_counter() - began)
