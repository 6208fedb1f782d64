"""Rollouts within a training step: on-policy, the same however a step is cut, exact on resume,
and nothing of it left in the gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_pretrain.adapter import LoRA
from lit_pretrain.batch import IGNORE_INDEX, Asking, DataContract, PolicyBatch, PromptBatch
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.data.batches import StepSampler
from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import Completions
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import DPO, GRPO, Objective, group_advantages
from lit_pretrain.optim import Schedule
from lit_pretrain.reward import Reward
from lit_pretrain.rollout import BuiltIn, Rollout
from lit_pretrain.stage.stage import Stage
from tests.stage.test_post_training import Recorder, assert_same

V, T, GROUP, ROWS, STOP = 32, 24, 4, 6, 3
NET = ModelConfig(
    vocab_size=V,
    n_layer=2,
    width=32,
    n_head=4,
    n_kv_head=2,
    ffn_width=64,
    max_seq_len=T,
    init_std=0.3,
)


def even(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    """Even ids are worth something, and the row has its say."""
    ids = [int(word) for word in completion.split()]
    return sum(i % 2 == 0 for i in ids) / (1 + len(ids)) + 0.01 * (row["n"] % 3)


class Prompts(L.LightningDataModule):
    """Prompts by sample number; sample n has 2 to 6 tokens."""

    def __init__(
        self, *, micro: int = ROWS, updates: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        super().__init__()
        self.save = lambda folder: None  # there is no tokenizer to keep
        self.micro, self.updates, self.rank, self.ranks = micro, updates, rank, ranks
        asking = Asking(
            GROUP,
            updates,
            6,
            0,
            frozenset({STOP}),
            lambda ids, special=False, before=(): " ".join(str(int(i)) for i in ids),
        )
        self.contract = DataContract(
            ("a", "b"),
            V,
            "t",
            "m",
            tuple(n % 5 for n in range(V)),
            T,
            BatchSizes.one(ROWS * GROUP * T),
            frozenset({"prompts"}),
            asking,
        )

    def collate(self, numbers: list[int]) -> list[PromptBatch]:
        return [
            self._micro(numbers[i : i + self.micro]) for i in range(0, len(numbers), self.micro)
        ]

    def _micro(self, numbers: list[int]) -> PromptBatch:
        tokens, doc = (
            torch.zeros(len(numbers), 8, dtype=torch.int64),
            torch.ones(len(numbers), 8, dtype=torch.int32),
        )
        for b, n in enumerate(numbers):
            if n >= 0:
                ids = torch.randint(4, V, (2 + n % 5,), generator=torch.Generator().manual_seed(n))
                tokens[b, : len(ids)], doc[b, : len(ids)] = ids, 0
        index = torch.tensor(numbers)
        rows = tuple({"n": n, "answer": str(n)} if n >= 0 else {} for n in numbers)
        return PromptBatch(
            tokens, torch.full_like(tokens, IGNORE_INDEX), doc, index % 2, index, rows
        )

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        sampler = StepSampler(
            batch=BatchSizes.one(ROWS),
            rank=self.rank,
            world_size=self.ranks,
            first_step=self.trainer.global_step,
            updates=self.updates,
        )
        return DataLoader(range(10**6), batch_sampler=sampler, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([*range(9), -1], batch_size=5, collate_fn=self.collate)


class Ran(NamedTuple):
    stage: Stage
    trainer: L.Trainer
    gradients: list[dict[str, Tensor]]


class Seen(L.Callback):
    """Keeps the micro-batches that each step learned from, and its sums."""

    def __init__(self) -> None:
        self.steps: list[list[PolicyBatch]] = []
        self.sums: list[dict[str, Tensor]] = []
        self.rates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.steps.append(pl_module.batch)
        self.sums.append(pl_module.sums)
        means = zip(pl_module.metric_names, pl_module.sums["means_M2"].tolist(), strict=True)
        self.rates.append({name: value / count for name, (value, count) in means if count})


def settings(**options: Any) -> Rollout:
    return Rollout(
        **{
            "rewards": {"even": Reward(path=f"{__name__}.even")},
            "max_completion_tokens": 8,
            **options,
        }
    )


def run(
    data: Prompts, *, steps: int = 1, objective: Objective | None = None,
    rollout: Rollout | None = None, callbacks: Any = None,
    ckpt: Path | None = None, precision: str = "32-true", validate: bool = False,
    net: ModelConfig = NET, **options: Any,
) -> Ran:  # fmt: skip
    stage = Stage(
        net=net, objective=objective or GRPO(), rollout=rollout or settings(),
        optimizer=Recorder(0.05), schedule=Schedule(kind="constant"),
        clip_norm=None, compile="off", seed=3, **options,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision=precision, max_steps=steps, max_epochs=-1,
        logger=False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=None if validate else 0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(
        stage, datamodule=data, ckpt_path=None if ckpt is None else str(ckpt), weights_only=True
    )
    return Ran(stage, trainer, trainer.optimizers[0].gradients)


# ---------------------------------------------------------------------- what is learned from


def test_the_batch_holds_what_was_sampled_rewarded_and_compared_within_its_group() -> None:
    seen = Seen()
    run(Prompts(), callbacks=[seen])
    ((batch,),) = seen.steps
    assert batch.old_logp_BT is None  # on-policy by definition
    assert len(batch.index_B) == ROWS * GROUP
    assert batch.index_B.tolist() == [n for n in range(ROWS) for _ in range(GROUP)]
    assert batch.source_B.tolist() == [n % 2 for n in range(ROWS) for _ in range(GROUP)]
    prompts = Prompts().collate(list(range(ROWS)))[0]
    for b, n in enumerate(batch.index_B.tolist()):
        length = int((batch.doc_BT[b] == 0).sum())
        prompt = prompts.tokens_BT[n][prompts.doc_BT[n] == 0]
        assert batch.tokens_BT[b, : len(prompt)].tolist() == prompt.tolist()
        answer = batch.tokens_BT[b, len(prompt) : length].tolist()
        assert 1 <= len(answer) <= 8
        assert bool(batch.truncated_B[b]) == (answer[-1] != STOP) == (STOP not in answer)
        assert len(answer) == 8 or not batch.truncated_B[b]
        labels = batch.labels_BT[b].tolist()
        assert labels[len(prompt) - 1 : length - 1] == answer
        assert all(
            label == IGNORE_INDEX for label in labels[: len(prompt) - 1] + labels[length - 1 :]
        )
        words = " ".join(str(i) for i in answer if i != STOP)
        assert batch.reward_B[b].item() == pytest.approx(even("", words, {"n": n}))
    torch.testing.assert_close(batch.advantage_B, group_advantages(batch.reward_B, batch.group_B))
    assert (batch.advantage_B != 0).any()
    rates = seen.rates[0]
    assert rates["reward"] == pytest.approx(batch.reward_B.mean().item())
    assert rates["rewards/even"] == pytest.approx(rates["reward"])
    assert rates["truncated"] == pytest.approx(batch.truncated_B.float().mean().item())
    assert rates["completion_tokens"] == pytest.approx(
        (batch.labels_BT != IGNORE_INDEX).sum().item() / (ROWS * GROUP)
    )
    assert rates["rollout_seconds"] > 0


def test_the_gradient_is_that_of_the_same_answers_given_as_data() -> None:
    """Nothing of the rollout is left in the step that follows it, in bf16 under autocast
    neither.
    """
    from tests.stage.test_post_training import Made

    for precision in ("32-true", "bf16-mixed"):
        seen = Seen()
        found = run(Prompts(micro=2), precision=precision, callbacks=[seen])
        (steps,) = seen.steps
        given = Made([list(steps)])
        given.contract = given.contract._replace(
            vocab_size=V, token_bytes=tuple(range(V)), seq_len=T
        )
        stage = Stage(
            net=NET,
            objective=GRPO(),
            optimizer=Recorder(0.05),
            schedule=Schedule(kind="constant"),
            clip_norm=None,
            compile="off",
            seed=3,
        )
        trainer = L.Trainer(
            accelerator="cpu", devices=1, precision=precision, max_steps=1, max_epochs=-1,
            logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(stage, datamodule=given)
        (expected,) = trainer.optimizers[0].gradients
        assert_same(found.gradients[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "rollout",
    [settings(temperature=0.7), settings(engine=BuiltIn(rows=5))],
    ids=["temperature", "rows"],
)
@pytest.mark.parametrize(
    "objective", [GRPO, lambda: GRPO(variant="grpo", beta=0.1)], ids=["dapo", "grpo"]
)
def test_neither_answers_nor_gradient_depend_on_how_a_step_is_cut(
    objective: Callable[[], GRPO], rollout: Rollout
) -> None:
    whole, parts = (
        run(Prompts(micro=micro), steps=2, objective=objective(), rollout=rollout)
        for micro in (ROWS, 2)
    )
    for a, b in zip(parts.gradients, whole.gradients, strict=True):
        assert_same(a, b, rtol=1e-4)
    assert_same(*(dict(r.stage.net.state_dict()) for r in (parts, whole)), rtol=1e-4)


def test_two_ranks_sample_what_one_does() -> None:
    """Each half of a step alone: the same answers to the same samples."""
    one, halves = Seen(), [Seen(), Seen()]
    run(Prompts(), callbacks=[one])
    for rank, half in enumerate(halves):
        run(Prompts(rank=rank, ranks=2), callbacks=[half])
    tokens = torch.cat([half.steps[0][0].tokens_BT for half in halves])
    assert torch.equal(tokens, one.steps[0][0].tokens_BT)
    assert torch.equal(
        torch.cat([half.steps[0][0].advantage_B for half in halves]), one.steps[0][0].advantage_B
    )


def test_the_temperature_is_that_of_the_policy_that_learns() -> None:
    """The gradient of log softmax(logits / temperature), by hand."""
    seen = Seen()
    net = replace(NET, logit_softcap=4.0)
    found = run(Prompts(), rollout=settings(temperature=0.6), callbacks=[seen], net=net)
    model = Transformer(net)
    model.reset_parameters(torch.Generator().manual_seed(3))
    ((batch,),) = seen.steps
    logits = model.logits(model(batch.tokens_BT, batch.doc_BT)) / 0.6
    mask = batch.labels_BT != IGNORE_INDEX
    logp = logits.log_softmax(-1).gather(2, batch.labels_BT.clamp(min=0)[..., None]).squeeze(-1)
    loss = -(logp * batch.advantage_B[:, None])[mask].sum() / mask.sum()
    loss.backward()
    assert_same(
        found.gradients[0],
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    )


def test_dropout_is_off_while_answers_are_sampled() -> None:
    """The check of the first step compares the sampler with the network without dropout, and
    would stop the run.
    """
    net = replace(NET, dropout=0.5)
    plain, dropped = Seen(), Seen()
    run(Prompts(), callbacks=[plain])
    run(Prompts(), callbacks=[dropped], net=net)
    assert torch.equal(plain.steps[0][0].tokens_BT, dropped.steps[0][0].tokens_BT)


def test_a_sampler_that_is_another_policy_is_noticed() -> None:
    class Wrong(BuiltIn):
        def generate(self, prompts: Any, *, sampling: Any, seeds: Any) -> Completions:
            found = super().generate(
                prompts, sampling=sampling._replace(temperature=2.0), seeds=seeds
            )
            return found

    with pytest.raises(
        RuntimeError,
        match=r"step 0: the log-probabilities of the rollout engine and of the network differ by",
    ):
        run(Prompts(), rollout=settings(engine=Wrong()))


def test_truncated_answers_may_be_masked() -> None:
    seen = Seen()
    run(Prompts(), rollout=settings(max_completion_tokens=3, mask_truncated=True), callbacks=[seen])
    ((batch,),) = seen.steps
    cut = batch.truncated_B
    assert 0 < cut.sum() < len(cut)
    assert (batch.labels_BT[cut] == IGNORE_INDEX).all()
    assert (batch.labels_BT[~cut] != IGNORE_INDEX).any(dim=1).all()


# ---------------------------------------------------------------------- the reference


@pytest.mark.parametrize(
    "measured", [GRPO(beta=0.1), GRPO(measure_kl=True)], ids=["beta", "measured"]
)
def test_the_divergence_begins_at_zero_and_grows(
    measured: GRPO, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Seen()
    run(Prompts(), steps=3, objective=measured, rollout=settings(temperature=0.8), callbacks=[seen])
    assert "reference: frozen copy" in capsys.readouterr().out
    assert seen.rates[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert seen.rates[2]["kl"] > 1e-6


# ---------------------------------------------------------------------- several updates


def test_several_updates_learn_from_the_same_answers_and_go_off_policy() -> None:
    seen = Seen()
    run(Prompts(updates=3), steps=6, callbacks=[seen], objective=GRPO(epsilon=0.01))
    tokens = [steps[0].tokens_BT for steps in seen.steps]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    assert torch.equal(tokens[3], tokens[5])
    assert seen.steps[3][0].index_B.tolist() == [
        n for n in range(ROWS, 2 * ROWS) for _ in range(GROUP)
    ]
    assert [steps[0].old_logp_BT is None for steps in seen.steps] == [True, False, False] * 2
    clipped = [rates["clip_ratio"] for rates in seen.rates]
    assert clipped[0] == clipped[3] == 0.0
    assert clipped[2] > 0.0


class Stop(L.Callback):
    """Saves after a step, and dies."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            raise RuntimeError("stopped here")


