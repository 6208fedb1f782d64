"""Stage: gradients are those of the whole global batch, whatever it is cut into, and nothing is
updated that is not finite.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lit_pretrain.batch import IGNORE_INDEX, Batch, DataContract
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import DivergedError, UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.optim import OptimizerRecipe, Schedule
from lit_pretrain.stage.origin import can_compile
from lit_pretrain.stage.stage import Stage, step_seed

ROWS, T, V = 8, 16, 96
NET = ModelConfig(vocab_size=V, n_layer=2, width=32, n_head=2, max_seq_len=32)


@dataclass(frozen=True)
class Recorder(OptimizerRecipe):
    """An optimizer recipe that keeps the gradients it is given, and moves the weights by plain
    gradient descent.
    """

    lr: float = 0.1

    def build(
        self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], roles: Any
    ) -> torch.optim.Optimizer:
        return _Recording(dict(named_parameters), self.lr)


class _Recording(torch.optim.SGD):
    def __init__(self, named: dict[str, torch.nn.Parameter], lr: float) -> None:
        super().__init__(named.values(), lr=lr)
        self.named = named
        self.gradients: list[dict[str, Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        self.gradients.append(
            {name: p.grad.clone() for name, p in self.named.items() if p.grad is not None}
        )
        super().step()
        return loss


class Made(L.LightningDataModule):
    """A data module that gives made-up steps."""

    def __init__(
        self, steps: list[list[Batch]], held_out: list[Batch] | None = None, **contract: Any
    ) -> None:
        super().__init__()
        self.steps = steps
        self.held_out = held_out
        facts = {
            "sources": ("a", "b", "c"), "vocab_size": V, "tokenizer_hash": "t",
            "manifest_hash": "m",
            "token_bytes": tuple(n % 5 for n in range(V)), "seq_len": T,
            "batch_tokens": BatchSizes.one(ROWS * T),
        }  # fmt: skip
        self.contract = DataContract(**{**facts, **contract})

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        return DataLoader(self.steps, batch_size=None, collate_fn=list)

    def val_dataloader(self) -> DataLoader[list[Batch]]:
        return DataLoader(
            [[batch] for batch in self.held_out or []], batch_size=None, collate_fn=list
        )


def ragged(steps: int = 1, rows: int = ROWS, seed: int = 0) -> list[Batch]:
    """Whole batches in which rows have from no to all positions supervised, several documents,
    and three sources.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(steps):
        tokens = torch.randint(0, V, (rows, T + 1), generator=generator)
        labels = tokens[:, 1:].clone()
        supervised = torch.arange(rows) * T // max(rows - 1, 1)  # row 0 has none
        labels[torch.rand(rows, T, generator=generator).argsort(dim=1) >= supervised[:, None]] = (
            IGNORE_INDEX
        )
        doc = (torch.rand(rows, T, generator=generator) < 0.2).cumsum(dim=1).int()
        source = torch.randint(0, 3, (rows,), generator=generator)
        index = torch.arange(rows) + step * rows
        found.append(Batch(tokens[:, :-1].contiguous(), labels, doc, source, index))
    return found


def cut(batch: Batch, size: int) -> list[Batch]:
    return [
        Batch(*parts) for parts in zip(*(torch.split(part, size) for part in batch), strict=True)
    ]


def fit(
    stage: Stage,
    data: Made,
    *,
    steps: int,
    callbacks: list[L.Callback] | None = None,
    validate: bool = False,
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision="32-true", max_steps=steps, max_epochs=-1,
        logger=False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=None if validate else 0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(stage, datamodule=data)
    return trainer


def stage_of(net: ModelConfig = NET, **options: Any) -> Stage:
    defaults = {
        "optimizer": Recorder(),
        "schedule": Schedule(kind="constant"),
        "clip_norm": None,
        "compile": "off",
        "seed": 3,
    }
    return Stage(net=net, **{**defaults, **options})


def gradients_of(trainer: L.Trainer) -> list[dict[str, Tensor]]:
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, _Recording)
    return optimizer.gradients


