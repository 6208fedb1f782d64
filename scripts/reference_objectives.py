"""Reference objectives: losses and gradients of TRL's own code on tiny seeded Llamas.

The tests of ours compare with them.

`PYTHONPATH=. python scripts/reference_objectives.py` needs trl 1.16.0 and writes
tests/objective/trl_1.16.json. Weights and batches come from numpy's legacy generator, whose stream
is fixed for ever. At a deviation of 0.2 the log-ratios are not near zero, where all losses agree.
"""

import dataclasses
import importlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lit_pretrain.batch import (
    IGNORE_INDEX,
    AnyBatch,
    Batch,
    LabelledBatch,
    PolicyBatch,
    PreferenceBatch,
)
from lit_pretrain.checkpoint.hf_import import _LLAMA_NAMES, rename_tensor
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
    RewardModel,
    SimPO,
)
from lit_pretrain.objective.distillation import DivergenceKind

VERSION = "1.16.0"
FILE = Path(__file__).parents[1] / "tests" / "objective" / "trl_1.16.json"
V, D, T = 64, 32, 24
NET = ModelConfig(
    vocab_size=V,
    n_layer=2,
    width=D,
    n_head=4,
    n_kv_head=2,
    ffn_width=64,
    max_seq_len=T,
    norm_eps=1e-6,
)
PAD = 0
MAX_COMPLETION = 11


# ---------------------------------------------------------------------- weights and batches


def weights(seed: int, std: float = 0.2) -> dict[str, Tensor]:
    """Make weights of the tiny network, by our names."""
    random = np.random.RandomState(seed)
    found = {}
    for name, value in sorted(Transformer(NET).state_dict().items()):
        noise = torch.from_numpy(random.standard_normal(tuple(value.shape))).float() * std
        found[name] = 1.0 + noise if "norm" in name else noise
    return found


def moved(base: dict[str, Tensor], seed: int, std: float = 0.02) -> dict[str, Tensor]:
    """Move weights a little, for the reference of a policy."""
    noise = weights(seed, std)
    return {
        name: value + noise[name] - (1.0 if "norm" in name else 0.0) for name, value in base.items()
    }


def ours(state: dict[str, Tensor]) -> Transformer:
    """Build our network with these weights."""
    net = Transformer(NET)
    net.load_state_dict(state)
    return net


POLICY = weights(1)
REFERENCE = moved(POLICY, 2)
TEACHER = weights(3)
SCORE = torch.from_numpy(np.random.RandomState(4).standard_normal((1, D))).float() * 0.2


