"""Stage beyond cross-entropy: what the objective needs is computed, checked and reported,
however the step is cut.
"""

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lit_pretrain.adapter import LoRA
from lit_pretrain.batch import (
    IGNORE_INDEX,
    Batch,
    DataContract,
    LabelledBatch,
    PolicyBatch,
    PreferenceBatch,
    StepwiseBatch,
)
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.callbacks.metrics import Metrics
from lit_pretrain.checkpoint.weights import load_weights
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import (
    CPO,
    DPO,
    GRPO,
    KTO,
    ORPO,
    CrossEntropy,
    Distillation,
    LabelScores,
    Objective,
    ProcessRewardModel,
    RewardModel,
    SimPO,
    group_advantages,
)
from lit_pretrain.optim import OptimizerRecipe, Schedule
from lit_pretrain.stage.stage import Stage

V, T, PAIRS = 64, 20, 6
NET = ModelConfig(
    vocab_size=V,
    n_layer=2,
    width=32,
    n_head=4,
    n_kv_head=2,
    ffn_width=64,
    max_seq_len=T,
    norm_eps=1e-6,
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with large seeded weights."""
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    folder = tmp_path_factory.mktemp("hf") / "parent"
    save_llama(transformers, folder, seed=0)
    return folder


def save_llama(transformers: Any, folder: Path, *, seed: int, **others: Any) -> None:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": T, "rms_norm_eps": 1e-6,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }  # fmt: skip
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields | others)).save_pretrained(
        folder
    )


# ---------------------------------------------------------------------- made-up data


def rows(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Padded sequences of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, V, (count, T), generator=generator)
    prompt = torch.randint(2, 6, (count, 1), generator=generator)
    end = prompt + torch.randint(1, T - 6, (count, 1), generator=generator)
    position = torch.arange(T)[None]
    following = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    labels = torch.where((position >= prompt - 1) & (position < end - 1), following, IGNORE_INDEX)
    return torch.where(position < end, tokens, 0), labels, (position >= end).int()


def pairs(seed: int = 0, count: int = PAIRS) -> PreferenceBatch:
    source = torch.arange(count) % 2
    return PreferenceBatch(*rows(2 * count, seed), source.repeat(2), torch.arange(count).repeat(2))


def verdicts(seed: int = 0, count: int = PAIRS) -> LabelledBatch:
    source = torch.arange(count) % 2
    return LabelledBatch(
        *rows(2 * count, seed),
        source.repeat(2),
        torch.arange(count).repeat(2),
        (torch.arange(count) % 3 == 0).repeat(2),
    )


def stepwise(seed: int = 0, count: int = PAIRS) -> StepwiseBatch:
    """Answers of which every third token is judged."""
    tokens, labels, doc = rows(count, seed)
    judged = (doc == 0) & (torch.arange(T) % 3 == 2)
    right = torch.where(judged, tokens % 2, IGNORE_INDEX)
    return StepwiseBatch(tokens, labels, doc, torch.arange(count) % 2, torch.arange(count), right)


def samples(seed: int = 0) -> PolicyBatch:
    """Three groups of four answers; in one all rewards are equal."""
    reward = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0])
    group = torch.arange(12) // 4
    truncated = torch.arange(12) % 5 == 0
    advantage = group_advantages(reward, group)
    return PolicyBatch(
        *rows(12, seed),
        torch.zeros(12).long(),
        torch.arange(12),
        advantage,
        reward,
        group,
        truncated,
    )


def learned(seed: int = 0, count: int = PAIRS) -> Batch:
    return Batch(*rows(count, seed), torch.arange(count) % 2, torch.arange(count))


def cut(batch: Any, size: int) -> list[Any]:
    """The same rows in micro-batches of `size` pairs, answers or rows."""
    halves = 2 if isinstance(batch, (PreferenceBatch, LabelledBatch)) else 1
    count = len(batch.index_B) // halves
    found = []
    for low in range(0, count, size):
        take = torch.cat(
            [torch.arange(low, min(low + size, count)) + half * count for half in range(halves)]
        )
        parts = [
            (
                None
                if field is None
                else field[take[: len(take) // halves]]
                if len(field) == count
                else field[take]
            )
            for field in batch
        ]
        micro = type(batch)(*parts)
        found.append(
            micro._replace(group_B=micro.group_B - micro.group_B.min())
            if isinstance(micro, PolicyBatch)
            else micro
        )
    return found


KIND = {
    PreferenceBatch: {"pairs"},
    LabelledBatch: {"verdicts"},
    StepwiseBatch: {"labels", "steps"},
    PolicyBatch: {"rollout"},
    Batch: {"labels"},
}


class Made(L.LightningDataModule):
    """Made-up steps, from the trainer's step on."""

    def __init__(
        self,
        steps: list[list[Any]],
        held_out: list[Any] | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.save = lambda folder: None  # there is no tokenizer to keep
        self.steps, self.held_out = steps, held_out
        self.contract = DataContract(
            ("a", "b"),
            V,
            "t",
            "m",
            tuple(n % 5 for n in range(V)),
            T,
            BatchSizes.one(2 * PAIRS * T),
            frozenset(KIND[type(steps[0][0])] | set(columns)),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        return DataLoader(self.steps[self.trainer.global_step :], batch_size=None, collate_fn=list)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            [[batch] for batch in self.held_out or []], batch_size=None, collate_fn=list
        )


@dataclass(frozen=True)
class Recorder(OptimizerRecipe):
    """Plain gradient descent that keeps the gradients it is given."""

    lr: float = 0.01

    def build(
        self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], roles: Any
    ) -> torch.optim.Optimizer:
        named = dict(named_parameters)
        assert named.keys() <= roles.keys()
        return _Recording(named, self.lr)


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


class Run(NamedTuple):
    stage: Stage
    trainer: L.Trainer
    gradients: list[dict[str, Tensor]]


def run(
    objective: Objective,
    data: Made,
    *,
    steps: int = 1,
    callbacks: Any = None,
    ckpt: Path | None = None,
    **options: Any,
) -> Run:
    defaults = {
        "optimizer": Recorder(),
        "schedule": Schedule(kind="constant"),
        "clip_norm": None,
        "compile": "off",
        "seed": 3,
    }
    stage = Stage(net=NET, objective=objective, **{**defaults, **options})
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision="32-true", max_steps=steps, max_epochs=-1,
        logger=False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=None if data.held_out else 0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(
        stage, datamodule=data, ckpt_path=None if ckpt is None else str(ckpt), weights_only=True
    )
    optimizer = trainer.optimizers[0]
    return Run(stage, trainer, optimizer.gradients if isinstance(optimizer, _Recording) else [])


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], *, rtol: float = 2e-5) -> None:
    assert a.keys() == b.keys()
    norm = torch.stack([value.norm() for value in b.values()]).norm()
    error = torch.stack([(a[name] - b[name]).norm() for name in a]).norm()
    assert norm > 0
    assert error <= rtol * norm, (error / norm).item()