def plain_loop(
    batches: list[Batch], *, lr: float = 0.1
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Gradients and losses of a loop without Lightning: all rows at once, torch's own
    cross-entropy, its mean.
    """
    net = Transformer(NET)
    net.reset_parameters(torch.Generator().manual_seed(3))
    gradients, losses = [], []
    for batch in batches:
        net.zero_grad()
        logits = net.logits(net(batch.tokens_BT, batch.doc_BT))
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=IGNORE_INDEX
        )
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        )
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=lr)
    return gradients, losses


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], atol=tolerance, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_gradients_are_those_of_a_plain_loop_over_the_whole_batch(micro: int) -> None:
    """With uneven micro-batches a mean of means would be far off; here every token of the step
    counts the same.
    """
    batches = ragged(steps=3)
    expected, losses = plain_loop(batches)
    stage = stage_of()
    seen: list[float] = []

    class Losses(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
        ) -> None:
            assert isinstance(pl_module, Stage)
            seen.append((pl_module.sums["nats_S"].sum() / pl_module.sums["tokens_S"].sum()).item())

    trainer = fit(
        stage, Made([cut(batch, micro) for batch in batches]), steps=3, callbacks=[Losses()]
    )
    assert trainer.global_step == 3
    for step, got in enumerate(gradients_of(trainer)):
        assert_same(got, expected[step])
    assert seen == pytest.approx(losses, rel=1e-6)


def test_a_mean_of_means_would_be_noticed() -> None:
    """The reference of the test above can fail: the wrong normalisation differs from it by far
    more than its tolerance.
    """
    (batch,) = ragged()
    net = Transformer(NET)
    net.reset_parameters(torch.Generator().manual_seed(3))
    micros = [micro for micro in cut(batch, 1) if (micro.labels_BT != IGNORE_INDEX).any()]
    for micro in micros:
        logits = net.logits(net(micro.tokens_BT, micro.doc_BT))
        (
            F.cross_entropy(
                logits.flatten(0, 1), micro.labels_BT.flatten(), ignore_index=IGNORE_INDEX
            )
            / len(micros)
        ).backward()
    right = plain_loop([batch])[0][0]["head.weight"]
    assert ((net.head_weight.grad - right).norm() / right.norm()).item() > 0.05


def test_gradients_are_clipped_after_they_are_normalised() -> None:
    batches = ragged(steps=1)
    (expected,), _ = plain_loop(batches)
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in expected.values()])).item()
    stage = stage_of(clip_norm=norm / 4)
    trainer = fit(stage, Made([cut(batches[0], 2)]), steps=1)
    assert stage.sums["grad_norm"].item() == pytest.approx(norm, rel=1e-5)  # before clipping
    assert_same(
        gradients_of(trainer)[0], {name: gradient / 4 for name, gradient in expected.items()}
    )
    loose = stage_of(clip_norm=norm * 4)
    assert_same(gradients_of(fit(loose, Made([cut(batches[0], 2)]), steps=1))[0], expected)


def test_sums_are_kept_by_source() -> None:
    (batch,) = ragged()
    stage = stage_of()
    fit(stage, Made([cut(batch, 2)]), steps=1)
    net = Transformer(NET)
    net.reset_parameters(torch.Generator().manual_seed(3))
    logits = net.logits(net(batch.tokens_BT, batch.doc_BT))
    nll_B = F.cross_entropy(
        logits.transpose(1, 2), batch.labels_BT, ignore_index=IGNORE_INDEX, reduction="none"
    ).sum(dim=1)
    for s in range(3):
        assert stage.sums["nats_S"][s].item() == pytest.approx(
            nll_B[batch.source_B == s].sum().item(), rel=1e-5
        )
        assert (
            stage.sums["tokens_S"][s].item()
            == (batch.labels_BT[batch.source_B == s] != IGNORE_INDEX).sum().item()
        )


def test_a_step_without_one_supervised_token_changes_nothing() -> None:
    (batch,) = ragged()
    stage = stage_of()
    silent = batch._replace(labels_BT=torch.full_like(batch.labels_BT, IGNORE_INDEX))
    trainer = fit(stage, Made([cut(silent, 4)]), steps=1)
    assert all((gradient == 0).all() for gradient in gradients_of(trainer)[0].values())


@pytest.mark.skipif(
    can_compile(torch.device("cpu")) is not None, reason="no C++ compiler, or no headers of Python"
)
@pytest.mark.timeout(
    1200
)  # most of it is the C++ compiler, which a busy machine runs ten times as long
def test_the_compiled_stage_equals_the_eager_one_and_keeps_its_keys() -> None:
    batches = ragged(steps=2)
    expected, _ = plain_loop(batches)
    stage = stage_of(compile="on")
    trainer = fit(stage, Made([cut(batch, 2) for batch in batches]), steps=2)
    for step, got in enumerate(gradients_of(trainer)):
        assert_same(got, expected[step])
    assert set(stage.state_dict()) == {f"net.{name}" for name in Transformer(NET).state_dict()}


# ---------------------------------------------------------------------- what is not finite


class Poison(L.Callback):
    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.net.final_norm.weight[0] = self.value
            self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_update(value: float) -> None:
    batches, stage, poison = ragged(steps=4), stage_of(), Poison(2, value)
    with pytest.raises(DivergedError, match=r"step 2: .*stopped before the update") as caught:
        fit(stage, Made([cut(batch, 4) for batch in batches]), steps=4, callbacks=[poison])
    assert caught.value.samples == tuple(
        range(16, 24)
    )  # the rows of step 2, over all micro-batches
    assert caught.value.exit_code == 3
    after = stage.state_dict()
    assert all(
        torch.equal(after[name], value.to(after[name])) or value.isnan().any()
        for name, value in poison.before.items()
    )


# ---------------------------------------------------------------------- dropout


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    seeds = {
        step_seed(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(4)
    }
    assert len(seeds) == 4 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (
        step_seed(1, 2, 3) == 8574225507981108880
    )  # for ever: a resumed run must draw what the first attempt drew


def test_dropout_does_not_depend_on_what_was_drawn_before() -> None:
    net = ModelConfig(vocab_size=V, n_layer=1, width=32, n_head=2, max_seq_len=32, dropout=0.3)
    data = [cut(batch, 4) for batch in ragged(steps=2)]
    torch.manual_seed(1)
    first = gradients_of(fit(stage_of(net), Made(data), steps=2))
    torch.manual_seed(2)
    torch.rand(77)
    again = gradients_of(fit(stage_of(net), Made(data), steps=2))
    other = gradients_of(fit(stage_of(net, seed=4), Made(data), steps=2))
    assert all(
        torch.equal(first[step][name], again[step][name])
        for step in range(2)
        for name in first[step]
    )
    assert not torch.equal(first[0]["head.weight"], other[0]["head.weight"])


# ---------------------------------------------------------------------- learning rate


def test_the_learning_rate_of_step_n_is_that_of_the_schedule() -> None:
    schedule = Schedule(kind="linear", warmup="2 steps")
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(
        stage_of(schedule=schedule),
        Made([cut(batch, 4) for batch in ragged(steps=6)]),
        steps=6,
        callbacks=[Rates()],
    )
    assert rates == pytest.approx(
        [0.1 * schedule.factor(step, 6, BatchSizes.one(ROWS * T)) for step in range(6)]
    )


# ---------------------------------------------------------------------- evaluation


def test_validation_is_a_mean_over_tokens_and_a_padded_row_counts_nothing() -> None:
    held_out = ragged(steps=3, seed=9)
    padded = Batch(*(part.clone() for part in held_out[0]))
    padded.labels_BT[:] = IGNORE_INDEX
    padded.index_B[:] = -1
    stage = stage_of()
    data = Made([cut(batch, 4) for batch in ragged(steps=1)], [*held_out, padded])
    trainer = fit(stage, data, steps=1, validate=True)
    nats, tokens, count = 0.0, 0, 0
    for batch in held_out:
        logits = stage.net.logits(stage.net(batch.tokens_BT, batch.doc_BT))
        nats += F.cross_entropy(
            logits.flatten(0, 1),
            batch.labels_BT.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        ).item()
        valid = batch.labels_BT[batch.labels_BT != IGNORE_INDEX]
        tokens += len(valid)
        count += int((valid % 5).sum())
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(nats / tokens, rel=1e-5)
    assert trainer.callback_metrics["val/bits_per_byte"].item() == pytest.approx(
        nats / math.log(2) / count, rel=1e-5
    )


def test_there_is_always_a_validation_at_the_end() -> None:
    seen: list[int] = []

    class Seen(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
            seen.append(trainer.global_step)

    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=5, max_epochs=-1, logger=False, callbacks=[Seen()],
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=2,
        check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(stage_of(), datamodule=Made([cut(batch, 4) for batch in ragged(steps=9)], ragged()))
    assert seen == [2, 4, 5]
    assert trainer.global_step == 5


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "contract", "message"),
    [
        ({}, {"vocab_size": V + 1}, "vocab_size=96 ids but the data's tokenizer has 97"),
        (
            {},
            {"seq_len": 64},
            "data.seq_len=64 is longer than the network's positions, model.net.max_seq_len=32",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(
    options: dict[str, Any], contract: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit(stage_of(**options), Made([cut(ragged()[0], 4)], **contract), steps=1)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_norm_must_be_positive(clip_norm: float) -> None:
    with pytest.raises(UserError, match="clip_norm"):
        stage_of(clip_norm=clip_norm)


def test_without_a_compiler_auto_trains_and_on_refuses(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    data = Made([cut(ragged()[0], 4)])
    fit(stage_of(compile="auto"), data, steps=1)
    assert "compile: off (no C++ compiler found" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"model\.compile=on, but no C"):
        fit(stage_of(compile="on"), data, steps=1)