def sequences(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Make prompts of 3 to 6 and completions of 2 to 11 tokens."""
    random = np.random.RandomState(seed)
    return [
        (
            random.randint(1, V, random.randint(3, 7)).tolist(),
            random.randint(1, V, random.randint(2, MAX_COMPLETION + 1)).tolist(),
        )
        for _ in range(count)
    ]


def rows(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out tokens, labels and documents of padded rows, by the rules of `lit_pretrain.batch`."""
    tokens = torch.full((len(pairs), T), PAD)
    labels = torch.full((len(pairs), T), IGNORE_INDEX)
    doc = torch.ones(len(pairs), T, dtype=torch.int32)
    for i, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        tokens[i, :end] = torch.tensor(prompt + completion)
        labels[i, len(prompt) - 1 : end - 1] = torch.tensor(completion)
        doc[i, :end] = 0
    return tokens, labels, doc


def _facts(count: int, per: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(count).long(), torch.arange(count) // per


PROMPTS = sequences(10, 3)
CHOSEN = PROMPTS
REJECTED = [
    (prompt, other) for (prompt, _), (_, other) in zip(PROMPTS, sequences(11, 3), strict=True)
]
JUDGED = sequences(12, 4)
MISMATCHED = [(prompt, JUDGED[i - 1][1]) for i, (prompt, _) in enumerate(JUDGED)]
DESIRABLE = torch.tensor([True, False, False, True])
SAMPLED = [
    (prompt, other)
    for (prompt, _), (_, other) in zip(
        [p for p in PROMPTS[:2] for _ in range(3)], sequences(13, 6), strict=True
    )
]
ADVANTAGE = torch.tensor([1.2, -0.3, -0.9, 0.7, 0.4, -1.1])
MARGIN = torch.tensor([0.5, 1.5, 0.0])


def pairs_batch(margin: bool = False) -> PreferenceBatch:
    """Make three pairs."""
    source, _ = _facts(6)
    index = torch.arange(3).repeat(2)
    return PreferenceBatch(
        *rows(CHOSEN + REJECTED), source, index, None, MARGIN if margin else None
    )


def verdicts_batch() -> LabelledBatch:
    """Make four judged answers and their mismatched twins."""
    source, _ = _facts(8)
    return LabelledBatch(
        *rows(JUDGED + MISMATCHED), source, torch.arange(4).repeat(2), DESIRABLE.repeat(2)
    )


def policy_batch(*, off_policy: bool) -> PolicyBatch:
    """Make two groups of three sampled answers.

    Off-policy ratios leave the trust region on both sides.
    """
    tokens, labels, doc = rows(SAMPLED)
    source, group = _facts(6, 3)
    old = None
    if off_policy:
        with torch.no_grad():
            noise = (
                torch.from_numpy(np.random.RandomState(14).standard_normal((6, T))).float() * 0.4
            )
            old = torch.where(
                labels != IGNORE_INDEX, logp(ours(POLICY), tokens, doc, labels) + noise, 0.0
            )
    return PolicyBatch(
        tokens, labels, doc, source, group, ADVANTAGE, ADVANTAGE, group, torch.zeros(6).bool(), old
    )


def packed_batch() -> Batch:
    """Make rows to learn, for distillation."""
    source, index = _facts(3)
    return Batch(*rows(CHOSEN), source, index)


def logp(net: Transformer, tokens: Tensor, doc: Tensor, labels: Tensor) -> Tensor:
    """Compute the log-probability of each label, by plain softmax."""
    logits = net.logits(net(tokens, doc))
    taken = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(labels != IGNORE_INDEX, taken, 0.0)


# ---------------------------------------------------------------------- cases


@dataclasses.dataclass(frozen=True)
class Case:
    """One objective of ours, its batch, and what TRL calls the same."""

    objective: Objective
    batch: AnyBatch
    trl: str
    options: dict[str, Any]


def cases() -> dict[str, Case]:
    """List all comparisons by name."""
    pairs, verdicts = pairs_batch(), verdicts_batch()
    found = {
        "dpo": Case(DPO(beta=0.3), pairs, "dpo", {"beta": 0.3}),
        "dpo_hinge": Case(
            DPO(beta=0.3, variant="hinge"), pairs, "dpo", {"beta": 0.3, "loss_types": ["hinge"]}
        ),
        "dpo_ipo": Case(
            DPO(beta=0.3, variant="ipo"), pairs, "dpo", {"beta": 0.3, "loss_types": ["ipo"]}
        ),
        "dpo_robust": Case(
            DPO(beta=0.3, variant="robust", label_smoothing=0.1),
            pairs,
            "dpo",
            {"beta": 0.3, "loss_types": ["robust"], "label_smoothing": 0.1},
        ),
        "dpo_sigmoid_norm": Case(
            DPO(beta=2.0, variant="sigmoid_norm"),
            pairs,
            "dpo",
            {"beta": 2.0, "loss_types": ["sigmoid_norm"]},
        ),
        "dpo_sft": Case(
            DPO(beta=0.3, sft_weight=0.5),
            pairs,
            "dpo",
            {"beta": 0.3, "loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        ),
        "cpo": Case(CPO(beta=0.1), pairs, "cpo", {"beta": 0.1}),
        "cpo_hinge": Case(
            CPO(beta=0.1, variant="hinge"), pairs, "cpo", {"beta": 0.1, "loss_type": "hinge"}
        ),
        "cpo_smoothed": Case(
            CPO(beta=0.1, label_smoothing=0.2, nll_weight=0.3),
            pairs,
            "cpo",
            {"beta": 0.1, "label_smoothing": 0.2, "cpo_alpha": 0.3},
        ),
        "simpo": Case(
            SimPO(beta=2.0, gamma=1.0),
            pairs,
            "cpo",
            {"beta": 2.0, "loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        ),
        "simpo_smoothed": Case(
            SimPO(beta=2.5, gamma=0.7, label_smoothing=0.1),
            pairs,
            "cpo",
            {
                "beta": 2.5,
                "loss_type": "simpo",
                "simpo_gamma": 0.7,
                "cpo_alpha": 0.0,
                "label_smoothing": 0.1,
            },
        ),
        "orpo": Case(ORPO(beta=0.1), pairs, "orpo", {"beta": 0.1}),
        "kto": Case(KTO(beta=0.3), verdicts, "kto", {"beta": 0.3}),
        "kto_weighted": Case(
            KTO(beta=0.1, desirable_weight=1.5, undesirable_weight=0.5),
            verdicts,
            "kto",
            {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        ),
        "reward": Case(RewardModel(), pairs, "reward", {}),
        "reward_margin": Case(RewardModel(), pairs_batch(margin=True), "reward", {}),
        "reward_centred": Case(RewardModel(centering=0.1), pairs, "reward", {"center": 0.1}),
        "sft": Case(CrossEntropy(), packed_batch(), "sft", {}),
    }
    variants: tuple[Literal["dapo", "grpo", "bnpo", "dr_grpo"], ...] = (
        "dapo",
        "grpo",
        "bnpo",
        "dr_grpo",
    )
    for variant in variants:
        for off_policy in (False, True):
            for beta, corrected in ((0.0, True), (0.2, True), (0.2, False)):
                name = f"{variant}_{'off' if off_policy else 'on'}_kl{beta}" + (
                    "" if corrected else "_uncorrected"
                )
                objective = GRPO(
                    variant=variant,
                    beta=beta,
                    kl_bias_correction=corrected,
                    max_completion_tokens=MAX_COMPLETION,
                )
                options = {"loss_type": variant, "beta": beta, "corrected": corrected}
                found[name] = Case(objective, policy_batch(off_policy=off_policy), "grpo", options)
    kinds: tuple[tuple[DivergenceKind, float], ...] = (
        ("forward_kl", 0.0),
        ("reverse_kl", 1.0),
        ("jsd", 0.3),
    )
    for (
        kind,
        beta,
    ) in kinds:  # TRL names the ends of the Jensen–Shannon divergence by the weight of the teacher
        for temperature in (1.0, 2.0):
            distillation = Distillation(
                kind=kind, jsd_beta=beta if kind == "jsd" else 0.5, temperature=temperature
            )
            options = {"beta": beta, "temperature": temperature}
            found[f"{kind}_{temperature:g}"] = Case(
                distillation, packed_batch(), "distill", options
            )
    return found


# ---------------------------------------------------------------------- ours


def run_ours(case: Case) -> tuple[float, dict[str, Tensor]]:
    """Compute loss and gradients of our objective over our network."""
    net, head, batch = ours(POLICY), nn.Linear(D, 1, bias=False), case.batch
    head.weight.data = SCORE.clone()
    teacher = None
    if "ref_logp" in case.objective.needs:
        with torch.no_grad():
            ref = logp(ours(REFERENCE), batch.tokens_BT, batch.doc_BT, batch.labels_BT)
        if isinstance(batch, PolicyBatch):
            batch = batch._replace(ref_logp_BT=ref)
        else:
            assert isinstance(batch, (PreferenceBatch, LabelledBatch))
            batch = batch._replace(ref_logp_B=ref.sum(dim=1))
    if "teacher" in case.objective.needs:
        other = ours(TEACHER)
        with torch.no_grad():
            teacher = LabelScores(
                other(batch.tokens_BT, batch.doc_BT), other.head_weight.detach(), batch.labels_BT
            )
    hidden = net(batch.tokens_BT, batch.doc_BT)
    scores = LabelScores(hidden, net.head_weight, batch.labels_BT, score_head=head, teacher=teacher)
    numerator, denominator, _ = case.objective(scores, batch)
    loss = numerator / denominator
    loss.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    if head.weight.grad is not None:
        found["score.weight"] = head.weight.grad
    return loss.item(), found


# ---------------------------------------------------------------------- TRL's


def _llama(state: dict[str, Tensor], *, scores: bool = False) -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=T, rms_norm_eps=1e-6, tie_word_embeddings=False, pad_token_id=PAD,
        num_labels=1,
    )  # fmt: skip
    model = (
        transformers.LlamaForSequenceClassification if scores else transformers.LlamaForCausalLM
    )(config)
    whole = state | {"score.weight": SCORE}
    model.load_state_dict(
        {name: whole[rename_tensor(name, _LLAMA_NAMES)] for name in model.state_dict()}
    )
    return model.train()


def _fused(state: dict[str, Tensor]) -> Any:
    model = _llama(state)
    fields = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
    importlib.import_module("trl.trainer.utils").add_fused_lm_head(model, outputs=fields)
    return model


def _padded(batch: AnyBatch, part: slice = slice(None)) -> dict[str, Tensor]:
    doc, labels = batch.doc_BT[part], batch.labels_BT[part]
    completion = torch.nn.functional.pad((labels != IGNORE_INDEX)[:, :-1], (1, 0))
    return {
        "input_ids": batch.tokens_BT[part],
        "attention_mask": (doc == 0).long(),
        "completion_mask": completion.long(),
    }


def _trainer(model: Any, **attributes: Any) -> Any:
    """Make an object with what TRL's loss functions read of a trainer."""
    accelerate = importlib.import_module("accelerate")
    common = {
        "accelerator": accelerate.Accelerator(cpu=True), "aux_loss_enabled": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0, "_tp_size": 1, "precompute_ref_logps": False,
    }  # fmt: skip
    return SimpleNamespace(model=model, **{**common, **attributes})


def _dpo(case: Case) -> tuple[Any, Tensor]:
    trainer = importlib.import_module("trl").DPOTrainer
    policy = _fused(POLICY)
    options = {"loss_types": ["sigmoid"], "label_smoothing": 0.0, **case.options}
    options.setdefault("loss_weights", [1.0] * len(options["loss_types"]))
    fake = _trainer(
        policy, ref_model=_fused(REFERENCE), ld_alpha=None, f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None), **options,
    )  # fmt: skip
    return policy, trainer._compute_loss(fake, policy, _padded(case.batch), False)


def _reference_free(case: Case) -> tuple[Any, Tensor]:
    module = importlib.import_module(f"trl.experimental.{case.trl}")
    trainer = module.CPOTrainer if case.trl == "cpo" else module.ORPOTrainer
    policy = _llama(POLICY)
    options = {
        "loss_type": "sigmoid",
        "label_smoothing": 0.0,
        "cpo_alpha": 1.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
        **case.options,
    }
    fake = _trainer(
        policy,
        is_encoder_decoder=False,
        padding_value=PAD,
        pad_token_id=PAD,
        label_pad_token_id=IGNORE_INDEX,
        **options,
    )
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer, name):
            setattr(fake, name, getattr(trainer, name).__get__(fake))
    fake.concatenated_inputs, fake.get_batch_logps = (
        trainer.concatenated_inputs,
        trainer.get_batch_logps,
    )
    batch: dict[str, Tensor] = {}
    for name, part in (("chosen", slice(0, 3)), ("rejected", slice(3, 6))):
        row = _padded(case.batch, part)
        batch |= {
            f"{name}_input_ids": row["input_ids"],
            f"{name}_attention_mask": row["attention_mask"],
        }
        batch[f"{name}_labels"] = row["input_ids"].masked_fill(
            row["completion_mask"] == 0, IGNORE_INDEX
        )
    return policy, trainer.get_batch_loss_metrics(fake, policy, batch)[0]


def _kto(case: Case) -> tuple[Any, Tensor]:
    trainer = importlib.import_module("trl").KTOTrainer
    policy = _fused(POLICY)
    fake = _trainer(
        policy, ref_model=_fused(REFERENCE), calculate_KL=True, loss_type="kto",
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        **{"desirable_weight": 1.0, "undesirable_weight": 1.0, **case.options},
    )  # fmt: skip
    fake._compute_kl_logps = trainer._compute_kl_logps.__get__(fake)
    twins = {f"KL_{name}": value for name, value in _padded(case.batch, slice(4, 8)).items()}
    return policy, trainer._compute_loss(
        fake, policy, {**_padded(case.batch, slice(0, 4)), **twins, "label": DESIRABLE}, False
    )


def _reward(case: Case) -> tuple[Any, Tensor]:
    trainer = importlib.import_module("trl").RewardTrainer
    policy, row = _llama(POLICY, scores=True), _padded(case.batch)
    # transformers finds the last token by the id of the padding, which no sequence holds.
    inputs: dict[str, Any] = {
        "input_ids": row["input_ids"],
        "attention_mask": row["attention_mask"],
    }
    assert isinstance(case.batch, PreferenceBatch)
    fake = _trainer(
        policy, args=SimpleNamespace(center_rewards_coefficient=case.options.get("center"))
    )
    if case.batch.margin_P is None:
        return policy, trainer.compute_loss(fake, policy, inputs)

    def model(
        margin: Tensor, **kwargs: Any
    ) -> Any:  # transformers takes no margin, and TRL hands it over with the rest
        return policy(**kwargs)

    return policy, trainer.compute_loss(fake, model, inputs | {"margin": case.batch.margin_P})


def _grpo(case: Case) -> tuple[Any, Tensor]:
    trainer = importlib.import_module("trl").GRPOTrainer
    policy, batch = _fused(POLICY), case.batch
    assert isinstance(batch, PolicyBatch)
    prompt_length, length = max(len(p) for p, _ in SAMPLED), max(len(c) for _, c in SAMPLED)
    inputs: dict[str, Any] = {"advantages": batch.advantage_B}
    for name, side, width in (("prompt", 0, prompt_length), ("completion", 1, length)):
        ids, mask = torch.full((6, width), PAD), torch.zeros(6, width).long()
        for i, pair in enumerate(SAMPLED):
            part = slice(width - len(pair[0]), None) if side == 0 else slice(0, len(pair[1]))
            ids[i, part], mask[i, part] = torch.tensor(pair[side]), 1
        inputs |= {f"{name}_ids": ids, f"{name}_mask": mask}

    def completions(values_BT: Tensor) -> Tensor:
        """Cut our columns as TRL has them: a completion begins at the last token of its prompt."""
        found = torch.zeros(6, length)
        for i, (prompt, completion) in enumerate(SAMPLED):
            found[i, : len(completion)] = values_BT[
                i, len(prompt) - 1 : len(prompt) - 1 + len(completion)
            ]
        return found

    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    if batch.old_logp_BT is not None:
        inputs["old_per_token_logps"] = completions(batch.old_logp_BT)
    if case.options["beta"]:
        with torch.no_grad():
            inputs["ref_per_token_logps"] = completions(
                logp(ours(REFERENCE), batch.tokens_BT, batch.doc_BT, batch.labels_BT)
            )
    args = SimpleNamespace(
        use_bias_correction_kl=case.options["corrected"], delta=None, steps_per_generation=1
    )
    fake = _trainer(
        policy, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=case.options["beta"], args=args,
        loss_type=case.options["loss_type"], epsilon_low=0.2, epsilon_high=0.2, use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_COMPLETION, _entropy_bonus_enabled=False,
    )  # fmt: skip
    fake._get_per_token_logps_and_entropies = trainer._get_per_token_logps_and_entropies.__get__(
        fake
    )
    return policy, trainer._compute_loss(fake, policy, inputs)


def _plain_inputs(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    row = _padded(case.batch)
    return {
        "input_ids": row["input_ids"],
        "attention_mask": row["attention_mask"],
    }, case.batch.labels_BT


def _sft(case: Case) -> tuple[Any, Tensor]:
    policy, (inputs, labels) = _llama(POLICY), _plain_inputs(case)
    return (
        policy,
        policy(
            **inputs, labels=torch.nn.functional.pad(labels[:, :-1], (1, 0), value=IGNORE_INDEX)
        ).loss,
    )


def _distill(case: Case) -> tuple[Any, Tensor]:
    loss = importlib.import_module("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss
    policy, (inputs, labels) = _llama(POLICY), _plain_inputs(case)
    with torch.no_grad():
        teacher = _llama(TEACHER)(**inputs).logits
    count = (labels != IGNORE_INDEX).sum()
    return policy, loss(
        policy(**inputs).logits, teacher, labels=labels, num_items_in_batch=count, **case.options
    )


TRAINERS: dict[str, Callable[[Case], tuple[Any, Tensor]]] = {
    "dpo": _dpo, "cpo": _reference_free, "orpo": _reference_free, "kto": _kto, "reward": _reward,
    "grpo": _grpo, "sft": _sft,
    "distill": _distill,
}  # fmt: skip


def run_trl(case: Case) -> tuple[float, dict[str, Tensor]]:
    """Compute loss and gradients of TRL's loss over transformers' Llama, by our names."""
    model, loss = TRAINERS[case.trl](case)
    loss.backward()
    return loss.item(), {
        rename_tensor(name, _LLAMA_NAMES): p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }


# ---------------------------------------------------------------------- what is kept


def sketch(gradients: dict[str, Tensor]) -> dict[str, float | list[float]]:
    """Describe gradients by their norm and their products with eight fixed random directions."""
    flat = np.concatenate([gradients[name].double().numpy().ravel() for name in sorted(gradients)])
    random = np.random.RandomState(5)
    return {
        "norm": float(np.linalg.norm(flat)),
        "products": [float(random.standard_normal(flat.size) @ flat) for _ in range(8)],
    }


def main() -> int | None:
    """Write the file."""
    found = importlib.import_module("trl").__version__
    if found != VERSION:
        print(f"trl {VERSION} is wanted, found {found}")
        return 1
    versions = {
        "trl": found,
        "transformers": importlib.import_module("transformers").__version__,
        "torch": torch.__version__,
    }
    results: dict[str, Any] = {}
    for name, case in cases().items():
        loss, gradients = run_trl(case)
        results[name] = {"loss": loss, "gradient": sketch(gradients)}
        mine, own = run_ours(case)
        assert own.keys() == gradients.keys(), own.keys() ^ gradients.keys()
        scale = sketch(gradients)["norm"]
        error = (
            np.sqrt(sum(float((own[key] - gradients[key]).double().square().sum()) for key in own))
            / scale
        )
        print(
            f"{name:28s} trl {loss:+.7f}  ours {mine:+.7f}  difference {abs(mine - loss):.1e} "
            f" gradient {error:.1e}"
        )
    FILE.write_text(
        json.dumps({"versions": versions, "cases": results}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