# ---------------------------------------------------------------------- one gradient, however the
# step is cut

EXACT: dict[str, tuple[Callable[[], Objective], Callable[[], Any], int]] = {
    "dpo": (lambda: DPO(beta=0.3, label_smoothing=0.1), pairs, 1),
    "dpo with an SFT term": (lambda: DPO(beta=0.3, sft_weight=0.5), pairs, 1),
    "ipo": (lambda: DPO(beta=0.3, variant="ipo"), pairs, 1),
    "simpo": (SimPO, pairs, 1),
    "cpo": (CPO, pairs, 1),
    "orpo": (ORPO, pairs, 1),
    "reward": (lambda: RewardModel(centering=0.1), pairs, 1),
    "process reward": (ProcessRewardModel, stepwise, 1),
    "dapo": (lambda: GRPO(beta=0.1), samples, 4),
    "grpo": (lambda: GRPO(variant="grpo"), samples, 4),
    "dr_grpo": (lambda: GRPO(variant="dr_grpo", max_completion_tokens=14), samples, 4),
    "sft": (CrossEntropy, learned, 1),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(name: str, parent: Path) -> None:
    """Pairs, answers and tokens are counted over the whole step, also where a loss has two
    terms with counts of their own.
    """
    make, batch, size = EXACT[name]
    whole = run(make(), Made([[batch()]]), init_from=str(parent))
    parts = run(make(), Made([cut(batch(), size)]), init_from=str(parent))
    assert_same(parts.gradients[0], whole.gradients[0])
    for key in ("nats_S", "terms_S", "tokens_S", "means_M2"):
        torch.testing.assert_close(
            parts.stage.sums[key], whole.stage.sums[key], rtol=1e-4, atol=1e-5
        )


def test_two_terms_with_one_count_would_be_noticed(parent: Path) -> None:
    """The law above can fail: the mean of the micro-batches' own token means is another
    gradient.
    """
    (whole,) = run(ORPO(), Made([[pairs()]]), init_from=str(parent)).gradients

    class Alone(ORPO):
        def counts(self, batch: PreferenceBatch) -> None:
            return None

    (parts,) = run(Alone(), Made([cut(pairs(), 1)]), init_from=str(parent)).gradients
    with pytest.raises(AssertionError):
        assert_same(parts, whole, rtol=1e-2)


@pytest.mark.parametrize("name", EXACT)
def test_a_pair_that_only_fills_up_counts_nowhere(name: str, parent: Path) -> None:
    make, batch, _ = EXACT[name]
    plain = batch()
    halves = 2 if isinstance(plain, PreferenceBatch) else 1
    count = len(plain.index_B) // halves
    source = torch.cat(
        [
            torch.cat([torch.arange(count), torch.zeros(1).long()]) + half * count
            for half in range(halves)
        ]
    )
    filler = torch.arange(halves) * (count + 1) + count
    fields = [None if field is None else field[source].clone() for field in plain]
    padded = type(plain)(*fields)
    padded.labels_BT[filler], padded.doc_BT[filler], padded.index_B[filler] = IGNORE_INDEX, 1, -1
    if isinstance(padded, PolicyBatch):
        padded.group_B[filler], padded.reward_B[filler], padded.advantage_B[filler] = 3, 9.0, 9.0
    if isinstance(padded, StepwiseBatch):
        padded.right_BT[filler] = IGNORE_INDEX
    whole, filled = (run(make(), Made([[b]]), init_from=str(parent)) for b in (plain, padded))
    assert_same(filled.gradients[0], whole.gradients[0])
    for key in ("nats_S", "terms_S", "tokens_S", "means_M2"):
        torch.testing.assert_close(
            filled.stage.sums[key], whole.stage.sums[key], rtol=1e-4, atol=1e-5
        )


def test_kto_measures_its_mismatched_rows_without_a_gradient(parent: Path) -> None:
    found = run(KTO(beta=0.3), Made([[verdicts()]]), init_from=str(parent))
    net = found.stage.net
    batch = verdicts()
    with torch.no_grad():
        net.load_state_dict(found.stage.reference.copy.net.state_dict())
    net.zero_grad()
    scores = LabelScores(net(batch.tokens_BT, batch.doc_BT), net.head_weight, batch.labels_BT)
    ref = scores.logp().sum(dim=1).detach()
    numerator, denominator, _ = KTO(beta=0.3)(scores, batch._replace(ref_logp_B=ref))
    (numerator / denominator).backward()
    assert_same(
        found.gradients[0],
        {name: p.grad for name, p in net.named_parameters() if p.grad is not None},
    )


# ---------------------------------------------------------------------- the reference


def test_dpo_begins_at_ln_2_with_a_frozen_copy(
    parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(DPO(), Made([[pairs(step)] for step in range(3)]), steps=3, init_from=str(parent))
    assert f"reference: frozen copy of {parent}" in capsys.readouterr().out
    assert not any("reference" in key for key in found.stage.state_dict())
    assert found.stage.reference is not None
    assert found.stage.reference.copy is not None
    start = Transformer(NET)
    load_weights(start, str(parent))
    now, copy = found.stage.net.state_dict(), found.stage.reference.copy.net.state_dict()
    assert all(torch.equal(copy[name], value) for name, value in start.state_dict().items())
    assert not torch.equal(now["head.weight"], copy["head.weight"])
    first = run(DPO(), Made([[pairs()]]), init_from=str(parent)).stage.sums
    assert (first["nats_S"].sum() / first["terms_S"].sum()).item() == pytest.approx(
        math.log(2), abs=1e-6
    )
    assert first["means_M2"][:3, 0].abs().max().item() < 1e-4


def logp_of(batch: PreferenceBatch, parent: Path) -> Tensor:
    """Summed log-probabilities by transformers itself."""
    model = pytest.importorskip(
        "transformers", reason="needs the dev extra"
    ).AutoModelForCausalLM.from_pretrained(parent)
    with torch.no_grad():
        logits = model(batch.tokens_BT, attention_mask=(batch.doc_BT == 0).long()).logits
    taken = logits.log_softmax(-1).gather(2, batch.labels_BT.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(batch.labels_BT != IGNORE_INDEX, taken, 0.0).sum(dim=1)


def test_a_column_is_used_and_needs_no_copy(
    parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = pairs()
    column = batch._replace(ref_logp_B=logp_of(batch, parent))
    found = run(DPO(), Made([[column]], columns=["ref_logp"]), init_from=str(parent))
    assert "reference: column ref_logp of the data" in capsys.readouterr().out
    assert found.stage.reference is not None
    assert found.stage.reference.copy is None
    assert_same(found.gradients[0], run(DPO(), Made([[batch]]), init_from=str(parent)).gradients[0])


def test_a_column_of_another_network_is_refused_at_step_0(parent: Path) -> None:
    batch = pairs()
    wrong = batch._replace(ref_logp_B=logp_of(batch, parent) - torch.arange(12))
    with pytest.raises(
        UserError,
        match=(
            r"step 0: the column ref_logp of the data is not of the network .*the loss is .*"
            r" instead of 0\.6931"
        ),
    ):
        run(DPO(), Made([[wrong]], columns=["ref_logp"]), init_from=str(parent))


def test_an_adapter_is_its_own_reference(parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = LoRA(rank=4, alpha=8.0)
    steps = [[pairs(step)] for step in range(3)]
    found = run(DPO(), Made(steps), steps=3, init_from=str(parent), adapter=adapter)
    assert "reference: adapter switched off" in capsys.readouterr().out
    assert found.stage.reference is not None
    assert found.stage.reference.copy is None
    # Beside a frozen copy it computes the same.
    copied = run(
        DPO(),
        Made(steps),
        steps=3,
        init_from=str(parent),
        adapter=adapter,
        reference=str(copy_of(parent)),
    )
    assert "reference: frozen copy" in capsys.readouterr().out
    for step in range(3):
        assert_same(found.gradients[step], copied.gradients[step])


def copy_of(parent: Path) -> Path:
    other = parent.parent / "copy"
    if not other.exists():
        shutil.copytree(parent, other)
    return other


def test_another_reference_may_be_named(parent: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    save_llama(transformers, tmp_path / "other", seed=7)
    found = run(
        DPO(beta=0.1), Made([[pairs()]]), init_from=str(parent), reference=str(tmp_path / "other")
    )
    ratio = logp_of(pairs(), parent) - logp_of(pairs(), tmp_path / "other")
    expected = -F.logsigmoid(0.1 * (ratio[:PAIRS] - ratio[PAIRS:])).mean().item()
    assert (found.stage.sums["nats_S"].sum() / PAIRS).item() == pytest.approx(expected, rel=1e-4)
    save_llama(transformers, tmp_path / "wide", seed=7, vocab_size=V + 8)
    with pytest.raises(UserError, match=r"wide has 72 token ids and the network has 64"):
        run(DPO(), Made([[pairs()]]), init_from=str(parent), reference=str(tmp_path / "wide"))


# ---------------------------------------------------------------------- resume


class Stop(L.Callback):
    """Saves after a step, and dies."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            raise RuntimeError("stopped here")


def test_dpo_resumes_as_if_it_had_never_stopped(parent: Path, tmp_path: Path) -> None:
    """The reference of a resumed run is what training started from, not what the checkpoint
    holds.
    """
    steps = [cut(pairs(step), 2) for step in range(6)]
    options: dict[str, Any] = {"init_from": str(parent), "optimizer": Recorder(lr=0.05)}
    whole = run(DPO(sft_weight=0.1), Made(steps), steps=6, **options)

    with pytest.raises(RuntimeError, match="stopped here"):
        run(
            DPO(sft_weight=0.1),
            Made(steps),
            steps=6,
            callbacks=[Stop(3, tmp_path / "stopped.ckpt")],
            **options,
        )
    again = run(
        DPO(sft_weight=0.1), Made(steps), steps=6, ckpt=tmp_path / "stopped.ckpt", **options
    )
    assert len(again.gradients) == 3
    for a, b in zip(again.gradients, whole.gradients[3:], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = again.stage.state_dict(), whole.stage.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------- reward model, teacher


def test_a_reward_model_trains_a_head_and_leaves_the_output_head(parent: Path) -> None:
    first = run(RewardModel(), Made([[pairs()]]), init_from=str(parent))
    assert first.stage.sums["nats_S"].sum().item() == pytest.approx(
        PAIRS * math.log(2), rel=0.2
    )  # a new head knows nothing
    assert "score.weight" in first.gradients[0]
    assert "head.weight" not in first.gradients[0]
    found = run(
        RewardModel(),
        Made([[pairs()]] * 30),
        steps=30,
        init_from=str(parent),
        optimizer=Recorder(lr=0.05),
    )
    assert found.stage.sums["nats_S"].sum().item() < 0.5 * first.stage.sums["nats_S"].sum().item()
    before, after = first.stage.state_dict(), found.stage.state_dict()
    assert torch.equal(before["net.head.weight"], after["net.head.weight"])
    assert not torch.equal(before["score.weight"], after["score.weight"])


def test_a_student_learns_from_a_teacher_network(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    save_llama(transformers, tmp_path / "teacher", seed=5)
    data = Made([[learned()]] * 30, [learned()])
    found = run(
        Distillation(),
        data,
        steps=30,
        init_from=str(parent),
        teacher=str(tmp_path / "teacher"),
        optimizer=Recorder(lr=0.02),
    )
    assert f"teacher: {tmp_path / 'teacher'}" in capsys.readouterr().out
    before = run(
        Distillation(),
        Made([[learned()]]),
        init_from=str(parent),
        teacher=str(tmp_path / "teacher"),
    )
    first, last = (r.stage.sums["nats_S"].sum().item() for r in (before, found))
    assert last < 0.8 * first
    itself = run(Distillation(), Made([[learned()]]), init_from=str(parent), teacher=str(parent))
    assert itself.stage.sums["nats_S"].sum().item() == pytest.approx(0.0, abs=1e-4)
    assert not any("teacher" in key for key in found.stage.state_dict())


# ---------------------------------------------------------------------- what is reported


def test_every_metric_reaches_the_sinks_and_validation(parent: Path) -> None:
    told: list[dict[str, float]] = []
    metrics = Metrics(
        every=2,
        sources=["a", "b"],
        batch=BatchSizes.one(2 * PAIRS * T),
        flops_per_token=1.0,
        peak=None,
        sinks=[lambda step, v: told.append(v)],
    )
    steps = [cut(pairs(0), 2), cut(pairs(1), 3)]
    found = run(
        DPO(beta=0.2),
        Made(steps, [pairs(5, 3), pairs(6, 1)]),
        steps=2,
        callbacks=[metrics],
        init_from=str(parent),
    )
    names = found.stage.objective.metric_names
    train = next(line for line in told if "train/loss" in line)
    assert {f"train/{name}" for name in names} <= train.keys()
    assert {"train_loss/a", "train_loss/b", "mixture/a", "data/supervised_fraction"} <= train.keys()
    held = next(line for line in told if "val/loss" in line)
    assert {f"val/{name}" for name in names} | {"val_loss/a", "val_loss/b"} <= held.keys()
    assert "val/bits_per_byte" not in held
    # By hand: the network as it is now, against the parent, by transformers.
    net = found.stage.net
    ratios = []
    for batch in (pairs(5, 3), pairs(6, 1)):
        now = (
            LabelScores(net(batch.tokens_BT, batch.doc_BT), net.head_weight, batch.labels_BT)
            .logp()
            .sum(dim=1)
            .detach()
        )
        ratios.append((now - logp_of(batch, parent)).chunk(2))
    margin = 0.2 * torch.cat([chosen - rejected for chosen, rejected in ratios])
    assert held["val/loss"] == pytest.approx(-F.logsigmoid(margin).mean().item(), rel=1e-4)
    assert held["val/rewards/margin"] == pytest.approx(margin.mean().item(), rel=1e-3, abs=1e-5)
    assert held["val/rewards/accuracy"] == pytest.approx((margin > 0).float().mean().item())
    assert train["train/rewards/margin"] != 0.0  # the second of the two steps has moved


def test_the_unfinished_window_is_kept_with_its_metrics(parent: Path, tmp_path: Path) -> None:
    def lines(**options: Any) -> list[dict[str, float]]:
        told: list[dict[str, float]] = []
        metrics = Metrics(
            every=4,
            sources=["a", "b"],
            batch=BatchSizes.one(2 * PAIRS * T),
            flops_per_token=1.0,
            peak=None,
            sinks=[lambda s, v: told.append(v)],
        )
        callbacks = [metrics, *options.pop("more", [])]
        run(
            DPO(),
            Made([[pairs(step)] for step in range(4)]),
            callbacks=callbacks,
            init_from=str(parent),
            **options,
        )
        return told

    whole = lines(steps=4)
    with pytest.raises(RuntimeError, match="stopped here"):
        lines(steps=4, more=[Stop(2, tmp_path / "half.ckpt")])
    (again,) = lines(steps=4, ckpt=tmp_path / "half.ckpt")
    kept = [key for key in whole[0] if key.startswith(("train/", "train_loss/", "mixture/"))]
    assert len(kept) > 10
    assert {key: again[key] for key in kept} == {key: whole[0][key] for key in kept}


def test_grpo_reports_what_a_rollout_was_worth(parent: Path) -> None:
    sums = run(GRPO(), Made([cut(samples(), 4)]), init_from=str(parent)).stage
    found = {
        name: (total / count).item()
        for name, (total, count) in zip(
            sums.objective.metric_names, sums.sums["means_M2"], strict=True
        )
    }
    assert found["reward"] == pytest.approx(3 / 12)
    assert found["groups_with_signal"] == pytest.approx(2 / 3)
    assert found["truncated"] == pytest.approx(3 / 12)
    assert found["clip_ratio"] == 0.0
    assert found["completion_tokens"] == pytest.approx(
        (samples().labels_BT != IGNORE_INDEX).sum().item() / 12
    )


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("objective", "batch", "message"),
    [
        (
            DPO,
            learned,
            (
                r"model\.objective DPO needs pairs and ref_logp, and data Made provides labels:"
                r" pairs is missing"
            ),
        ),
        (
            CrossEntropy,
            pairs,
            r"CrossEntropy needs labels, and data Made provides pairs: labels is missing",
        ),
        (
            KTO,
            pairs,
            r"KTO needs ref_logp and verdicts, and data Made provides pairs: verdicts is missing",
        ),
        (GRPO, learned, r"GRPO needs rollout, and data Made provides labels: rollout is missing"),
        (
            Distillation,
            learned,
            r"Distillation needs labels and teacher, .* teacher is missing; set model\.teacher",
        ),
    ],
)
def test_data_that_an_objective_cannot_learn_from_is_refused(
    objective: Any, batch: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(objective(), Made([[batch()]]))


def test_rejected_answers_are_not_learned_by_cross_entropy() -> None:
    with pytest.raises(UserError, match=r"knows nothing of pairs; pairs go with DPO"):
        run(CrossEntropy(), Made([[pairs()]], columns=["labels"]))


def test_auto_does_not_compile_rows_of_every_length(
    parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(DPO(), Made([[pairs()]]), init_from=str(parent), compile="auto")
    assert "compile: off (" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo with an SFT term", "orpo", "dapo", "reward"])
def test_the_compiled_objective_equals_the_eager_one(name: str, parent: Path) -> None:
    make, batch, _ = EXACT[name]
    eager, compiled = (
        run(make(), Made([[batch()]]), init_from=str(parent), compile=mode)
        for mode in ("off", "on")
    )
    assert_same(compiled.gradients[0], eager.gradients[0])