@pytest.mark.parametrize(
    ("updates", "at"), [(1, 2), (3, 3), (3, 4)], ids=["on-policy", "between-rollouts", "within-one"]
)
def test_a_resumed_run_is_the_run(updates: int, at: int, tmp_path: Path) -> None:
    whole = run(Prompts(updates=updates), steps=6)
    with pytest.raises(RuntimeError, match="stopped here"):
        run(Prompts(updates=updates), steps=6, callbacks=[Stop(at, tmp_path / "stopped.ckpt")])
    again = run(Prompts(updates=updates), steps=6, ckpt=tmp_path / "stopped.ckpt")
    assert len(again.gradients) == 6 - at
    for a, b in zip(again.gradients, whole.gradients[at:], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = again.stage.state_dict(), whole.stage.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    if at == 4:  # with other micro-batches, too
        other = run(Prompts(updates=updates, micro=2), steps=6, ckpt=tmp_path / "stopped.ckpt")
        for a, b in zip(other.gradients, whole.gradients[at:], strict=True):
            assert_same(a, b, rtol=1e-4)


# ---------------------------------------------------------------------- validation


def test_held_out_prompts_are_answered_once_and_the_loss_is_minus_the_reward() -> None:
    found = run(Prompts(), steps=1, validate=True)
    values = {k: float(v) for k, v in found.trainer.callback_metrics.items()}
    assert values["val/loss"] == pytest.approx(-values["val/reward"])
    assert values["val/reward"] == pytest.approx(values["val/rewards/even"])
    assert {
        "val/completion_tokens",
        "val/truncated",
        "val/entropy",
        "val_loss/a",
        "val_loss/b",
    } <= values.keys()
    assert values["val/loss"] == pytest.approx(
        (5 * values["val_loss/a"] + 4 * values["val_loss/b"]) / 9
    )
    assert found.stage.answers is not None
    assert [shown.right for shown in found.stage.answers.shown] == [
        "5",
        "6",
        "7",
        "8",
    ]  # the row that fills up is not asked


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"objective": DPO()},
            (
                r"model\.rollout answers prompts .* model\.objective DPO needs pairs and ref_logp:"
                r" remove model\.rollout"
            ),
        ),
        (
            {"rollout": settings(max_completion_tokens=20)},
            r"data\.max_prompt_tokens=6 and .*=20 are together more than data\.seq_len=24",
        ),
        (
            {"rollout": settings(temperature=0.0)},
            r"temperature=0 gives every answer of a group alike",
        ),
        (
            {"objective": GRPO(variant="dr_grpo", max_completion_tokens=9)},
            r"max_completion_tokens=9 is not model\.rollout\.max_completion_tokens=8",
        ),
    ],
    ids=["objective", "length", "greedy", "dr_grpo"],
)
def test_nonsense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(Prompts(), **change)


