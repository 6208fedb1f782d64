"""Samples: written at the validation after they are due and at the end, on rank 0, and not
timed as training.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pretrain.callbacks.evaluations import TextSamples
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer


class Writer:
    def __init__(self) -> None:
        self.written: list[tuple[str, str, int]] = []

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.written.append((tag, text, step))


@pytest.fixture(scope="module")
def stage() -> Any:
    net = Transformer(ModelConfig(vocab_size=512, n_layer=1, width=32, n_head=2, max_seq_len=32))
    net.reset_parameters(torch.Generator().manual_seed(0))
    return SimpleNamespace(net=net)


def trainer(step: int, *, fn: str = "fit", zero: bool = True, strategy: Any = None) -> Any:
    return SimpleNamespace(
        global_step=step,
        max_steps=20,
        state=SimpleNamespace(fn=fn),
        is_global_zero=zero,
        strategy=strategy,
    )


def made(
    dataset: Path, *, every: int, prompts: tuple[str, ...] = ("", "def\n")
) -> tuple[TextSamples, Writer, list[float]]:
    seconds: list[float] = []
    callback = TextSamples(dataset, every=every, prompts=prompts, tokens=4, on_done=seconds.append)
    callback.writer = Writer()
    return callback, callback.writer, seconds


def test_when_they_are_due(dataset: Path, stage: Any) -> None:
    callback, writer, seconds = made(dataset, every=5)
    for step in (3, 6, 9, 12, 20):
        callback.on_validation_end(trainer(step), stage)
    assert sorted({step for _, _, step in writer.written}) == [
        6,
        12,
        20,
    ]  # at the first validation after 5, after 11, and at the end
    assert len(seconds) == 3
    assert {tag for tag, _, _ in writer.written} == {"samples/start", "samples/def"}
    text = next(text for tag, text, _ in writer.written if tag == "samples/def")
    assert all(line.startswith("    ") for line in text.split("\n"))  # Markdown shows it as it is
    assert list(callback.latest) == ["", "def\n"]
    assert text.replace("\n    ", "\n") == "    def\n" + callback.latest["def\n"]


def test_only_the_last_without_an_interval(dataset: Path, stage: Any) -> None:
    callback, writer, _ = made(dataset, every=0)
    for step in (6, 12, 20):
        callback.on_validation_end(trainer(step), stage)
    assert {step for _, _, step in writer.written} == {20}


@pytest.mark.parametrize(
    "other",
    [
        {"fn": "validate"},
        {"zero": False},
        {"strategy": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)},
    ],
)
def test_who_writes_none(dataset: Path, stage: Any, other: dict[str, Any]) -> None:
    callback, writer, seconds = made(dataset, every=1)
    callback.on_validation_end(trainer(20, **other), stage)
    assert (writer.written, seconds, callback.latest) == ([], [], {})


def test_settings_that_make_no_sense(dataset: Path) -> None:
    with pytest.raises(UserError, match="sample_every=-1 must not be negative"):
        made(dataset, every=-1)
