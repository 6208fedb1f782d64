"""Checks: whether data, objective and settings fit together, and whether the first step is sound.

The first are made before anything is computed; the others once in a run, at its first step. A
script that makes its own Trainer gets the checks that the verbs make of their options.

Axes: B rows, T tokens.
"""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_pretrain.adapter import LoRA
from lit_pretrain.batch import IGNORE_INDEX, ROW_MULTIPLE, DataContract, PolicyBatch
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import (
    Checkpointing,
    Float8Recipe,
    ModelConfig,
    faster_in_float8,
    kept_within,
    products_of,
)
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import Objective
from lit_pretrain.parallel.mesh import check_sizes
from lit_pretrain.reward import Rewards
from lit_pretrain.rollout import Rollout
from lit_pretrain.stage.reference import Place, evaluating, label_logp
from lit_pretrain.step_size import MeshSizes

DATA_KINDS = frozenset({"pairs", "verdicts", "steps", "rollout", "prompts"})
"""Data whose rows are not simply to be learned; an objective that knows nothing of their kind
would learn the wrong ones too.
"""
COMPUTED = frozenset({"ref_logp", "score"})
"""What the stage adds to every batch."""


def check_trainer(trainer: L.Trainer) -> Any:
    """Refuse settings of a Trainer under which a stage would not do what they say.

    Returns:
        The data module.

    Raises:
        UserError: Names the setting and what to set instead.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise UserError(
            "a stage reads more of its data than batches: give it as a module,"
            " trainer.fit(stage, datamodule=data)"
        )
    if trainer.max_steps < 1:
        raise UserError(
            "the schedule needs the length of the run: give Trainer(max_steps=...), in optimizer"
            " steps"
        )
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}: a batch of Lightning is a"
            " whole optimizer step already; set global_batch_tokens and micro_batch_size of the"
            " data, and leave it out"
        )
    if trainer.gradient_clip_val is not None:
        raise UserError(
            f"gradient_clip_val={trainer.gradient_clip_val} has no effect on a stage: set"
            " Stage(clip_norm=...)"
        )
    if str(trainer.precision).startswith("16"):
        raise UserError(
            f"precision={trainer.precision!r}: fp16 is not supported; use 'bf16-mixed' or '32-true'"
        )
    connector = trainer._accelerator_connector  # the one place that knows
    if trainer.world_size > 1 and connector.use_distributed_sampler:
        raise UserError(
            "each rank reads its share of every step by itself: give"
            " Trainer(use_distributed_sampler=False)"
        )
    return data


def check_data(
    contract: DataContract,
    data: object,
    *,
    net: ModelConfig,
    objective: Objective,
    rollout: Rollout | None,
    reference: str | None,
    reference_cache: str | None,
    teacher: str | None,
    sharded: bool,
    evaluates: bool,
) -> None:
    """Check the data of a run against its network, its objective and the settings of its stage.

    Args:
        contract: What the data promises.
        data: The data module, for its name.
        net: Shape of the network.
        objective: What is minimised.
        rollout: How the stage answers prompts, if it does.
        reference: The stage's option of that name.
        reference_cache: The stage's option of that name.
        teacher: The stage's option of that name.
        sharded: Whether the network is spread over ranks.
        evaluates: Whether nothing is trained.

    Raises:
        UserError: They do not fit; says which to change.
    """
    if contract.vocab_size > net.vocab_size:
        raise UserError(
            f"the network has model.net.vocab_size={net.vocab_size} ids but the data's tokenizer"
            f" has {contract.vocab_size}; leave model.net.vocab_size out to take it from the data"
        )
    if contract.seq_len > net.max_seq_len:
        raise UserError(
            f"data.seq_len={contract.seq_len} is longer than the network's positions, "
            f"model.net.max_seq_len={net.max_seq_len}; lower the one or raise the other"
        )
    check_needs(
        objective, data, contract.provides, teacher=teacher is not None, rollout=rollout is not None
    )
    if rollout is not None:
        check_rollout(rollout, contract, objective, sharded=sharded, evaluates=evaluates)
    if not evaluates:
        options = {"reference": reference, "reference_cache": reference_cache, "teacher": teacher}
        check_unused_data(objective, [name for name, value in options.items() if value is not None])
    if reference_cache is not None:
        check_reference_cache(contract, data, sharded=sharded)


def check_mesh(
    sizes: MeshSizes, objective: Objective, *, net: ModelConfig, seq_len: int, adapter: LoRA | None
) -> None:
    """Refuse what cannot be computed on parts of matrices or of rows.

    Args:
        sizes: Of the mesh.
        objective: What is minimised.
        net: Shape of the network.
        seq_len: Tokens of a row.
        adapter: What the network carries, if anything.

    Raises:
        UserError: Names the setting and what to do instead.
    """
    check_sizes(sizes, net, seq_len)
    if sizes.cp > 1 and not objective.splits_rows:
        raise UserError(
            f"parallel.cp={sizes.cp}: model.objective {type(objective).__name__} is not a sum over"
            " tokens that knows how to be split over devices; set parallel.cp: 1 and use"
            " parallel.dp_shard"
        )
    if sizes.tp == 1:
        return
    instead = "set parallel.tp: 1 and use parallel.dp_shard"
    if adapter is not None and adapter.whole is not None:
        raise UserError(
            f"parallel.tp={sizes.tp}: model.adapter.{adapter.whole} needs whole matrices: leave it"
            f" out, or {instead}"
        )
    if objective.needs & {"pairs", "verdicts", "rollout"} and ROW_MULTIPLE % sizes.tp:
        raise UserError(
            f"parallel.tp={sizes.tp} must divide {ROW_MULTIPLE}, to a multiple of which rows of"
            f" model.objective {type(objective).__name__} are padded; {instead}"
        )
    if not objective.splits_vocabulary:
        raise UserError(
            f"parallel.tp={sizes.tp}: model.objective {type(objective).__name__} has not been tried"
            f" with a vocabulary that is split over devices; {instead}"
        )


def check_budget(checkpointing: Checkpointing, net: ModelConfig, *, adapter: bool) -> None:
    """Refuse a budget of activations for blocks whose products are not known.

    Raises:
        UserError: It is no share, the blocks are the user's, or an adapter stands beside them.
    """
    if isinstance(checkpointing, bool | str):
        return
    kept_within(net, checkpointing)
    unknown = "model.adapter" if adapter else None if net.block is None else "model.net.block"
    if unknown is not None:
        raise UserError(
            f"model.activation_checkpointing={checkpointing:g} chooses among the matrix products of"
            f" plain blocks, and {unknown} brings others: use attention, products or true"
        )


def check_offload(checkpointing: Checkpointing, device: torch.device) -> None:
    """Refuse to move activations to the host's memory where there is no other.

    Raises:
        UserError: Says what to set instead.
    """
    if checkpointing == "offload" and device.type != "cuda":
        raise UserError(
            "model.activation_checkpointing=offload moves the inputs of blocks from a GPU to the"
            f" memory of its host, and this run computes on {device.type}: use true, which keeps"
            " them where they are"
        )


def check_float8(
    recipe: Float8Recipe,
    net: ModelConfig,
    objective: Objective,
    *,
    adapter: bool,
    tp: int,
    device: torch.device,
    why_not: str | None,
    uncompiled: str | None,
) -> None:
    """Refuse products in fp8 where they cannot be computed, or save nothing.

    Args:
        recipe: How operands are scaled.
        net: Shape of the network.
        objective: What is minimised.
        adapter: Whether the network carries an adapter.
        tp: Devices that share every matrix.
        device: Where the network computes.
        why_not: Why the device has no products in fp8, if so.
        uncompiled: Why the network is not compiled, if so.

    Raises:
        UserError: Names what does not go with fp8 and what to do instead.
    """
    where = f"model.float8={recipe}"
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"{where} needs torchao: pip install 'lit_pretrain[fp8]'")
    if why_not is not None:
        raise UserError(f"{where}: {why_not}; leave it out")
    if adapter:
        raise UserError(
            f"{where} is for networks that train their own matrices, and beside model.adapter these"
            " are frozen: leave one of the two out"
        )
    if tp > 1:
        raise UserError(
            f"{where} scales whole matrices, and parallel.tp={tp} splits them: set parallel.tp: 1"
            " and use parallel.dp_shard, or leave model.float8 out"
        )
    compared = objective.needs & {"ref_logp", "rollout"}
    if compared:
        raise UserError(
            f"{where}: model.objective {type(objective).__name__} compares log-probabilities with"
            " those of a network that computes without fp8, whose rounding would be most of the"
            " difference: leave model.float8 out"
        )
    if device.type == "cpu":
        return
    if uncompiled is not None:
        raise UserError(
            f"{where}: without the compiler ({uncompiled}) rounding to fp8 takes longer than its"
            " products save: set model.compile=on, or leave model.float8 out"
        )
    sides = products_of(net, value_gate=False)
    if net.block is None and not any(faster_in_float8(recipe, *s) for s in sides.values()):
        largest = max(sides.values(), key=math.prod)
        raise UserError(
            f"{where}: even the largest matrices of the blocks, {largest[0]} × {largest[1]}, are"
            " too small for fp8 to save time (torchao measured on H100 that tensorwise pays above"
            " 1,024 outputs or 4,096 inputs, rowwise above about twice that): leave it out"
        )


def check_needs(
    objective: Objective,
    data: object,
    provides: frozenset[str],
    *,
    teacher: bool,
    rollout: bool = False,
) -> None:
    """Refuse data that an objective cannot learn from.

    Args:
        objective: What is minimised.
        data: The data module, for its name.
        provides: `DataContract.provides`.
        teacher: Whether the stage has a teacher network.
        rollout: Whether the stage answers prompts by itself.

    Raises:
        UserError: Names both sides, what is missing or unused, and what would help.
    """
    computed = (
        COMPUTED
        | ({"teacher"} if teacher else set())
        | ({"rollout"} if rollout and "prompts" in provides else set())
    )
    if rollout and "rollout" not in objective.needs:
        raise UserError(
            "model.rollout answers prompts for objectives that learn from answers, such as GRPO;"
            f" model.objective {type(objective).__name__} needs {_listed(objective.needs)}: remove"
            " model.rollout, or change the objective"
        )
    if rollout and "rollout" in provides:
        raise UserError(
            f"data {type(data).__name__} holds sampled answers already, so that model.rollout has"
            " nothing to answer: remove one of them"
        )
    missing = objective.needs - provides - computed
    answered = {"prompts"} if "rollout" in objective.needs else set()
    unused = (provides & DATA_KINDS) - objective.needs - answered
    if not missing and not unused:
        return
    sides = (
        f"model.objective {type(objective).__name__} needs {_listed(objective.needs)}, and data"
        f" {type(data).__name__} provides {_listed(provides)}"
    )
    if missing:
        raise UserError(f"{sides}: {_listed(missing)} is missing; {_advice(missing)}")
    raise UserError(
        f"{sides}: it would learn all rows alike, and knows nothing of {_listed(unused)};"
        f" {_advice(unused)}"
    )


def check_rollout(
    rollout: Rollout,
    contract: DataContract,
    objective: Objective,
    *,
    sharded: bool,
    evaluates: bool,
) -> None:
    """Refuse a rollout that is impossible or could teach nothing.

    Args:
        rollout: How prompts are answered.
        contract: What the data promises.
        objective: What is minimised.
        sharded: Whether the network is spread over ranks.
        evaluates: Whether nothing is trained.

    Raises:
        UserError: A reward cannot be computed, the network is sharded, answers do not fit into a
            row, or settings contradict each other.
    """
    Rewards(rollout.rewards)
    asking = contract.asking
    if asking is None:
        return  # check_needs has refused it
    if sharded:
        raise UserError(
            "model.rollout: a sharded network (trainer.strategy fsdp) would be gathered again for"
            " every token; use trainer.strategy ddp, or one device"
        )
    longest = asking.max_prompt_tokens + rollout.max_completion_tokens
    if longest > contract.seq_len:
        raise UserError(
            f"data.max_prompt_tokens={asking.max_prompt_tokens} and"
            f" model.rollout.max_completion_tokens={rollout.max_completion_tokens} are together"
            f" more than data.seq_len={contract.seq_len}, which holds a prompt with its answer:"
            f" raise it to {longest}, or lower them"
        )
    if rollout.temperature == 0 and not evaluates:
        raise UserError(
            "model.rollout.temperature=0 gives every answer of a group alike, from which nothing is"
            " learned; 1 is usual"
        )
    if objective.max_completion_tokens not in (None, rollout.max_completion_tokens):
        raise UserError(
            f"{type(objective).__name__}: max_completion_tokens={objective.max_completion_tokens}"
            " is not model.rollout.max_completion_tokens="
            f"{rollout.max_completion_tokens}: make them equal"
        )


def check_unused_data(objective: Objective, given: Sequence[str]) -> None:
    """Refuse settings of the stage that the objective never looks at.

    Args:
        objective: What is minimised.
        given: Which of reference, reference_cache and teacher are set.

    Raises:
        UserError: One has no effect.
    """
    for name in given:
        need, who = (
            ("teacher", "Distillation")
            if name == "teacher"
            else ("ref_logp", "DPO, KTO, or GRPO with beta above 0")
        )
        if need not in objective.needs:
            raise UserError(
                f"model.{name} is set, and model.objective {type(objective).__name__} never looks"
                f" at it: remove it, or use {who}"
            )


def check_reference_cache(contract: DataContract, data: object, *, sharded: bool) -> None:
    """Refuse to precompute what cannot be.

    Raises:
        UserError: The data has no pairs, or the network is sharded.
    """
    if "pairs" not in contract.provides:
        raise UserError(
            "model.reference_cache keeps a column for pairs (PreferenceData); data"
            f" {type(data).__name__} provides {_listed(contract.provides)}, of which answers change"
            " from step to step: remove it"
        )
    if sharded:
        raise UserError(
            "model.reference_cache cannot be computed by a sharded network (trainer.strategy fsdp):"
            " use ddp, or remove it"
        )


_ADVICE = {
    "pairs": "pairs go with DPO, SimPO, ORPO, CPO and RewardModel",
    "verdicts": "verdicts go with KTO",
    "steps": "steps with a label each (StepwiseData) go with ProcessRewardModel",
    "rollout": (
        "sampled answers come from data of prompts (PromptData) and model.rollout, which says how"
        " they are answered and rewarded"
    ),
    "prompts": "prompts go with GRPO",
    "teacher": (
        "set model.teacher to a run or a Hugging Face folder of the same vocabulary, or give data"
        " with teacher columns"
    ),
    "labels": "rows to learn go with CrossEntropy and Distillation",
}


def _advice(names: frozenset[str]) -> str:
    return "; ".join(_ADVICE[name] for name in sorted(names) if name in _ADVICE)


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"


# The first step of a run, whose outcome is known in advance.


def check_policy(
    net: Transformer, batch: PolicyBatch, *, temperature: float, same_policy: bool, step: int
) -> None:
    """Check that the policy that sampled is the network that learns.

    Otherwise every ratio to it would be wrong from the beginning.

    Args:
        net: What learns.
        batch: Answers, with the log-probabilities that the rollout engine found for them.
        temperature: At which it sampled.
        same_policy: Whether the engine computes with the network itself.
        step: For the message.

    Raises:
        RuntimeError: The log-probabilities differ by more than arithmetic explains.
    """
    assert batch.old_logp_BT is not None
    with evaluating(net):
        logp_BT = label_logp(net, batch.tokens_BT, batch.doc_BT, batch.labels_BT, temperature)
    gap = (logp_BT - batch.old_logp_BT).abs().sum() / (batch.labels_BT != IGNORE_INDEX).sum().clamp(
        min=1
    )
    if gap.item() > (0.1 if _half(net) or not same_policy else 1e-3):
        raise RuntimeError(
            f"step {step}: the log-probabilities of the rollout engine and of the network differ by"
            f" {gap.item():.4g} nats a token: they are not the same policy"
        )


def check_start(
    objective: Objective,
    means: dict[str, float],
    *,
    net: Transformer,
    place: Place,
    parent: str | None,
) -> None:
    """Check the loss of step 0, which is known because the policy is its own reference.

    Args:
        objective: What knows it.
        means: `StepSums.means` of the step, over all ranks.
        net: What learns; its precision decides how exact a start can be.
        place: Where the reference comes from.
        parent: What training starts from.

    Raises:
        UserError: A column of the data is of another network.
        RuntimeError: A reference that we made is.
    """
    # Kernels differ with the shape of a batch and with compilation: by about as much as the last
    # digits of the precision.
    if math.isnan(means["loss"]):
        return
    wrong = objective.start(
        means, tolerance=(5e-2 if _half(net) else 1e-3) * max(1.0, means["tokens_per_term"])
    )
    if wrong is not None and place == "column":
        raise UserError(
            "step 0: the column ref_logp of the data is not of the network that training starts"
            f" from ({parent}): {wrong}; compute it again with that network, tokenizer and"
            " template, or leave it out"
        )
    if wrong is not None:
        raise RuntimeError(f"step 0: the reference is not what training starts from: {wrong}")


def _half(net: Transformer) -> bool:
    weight: Tensor = net.token_embedding.weight
    return torch.is_autocast_enabled(weight.device.type) or weight.dtype != torch.float32