def test_a_sharded_rollout_and_prompts_without_a_rollout_are_refused() -> None:
    data = Prompts()
    with pytest.raises(
        UserError,
        match=(
            r"a sharded network \(trainer\.strategy fsdp\) would be gathered again for every token"
        ),
    ):
        Stage(net=NET, objective=GRPO(), rollout=settings()).check(
            data.contract, data, sharded=True
        )
    with pytest.raises(
        UserError,
        match=(
            r"rollout is missing; sampled answers come from data of prompts \(PromptData\) and"
            r" model\.rollout"
        ),
    ):
        Stage(net=NET, objective=GRPO()).check(data.contract, data, sharded=False)
    labels = data.contract._replace(provides=frozenset({"labels"}), asking=None)
    with pytest.raises(
        UserError,
        match=(
            r"model\.objective GRPO needs rollout, and data Prompts provides labels: rollout is"
            r" missing"
        ),
    ):
        Stage(net=NET, objective=GRPO(), rollout=settings()).check(labels, data, sharded=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_completion_tokens": 0},
            r"model\.rollout\.max_completion_tokens=0 must be at least 1",
        ),
        ({"temperature": -1.0}, r"model\.rollout: temperature=-1\.0 must be"),
        ({"top_p": 2.0}, r"model\.rollout: top_p=2\.0 must lie"),
        (
            {"rewards": {"a": {"pathh": "ExactAnswer"}}},
            r"a reward is a mapping with path, options and weight; found {'pathh'",
        ),
    ],
)
def test_mistakes_in_the_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**options)


def test_an_adapter_is_switched_on_while_it_samples_and_off_for_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=T, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "parent")
    seen = Seen()
    adapter = LoRA(rank=4, alpha=32.0, dropout=0.1)
    run(
        Prompts(),
        steps=3,
        objective=GRPO(beta=0.05),
        callbacks=[seen],
        init_from=str(tmp_path / "parent"),
        adapter=adapter,
    )
    assert "reference: adapter switched off" in capsys.readouterr().out
    assert seen.rates[2]["kl"] > 1e-6
