"""Stage: one LightningModule for every kind of training: (data, objective, adapter, parent).

One Lightning batch is one optimizer step: a list of micro-batches. The stage runs them one after
the other, adds up the gradients of *sums*, and divides once by the number of terms over all
micro-batches and ranks, before clipping.

Axes: B rows, T tokens, D width, V vocabulary, S sources, M metrics.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_pretrain.adapter import LoRA
from lit_pretrain.adapter.new_tokens import NewTokens
from lit_pretrain.batch import AnyBatch, DataContract, PromptBatch
from lit_pretrain.checkpoint.layout import (
    ANSWERS_KEY,
    AVERAGE_KEY,
    GUARD_KEY,
    RECORD_KEY,
    SCORE_KEY,
    STANDALONE_KEY,
    CheckpointEntries,
    standalone,
)
from lit_pretrain.checkpoint.weights import (
    AdapterRecord,
    check_adapter,
    keep_adapter,
    weights_identity,
)
from lit_pretrain.errors import UserError, warn
from lit_pretrain.model.config import Checkpointing, Float8Recipe, ModelConfig
from lit_pretrain.model.parameter_scales import parameter_scales, transferred_shape
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import (
    CrossEntropy,
    Objective,
    StepSums,
)
from lit_pretrain.optim import MuonAdamW, OptimizerRecipe, Schedule, recipe_of
from lit_pretrain.optim.clip import scale_and_clip_
from lit_pretrain.optim.optimizer import check_moments, group_settings
from lit_pretrain.optim.transferred_groups import transfer_groups_
from lit_pretrain.optim.weight_average import WeightAverage
from lit_pretrain.parallel.strategy import (
    mesh_sizes,
    reshard_,
    row_parts,
    shard_,
    sum_over_tokens,
    token_group,
    token_ranks,
)
from lit_pretrain.roles import parameter_roles
from lit_pretrain.rollout import Answers, Rollout
from lit_pretrain.skips import Skips
from lit_pretrain.stage.checks import (
    check_budget,
    check_data,
    check_float8,
    check_mesh,
    check_offload,
    check_policy,
    check_start,
    check_trainer,
)
from lit_pretrain.stage.guard import Guard, GuardSettings
from lit_pretrain.stage.origin import (
    Origin,
    make_score_head,
    score_scale,
    why_no_float8,
    why_not_compiled,
)
from lit_pretrain.stage.reference import (
    Frozen,
    Reference,
    column_key,
    describe_place,
    fill_column,
    resolve_reference,
)
from lit_pretrain.stage.step_loss import HeldOut, StepLoss
from lit_pretrain.step_size import MeshSizes
from lit_pretrain.transfer import Transfer


class Stage(L.LightningModule):
    """Network, objective and optimisation of one stage of training.

    Args:
        net: Shape of the network.
        objective: What is minimised.
        optimizer: How weights are updated: a recipe of `lit_pretrain.optim`, or a class whose first
            argument is the parameters, such as those of `torch.optim`.
        schedule: How the learning rates move over the run.
        clip_norm: Largest global gradient norm, per token of the global batch; None leaves
            gradients as they are.
        ema_half_life: Keep a moving average of the weights, in which they count half after this
            many tokens; `--weights average` of `validate`, `generate` and `export` reads it. By
            default there is none.
        transfer: The small network on which the rates were tuned. First weights and rates of this
            one follow from it by its width and depth. By default they are what the options say.
        init_from: A checkpoint whose weights (and nothing else) this stage starts from; set by
            `--from`.
        new_tokens: Token ids that the parent does not have, and how it spelt them; set by
            --tokenizer.add, or by data whose tokenizer extends the parent's.
        rollout: How prompts are answered and the answers rewarded, for GRPO.
        adapter: Train a few weights beside the frozen network, instead of the network; checkpoints
            then hold these alone.
        freeze: Regular expressions over names of parameters, such as `token_embedding` or
            `blocks.0`, that are not trained.
        reference: Whose log-probabilities a policy is compared with, if the data holds none: a run,
            a checkpoint or a Hugging Face folder. By default the network that training starts from.
        reference_cache: Folder in which the reference's log-probabilities of all pairs are kept,
            once computed, for runs with the same reference, rows, tokenizer and template; training
            then needs no reference. By default they are computed in every step.
        teacher: Whom a student learns from, if the data holds no teacher's words: a run, a
            checkpoint or a Hugging Face folder.
        compile: Compile the network's blocks, and on a GPU the loss. `auto` does so where a
            compiler is found.
        activation_checkpointing: Keep less of every block for the backward pass and compute the
            rest again: the same numbers with less memory. true: only its input, for about a third
            more computation. offload: as true, and the input waits in the memory of the GPU's
            host until the backward pass. attention: also what attention puts out. products: also
            every second matrix product, for about a sixth more. A number between 0 and 1: this
            share of what attention and matrices put out, attention first. `lit_pretrain plan` says
            what each takes.
        float8: Compute the products of the blocks' matrices in fp8 while training: tensorwise,
            rowwise or rowwise_with_gw_hp (slower and more exact in this order), by torchao (the
            extra fp8). Weights, optimizer and checkpoints stay what they are. By default there is
            no fp8.
        seed: Seed of the initial weights and of dropout; each optimizer step and rank derives its
            own.
    """

    def __init__(
        self,
        net: ModelConfig = ModelConfig(),
        # No lazy instances: each would read the whole call stack while this is imported, 0.5 s. All
        # stages may share these: they are frozen, or a module without parameters and buffers.
        objective: Objective = CrossEntropy(),
        optimizer: OptimizerRecipe | OptimizerCallable = MuonAdamW(),
        schedule: Schedule = Schedule(),
        clip_norm: float | None = 1.0,
        ema_half_life: float | None = None,
        transfer: Transfer | None = None,
        init_from: str | None = None,
        new_tokens: NewTokens | None = None,
        rollout: Rollout | None = None,
        adapter: LoRA | None = None,
        freeze: tuple[str, ...] = (),
        reference: str | None = None,
        reference_cache: str | None = None,
        teacher: str | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
        activation_checkpointing: Checkpointing = False,
        float8: Float8Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if clip_norm is not None and not clip_norm > 0:
            raise UserError(
                f"model.clip_norm={clip_norm} must be positive, or null for no clipping"
            )
        if ema_half_life is not None and not 0 < ema_half_life < math.inf:
            raise UserError(
                f"model.ema_half_life={ema_half_life} must be a positive number of tokens, or null"
                " for no average"
            )
        if adapter is not None and freeze:
            raise UserError(
                f"model.freeze={list(freeze)} has no effect beside model.adapter, which freezes the"
                " whole network: remove one"
            )
        if adapter is not None and init_from is None:
            raise UserError(
                "model.adapter adapts a trained network: name it with --from RUN (a run, a"
                " checkpoint or a Hugging Face folder)"
            )
        if adapter is not None and transfer is not None:
            raise UserError(
                "model.transfer has no rule for the matrices of model.adapter: remove one of them"
            )
        self.config = net = transferred_shape(net, transfer)
        self.transfer = transfer
        self.objective = objective
        self.optimizer_recipe = recipe_of(optimizer)
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.ema_half_life = ema_half_life
        self.average: WeightAverage | None = None
        self._averaged: dict[str, Any] = {}
        self.init_from = init_from
        self.rollout = rollout
        self.adapter = adapter
        self.origin = Origin(
            net,
            seed=seed,
            parent=init_from,
            adapter=adapter,
            freeze=freeze,
            new_tokens=new_tokens,
            transfer=transfer,
        )
        self.reference_from = reference
        self.reference_cache = reference_cache
        self.teacher_from = teacher
        self.strict_loading = adapter is None  # its checkpoints lack the base
        self.compile_mode = compile
        check_budget(activation_checkpointing, net, adapter=adapter is not None)
        self.activation_checkpointing = activation_checkpointing
        self.float8 = float8
        self.seed = seed
        self.net: Transformer
        self.contract: DataContract | None = None
        self.provides: frozenset[str] = frozenset()
        self.sums: dict[str, Tensor] = {}
        """Detached sums of the last optimizer step on this rank, for callbacks: those of
        `StepSums`, plus grad_norm and grad_scale, what gradients of sums are multiplied by.
        """
        self.score: nn.Linear | None = None
        """The head of a reward model."""
        self.reference: Reference | None = None
        self.teacher: Frozen | None = None
        self.answers: Answers | None = None
        """What answers prompts."""
        self.metric_names: tuple[str, ...] = objective.metric_names
        """What a training step reports beside its loss."""
        self.temperature = 1.0 if rollout is None else rollout.temperature or 1.0
        self.guard_settings = GuardSettings(action="off")
        self.guard: Guard | None = None
        """What judges the steps of a training run."""
        self.step_loss: StepLoss
        self.held = Skips()
        """Optimizer steps whose update is left out."""
        self.new_settings = False
        """Whether the optimizer's settings are new ones, and only its moments a checkpoint's."""
        self._settings: list[dict[str, Any]] = []
        self._policy_checked = False
        self._denominator: Tensor | None = None
        self.batch: list[AnyBatch] = []
        """The micro-batches of the last optimizer step on this rank."""
        self.denominators: list[Tensor] = []
        """What the sums of its micro-batches are means over, as far as they are computed."""
        self.held_out: HeldOut | None = None

    # ------------------------------------------------------------------ construction

    def configure_model(self) -> None:
        """Build the network once, sharded over ranks where the strategy shards."""
        if hasattr(self, "net"):
            return
        mesh = self.device_mesh
        with torch.device("meta" if mesh is not None else "cpu"):
            net = Transformer(self.config)
        net.checkpoint_activations(self.activation_checkpointing)
        if self.float8 is not None and self.trainer.state.fn == "fit":
            self.trainer.print(self._to_float8(net, self.float8))
        if mesh is not None:
            if self.adapter is not None and self.origin.new_tokens is not None:
                raise UserError(
                    "rows of new tokens are trained beside an adapter on whole networks only, not"
                    " with trainer.strategy=fsdp: use ddp, or train without model.adapter"
                )
            self.origin.adapt(net)
            self.net = shard_(
                net, mesh, device=self.trainer.strategy.root_device, fill=self.origin.fill
            )
            self.net.parts = row_parts(self.trainer.strategy)
        else:
            self.origin.fill(net)
            self.net = net
        self._join()
        self.step_loss = StepLoss(
            self.net, self.objective, temperature=self.temperature, score_head=self.score,
            reference=self.reference, teacher=self.teacher,
        )  # fmt: skip
        device = self.trainer.strategy.root_device
        reason = why_not_compiled(self.compile_mode, device, self.provides)
        if reason is not None and self.compile_mode == "auto":
            self.trainer.print(f"compile: off ({reason})")
        if reason is None:
            self.net.compile_blocks()
            # On a CPU the head is as fast uncompiled (scripts/bench_head.py); what compares two
            # distributions over the vocabulary is not.
            if device.type != "cpu" or "teacher" in self.objective.needs:
                self.step_loss.compile_objective()

    def _to_float8(self, net: Transformer, recipe: Float8Recipe) -> str:
        """Let the blocks multiply in fp8; return a line that says which matrices do."""
        from lit_pretrain.model.float8 import use_float8_  # needs an optional package

        if str(self.trainer.precision).startswith("64"):
            raise UserError(
                f"model.float8={recipe} adds up in fp32 at most: trainer.precision="
                f"{self.trainer.precision} has no use for it, leave one of the two out"
            )
        if self.trainer.strategy.root_device.type == "cpu" and self.trainer.is_global_zero:
            warn(f"model.float8={recipe}: a CPU computes in fp8 for trials, slower than without")
        return use_float8_(net, recipe)

    def _join(self) -> None:
        """Build what the objective needs beside the network: score head, reference, teacher."""
        needs, device = self.objective.needs, self.trainer.strategy.root_device
        if "score" in needs:
            self.score, known = make_score_head(
                self.config.width,
                scale=score_scale(self.config, self.transfer),
                seed=self.seed,
                init_from=self.init_from,
                average=self.origin.average,
                mesh=self.device_mesh,
                device=device,
            )
            self.trainer.print(f"score head: {'that of the parent' if known else 'new'}")
            if self.net.head is not None:
                # Nothing reads it, and DDP waits for the gradient of whatever is trained.
                self.net.head.requires_grad_(False)
        if "ref_logp" in needs:
            self._join_reference()
        if "teacher" in needs and "teacher" not in self.provides:
            self.teacher = self._frozen(self.teacher_from)
            self.trainer.print(f"teacher: {self.teacher_from}")

    def _join_reference(self) -> None:
        place, named = resolve_reference(
            self.provides,
            adapter=self.adapter is not None,
            reference=self.reference_from,
            init_from=self.init_from,
            cache=self.reference_cache,
        )
        printed = None
        if place == "cache":
            assert self.reference_cache is not None
            data, trainer = self._data, self.trainer
            network = weights_identity(named) if named is not None else self.origin.name()
            printed = fill_column(
                data, Path(self.reference_cache),
                column_key(data, network=network, precision=str(trainer.precision)),
                make=lambda: self._frozen(named), context=trainer.precision_plugin.forward_context,
                device=trainer.strategy.root_device,
                rank=self.global_rank, gather=self.gather_from_ranks,
            )  # fmt: skip
            self.provides = self.provides | {"ref_logp"}
            place = "column"
        self.reference = Reference(
            place, self.net, self.adapter, lambda: self._frozen(named), self.temperature
        )
        whose = named or self.init_from or "the first weights, which are random"
        self.trainer.print(f"reference: {printed or describe_place(place, whose)}")

    @property
    def _data(self) -> Any:
        """The data module; Lightning gives it to a Trainer, whose class does not declare it."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`

    def _frozen(self, where: str | None) -> Frozen:
        return self.origin.frozen(
            where, mesh=self.device_mesh, device=self.trainer.strategy.root_device
        )

    def on_save_checkpoint(self, checkpoint: CheckpointEntries) -> None:
        """Save answers that are still learned from, and of an adapted network the adapter alone.

        The adapter is saved with the identity of its base.
        """
        if RECORD_KEY not in checkpoint:
            checkpoint[STANDALONE_KEY] = standalone(self.config, self._data.save)
        if self.guard is not None and self.guard_settings.action != "off":
            checkpoint[GUARD_KEY] = self.guard.state()
        if self.average is not None:
            names = {id(parameter): name for name, parameter in self.named_parameters()}
            checkpoint[AVERAGE_KEY] = self.average.stored(names)
        if self.answers is not None:
            state = self.answers.state(self.global_step, self.gather_from_ranks)
            if state is not None:
                checkpoint[ANSWERS_KEY] = state
        if self.adapter is None:
            return
        record = None
        # Of a sharded network only the first rank knows the hash, and it is the one that writes.
        if self.origin.base_hash is not None:
            assert self.init_from is not None
            from_run = os.path.relpath(self.init_from, self.trainer.default_root_dir)
            record = AdapterRecord(self.adapter, self.init_from, from_run, self.origin.base_hash)
        keep_adapter(checkpoint, record)

    def gather_from_ranks(self, value: Any) -> list[Any]:
        """Gather a value of every rank; all of them call this together."""
        found: list[Any] = [None] * self.trainer.world_size
        if self.trainer.world_size == 1:
            return [value]
        torch.distributed.all_gather_object(found, value)
        return found

    def on_load_checkpoint(self, checkpoint: CheckpointEntries) -> None:
        """Restore what the guard has seen, and unfinished answers.

        Raises:
            UserError: An adapter is that of another base, or has other tensors.
        """
        self._averaged = checkpoint.get(AVERAGE_KEY, {})
        if self.guard is not None and GUARD_KEY in checkpoint:
            self.guard.load_state(checkpoint[GUARD_KEY])
        if self.answers is not None and ANSWERS_KEY in checkpoint:
            self.answers.load_state(checkpoint[ANSWERS_KEY])
        if self.adapter is None:
            return
        check_adapter(
            checkpoint,
            set(self.state_dict()),
            base=str(self.init_from),
            base_hash=self.origin.base_hash,
        )

    def check(
        self,
        contract: DataContract,
        data: object,
        *,
        sharded: bool,
        sizes: MeshSizes | None = None,
        device: torch.device = torch.device("cpu"),
        evaluates: bool = False,
    ) -> None:
        """Check the data against network and objective.

        Args:
            contract: What the data promises.
            data: The data module, for its name.
            sharded: Whether the network will be spread over ranks.
            sizes: Of the mesh over which it will be spread.
            device: Where it will compute.
            evaluates: Whether nothing will be trained.

        Raises:
            UserError: They do not fit; says which to change.
        """
        check_data(
            contract, data, net=self.config, objective=self.objective, rollout=self.rollout,
            reference=self.reference_from, reference_cache=self.reference_cache,
            teacher=self.teacher_from, sharded=sharded, evaluates=evaluates,
        )  # fmt: skip
        several = len(contract.batch_tokens.sizes) > 1
        if several and self.transfer is not None and self.transfer.base_batch_tokens is not None:
            raise UserError(
                "model.transfer.base_batch_tokens lets rates, and the decay of the second moment,"
                " follow one size of the batch, and data.batch_schedule has several: leave one of"
                " them out"
            )
        if not evaluates:
            check_offload(self.activation_checkpointing, device)
        if self.float8 is not None and not evaluates:
            check_float8(
                self.float8, self.config, self.objective, adapter=self.adapter is not None,
                tp=1 if sizes is None else sizes.tp, device=device, why_not=why_no_float8(device),
                uncompiled=why_not_compiled(self.compile_mode, device, contract.provides),
            )  # fmt: skip
        if sizes is not None:
            check_mesh(
                sizes, self.objective, net=self.config, seq_len=contract.seq_len,
                adapter=self.adapter,
            )  # fmt: skip

    def setup(self, stage: str) -> None:
        """Check the data against network and objective, and prepare what is measured."""
        data = check_trainer(self.trainer) if stage == "fit" else self._data
        contract: DataContract = data.contract
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        sizes = mesh_sizes(self.trainer.strategy)
        self.check(
            contract, data, sharded=sharded, sizes=sizes, evaluates=stage != "fit",
            device=self.trainer.strategy.root_device,
        )  # fmt: skip
        self.contract, self.provides = contract, contract.provides
        names = self.objective.metric_names
        if self.rollout is not None:
            assert contract.asking is not None
            self.answers = Answers(
                self.rollout, contract.asking, seed=self.seed, seq_len=contract.seq_len
            )
            self.metric_names = (*names, *self.answers.metric_names)
            names = self.answers.held_out_names
        bits = self.objective.bits_per_byte
        if stage == "fit":
            self.guard = Guard(
                self.guard_settings,
                guessing=math.log(contract.vocab_size) if bits else None,
                needs_gradient=self.rollout is None,
            )
        self.held_out = HeldOut(
            contract,
            vocab_size=self.config.vocab_size,
            names=None if bits else names,
            device=self.trainer.strategy.root_device,
            group=token_group(self.trainer.strategy),
        )

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the schedule that advances once per optimizer step."""
        assert self.contract is not None
        trained = [
            (name, parameter)
            for name, parameter in self.net.named_parameters()
            if parameter.requires_grad
        ]
        roles = parameter_roles(self.net)
        if self.score is not None:
            trained += [
                (f"score.{name}", parameter) for name, parameter in self.score.named_parameters()
            ]
            roles[SCORE_KEY] = "head"
        optimizer = self.optimizer_recipe.build(trained, roles)
        total, batch = self.trainer.max_steps, self.contract.batch_tokens
        if self.transfer is not None:
            scales = parameter_scales(self.config, self.transfer, roles)
            scales[SCORE_KEY] = score_scale(self.config, self.transfer)
            factors = self.transfer.step_factors(batch.sizes[-1], batch.planned.first(total))
            transfer_groups_(optimizer, self.optimizer_recipe, trained, scales, factors)
        self.optimizer_recipe.follow_run(optimizer, total, batch)
        self._settings = group_settings(optimizer)
        if self.ema_half_life is not None:
            self.average = WeightAverage(optimizer, half_life=self.ema_half_life, batch=batch)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total, batch))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Set the learning rates of the first step.

        A checkpoint brings those of its own schedule, and a fork has another.

        Raises:
            UserError: A fork's optimizer needs moments that the checkpoint does not hold.
        """
        if self.average is not None:
            self.average.resume(self._averaged, step=self.global_step)
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        if self.new_settings:
            check_moments(self.optimizer_recipe, scheduler.optimizer)
            for group, settings in zip(
                scheduler.optimizer.param_groups, self._settings, strict=True
            ):
                group.update(settings)
            scheduler.base_lrs = [settings["initial_lr"] for settings in self._settings]
        for group, base, factor in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(scheduler.last_epoch)

    def _step_counts(self) -> Tensor | None:
        """Sum the objective's counts over the whole step and all devices."""
        counts = self.step_loss.counts(self.batch)
        return None if counts is None else sum_over_tokens(self.trainer.strategy, counts)

    def training_step(self, batch: list[AnyBatch], batch_idx: int) -> Tensor:
        """Run all micro-batches of one optimizer step, all but the last one's backward pass.

        Lightning runs that together with the update.
        """
        # Dropout is a function of (seed, step, rank), so that there is no generator state to save
        # or to restore. Every rank drops from other tokens, those that share rows too.
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))
        batch, answer_metrics = self._answered(batch)
        self.batch = batch
        self.optimizers(use_pl_optimizer=False).zero_grad(set_to_none=True)  # type: ignore[union-attr]  # one optimizer
        assert self.contract is not None
        sums = StepSums(self.metric_names, len(self.contract.sources), self.device)
        step_counts = self._step_counts()
        self.denominators = []
        for i, micro in enumerate(batch):
            complete, teacher_BTD = self.step_loss.complete(micro)
            numerator, denominator, metrics = self.step_loss(complete, step_counts, teacher_BTD)
            self.denominators.append(denominator)
            sums.add(metrics | answer_metrics[i], micro.source_B)
            if i + 1 < len(batch):
                # Outside autocast, as Lightning runs the last one; DDP does not reduce before its
                # forward has returned.
                with torch.autocast(self.device.type, enabled=False):
                    numerator.backward()
        self._denominator = torch.stack(self.denominators).sum()
        self.sums = sums.as_dict()
        if self.global_step == 0:
            self._check_start(sums)
        return numerator

    def _answered(self, batch: list[AnyBatch]) -> tuple[list[AnyBatch], list[dict[str, Tensor]]]:
        """Answer a step's prompts, with metrics for each micro-batch; pass on other batches."""
        if self.answers is None:
            return batch, [{} for _ in batch]
        prompts = [micro for micro in batch if isinstance(micro, PromptBatch)]
        answered, metrics = self.answers.batches(
            self.net, prompts, self.global_step, self.objective.advantages
        )
        # A resumed run may have learned since its answers were sampled.
        if not self._policy_checked and self.global_step % self.answers.asking.updates == 0:
            check_policy(
                self.net,
                answered[0],
                temperature=self.temperature,
                same_policy=self.answers.engine.same_policy,
                step=self.global_step,
            )
        self._policy_checked = True
        if self.answers.on_policy(self.global_step):
            answered = [micro._replace(old_logp_BT=None) for micro in answered]
        return list(answered), metrics

    def _check_start(self, sums: StepSums) -> None:
        """Check the first step; it costs the one look at the device that a run spends on this."""
        dropout = self.config.dropout or (self.adapter is not None and self.adapter.dropout)
        another = self.reference_from is not None and self.reference_from != self.init_from
        if self.reference is None or another or dropout:
            return
        means = sums.means(sum_over_tokens(self.trainer.strategy, sums.packed()))
        check_start(
            self.objective, means, net=self.net, place=self.reference.place, parent=self.init_from
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update()

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `training_step` has accumulated gradients before Lightning calls this."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Divide by the global count and clip, in one pass over the gradients; look at the step."""
        assert self._denominator is not None
        sums = [self._denominator, self.sums["nats_S"].sum(), self.sums["terms_S"].sum()]
        count, nats, terms = sum_over_tokens(
            self.trainer.strategy, torch.stack([value.float() for value in sums])
        )
        # Strategies average gradients over the ranks that hold different tokens; the count is a sum
        # over them.
        scale = token_ranks(self.trainer) / count.clamp(min=1.0)
        norm = scale_and_clip_(self.parameters(), scale, self.clip_norm)
        self.sums["grad_norm"], self.sums["grad_scale"] = norm, scale
        loss = (nats / terms.clamp(min=1.0)).to(norm)
        self._look_at(*torch.stack([loss, norm]).tolist())

    def _look_at(self, loss: float, norm: float) -> None:
        """Judge a step by its loss and gradient norm over all ranks, before its update.

        Raises:
            DivergedError: One of them is not finite, and nothing else is to be done about that.
            Spike: The run is to go back.
            CollapsedError: Nothing is learned any more.
        """
        assert self.guard is not None
        step, lost = self.global_step, not (math.isfinite(loss) and math.isfinite(norm))
        left_out, warning = self.guard.judge(step, loss, norm, self._samples)
        if warning is not None and self.trainer.is_global_zero:
            warn(warning)
        if left_out or self.held.holds(step):
            # An optimizer passes over a parameter without a gradient: weights, moments and counts
            # of steps stay what they are.
            self.zero_grad(set_to_none=True)
            if lost:
                self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}
        if not lost:
            self.guard.check_collapse(step, loss, norm, self._depends_on_input)

    def _samples(self) -> list[int]:
        """Return the samples of the step on this rank; a pair has two rows."""
        rows = [int(n) for micro in self.batch for n in micro.index_B.tolist()]
        return list(dict.fromkeys(rows))

    def _depends_on_input(self) -> bool:
        """Tell whether other tokens change the loss of the same labels, on any rank."""
        batch = self.batch[-1]
        other = batch._replace(tokens_BT=(batch.tokens_BT + 1) % self.config.vocab_size)
        self.net.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            plain, changed = (self.step_loss(each)[2]["nll_BT"] for each in (batch, other))
        self.net.train()
        reshard_(self.net)
        same = torch.allclose(plain, changed, rtol=1e-5, atol=1e-6)
        return not self.trainer.strategy.reduce_boolean_decision(same, all=True)

    def step_again(self) -> Iterator[tuple[AnyBatch, dict[str, Tensor], Tensor | None]]:
        """Run the micro-batches of this step once more: uncompiled, with the same random numbers.

        Before the update they give what the step itself has computed; see `StepLoss.again`.
        """
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))
        context = self.trainer.precision_plugin.forward_context
        yield from self.step_loss.again(self.batch, self._step_counts(), context)
        reshard_(self.net)

    def on_train_batch_end(self, *args: Any) -> None:
        """Ask for the validation that ends every run.

        Lightning would skip it where the length is no multiple of the interval.
        """
        if self.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: list[AnyBatch], batch_idx: int) -> None:
        """Add the held-out rows to the metric."""
        self._evaluate("val", batch)

    def test_step(self, batch: list[AnyBatch], batch_idx: int) -> None:
        """Add the test rows to the metric."""
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: list[AnyBatch]) -> None:
        assert self.held_out is not None
        if self.answers is None:
            self.held_out.measure(split, batch, self.step_loss)
            return
        prompts = [micro for micro in batch if isinstance(micro, PromptBatch)]
        answered = self.answers.measure(self.net, prompts, self.global_step)
        self.held_out.add_answers(split, prompts, answered)

    def on_validation_epoch_end(self) -> None:
        """Publish val/loss and the objective's metrics, over all and where known per source.

        `Metrics` passes them on, at the step they belong to.
        """
        self._publish("val")

    def on_test_epoch_end(self) -> None:
        """Publish test/loss and the objective's metrics, over all and where known per source."""
        self._publish("test")

    def _publish(self, split: str) -> None:
        assert self.held_out is not None
        for name, value in self.held_out.results(split).items():
            self.log(name, value, logger=False, rank_zero_only=True)


def trainable(net: nn.Module) -> int:
    """Count the parameters that training changes."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Derive a 63-bit seed for one optimizer step on one rank.

    The random numbers of a step follow from nothing else, so a resumed run draws the same ones.
    """
    digest = hashlib.sha256(f"{seed}\x00{step}\x00{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
