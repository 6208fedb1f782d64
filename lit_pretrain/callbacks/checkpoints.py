"""Checkpoints: the newest few and the best of a run, each appearing whole or not at all.

Each is written with digests (`checkpoint/digests.py`), and none with numbers that are not finite.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_pretrain.checkpoint.digests import damage, file_digest, write_digests
from lit_pretrain.checkpoint.layout import (
    BEST,
    CHECKPOINTS_FOLDER,
    RECORD_KEY,
    BestRecord,
    CheckpointRecord,
    best_by_metrics,
    best_record,
    checkpoint_name,
    checkpoints,
    step_of,
)
from lit_pretrain.checkpoint.resume_contract import fits_skips, skips_of
from lit_pretrain.checkpoint.shards import consolidated, load_archive
from lit_pretrain.checkpoint.weights import read_record, write_checkpoint
from lit_pretrain.errors import DivergedError, UserError
from lit_pretrain.files import remove_path, rename_durably, seal_json, write_file
from lit_pretrain.report.rewinds import finish_rewind
from lit_pretrain.report.run_folder import ABANDONED, sync_metrics


class PlainCheckpointIO(CheckpointIO):
    """Read and write checkpoints, one file each, loaded with `weights_only=True`.

    Lightning's own plugin writes to the temporary directory and moves: across file systems a kill
    leaves a torn file under the final name. This one writes to the path that it is given.
    `Checkpoints` names a scratch path beside the final one and renames it when all ranks are done.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint and wait until it is on the disk."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint and refuse arbitrary objects in it.

        A sharded checkpoint is consolidated for strategies that do not shard.
        """
        if Path(path).is_dir():
            return consolidated(Path(path))
        return load_archive(Path(path), map_location=map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Save the state of training after every `every` optimizer steps and after the last one.

    Args:
        run: The run's folder.
        every: Optimizer steps between checkpoints; 0 saves only the last.
        keep: Newest checkpoints that are kept; the best by validation loss is kept beside them.
        contract: The fields that a resumed run must share, stored in every checkpoint.
        back_to: Step to which the run goes back: newer checkpoints are set aside. None: it stays.
        on_saved: Called with the seconds that each save took; throughput does not count them.
    """

    def __init__(
        self,
        run: Path,
        *,
        every: int,
        keep: int,
        contract: Mapping[str, Any],
        on_saved: Callable[[float], None],
        back_to: int | None = None,
    ) -> None:
        if every < 0 or keep < 1:
            raise UserError(
                f"checkpoint_every={every} must not be negative and keep_checkpoints={keep} at"
                " least 1"
            )
        self.run = run
        self.every = every
        self.keep = keep
        self.contract = dict(contract)
        self.on_saved = on_saved
        self.back_to = back_to
        self.latest: Path | None = None
        """The last checkpoint that this attempt saved."""
        self._validation_due = False
        self._resumed_due: int | None = None
        """Step whose validation this attempt begins with."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Delete what a killed run was writing, and mend best.json."""
        if trainer.is_global_zero:
            self._abandon()
            for scratch in (self.run / CHECKPOINTS_FOLDER).glob("*.tmp"):
                remove_path(scratch)
            best = best_record(self.run)
            if best is not None and not (self.run / CHECKPOINTS_FOLDER / best.checkpoint).exists():
                best = best_by_metrics(self.run)
            if best is not None:
                self._write_best(best)
            else:
                remove_path(self.run / CHECKPOINTS_FOLDER / BEST)

    def _abandon(self) -> None:
        """Set checkpoints aside from which the run goes back, or that read what it now leaves out.

        Nothing that is left must be taken for this run's: neither by the next resume, nor as one of
        the newest, nor as the best. Only then a rewind is done.
        """
        skips, back_to = skips_of(self.contract), self.back_to
        for path in checkpoints(self.run) if skips or back_to is not None else []:
            beyond = back_to is not None and (step_of(path) or 0) > back_to
            if beyond or (damage(path) is None and not fits_skips(read_record(path), skips)):
                aside = self.run / ABANDONED / path.name
                aside.parent.mkdir(exist_ok=True)
                remove_path(aside)
                rename_durably(path, aside)
        if back_to is not None:
            finish_rewind(self.run)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the contract into the checkpoint."""
        record = CheckpointRecord(trainer.global_step, self.contract, self._validation_due)
        checkpoint[RECORD_KEY] = record.stored()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See whether a validation is due before the next step."""
        saved = CheckpointRecord.of(checkpoint)
        assert saved is not None, "a run resumes only from checkpoints with a contract"
        self._resumed_due = saved.step if saved.validation_due else None

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remove the mark of `save` once Lightning has read it; later checkpoints lack it."""
        if self._resumed_due is not None:
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save when it is time, unless a validation comes first."""
        if self._is_due(trainer) and not validates_now(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save when it is time, and remember the best checkpoint so far.

        After the validation and not before it: a run that is killed in between validates again, and
        loses nothing of its record.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # Rank 0 alone holds the figures.
        loss = float(trainer.callback_metrics.get("val/loss", 0.0))
        if not trainer.strategy.reduce_boolean_decision(math.isfinite(loss), all=True):
            raise DivergedError(
                f"the validation at step {trainer.global_step} has the loss {loss}: the network no"
                " longer computes numbers; nothing was saved, older checkpoints are untouched"
            )
        # That the validation is not due any more must be known to the next attempt, too.
        if self._is_due(trainer) or trainer.global_step == self._resumed_due:
            self.save(trainer)
        path = self.run / CHECKPOINTS_FOLDER / checkpoint_name(trainer.global_step)
        if not trainer.is_global_zero or not path.exists():
            return
        before = best_record(self.run)
        if before is None or loss < before.loss:
            self._write_best(BestRecord(path.name, loss, trainer.global_step))
            self._prune(path)

    def _write_best(self, record: BestRecord) -> None:
        write_file(self.run / CHECKPOINTS_FOLDER / BEST, seal_json(dataclasses.asdict(record)))

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        last = step == trainer.max_steps or trainer.should_stop  # such as early stopping
        return last or (self.every > 0 and step % self.every == 0)

    def save(self, trainer: L.Trainer, *, validation_due: bool = False) -> Path:
        """Save the state after the current step; all ranks call this.

        Args:
            trainer: Lightning's.
            validation_due: Let a resumed run begin with the validation of this step, which has not
                begun or is given up.

        Raises:
            UserError: The disk is full or the folder cannot be written; the older checkpoints are
                untouched.
            DivergedError: A weight or a moment is not finite.
        """
        self._check_finite(trainer)
        path = self.run / CHECKPOINTS_FOLDER / checkpoint_name(trainer.global_step)
        scratch = path.with_suffix(".ckpt.tmp")
        began = time.perf_counter()
        self._validation_due = validation_due
        if validation_due:
            # Lightning repeats a validation that stopped within a batch, and no other.
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.increment_ready()
            progress.increment_started()
        try:
            if trainer.is_global_zero:
                sync_metrics(self.run)  # the checkpoint may not outlive its history
            trainer.save_checkpoint(scratch, weights_only=False)
            if scratch.is_dir():
                self._seal_folder(trainer, scratch)
        except (OSError, RuntimeError) as error:
            # torch's zip writer reports a full disk as a RuntimeError; the OSError is its cause
            cause = error if isinstance(error, OSError) else error.__context__
            if (
                isinstance(error, RuntimeError)
                and "PytorchStreamWriter" not in str(error)
                and not isinstance(cause, OSError)
            ):
                raise
            if trainer.is_global_zero:
                remove_path(scratch)
            free = shutil.disk_usage(self.run).free / 1e6
            raise UserError(
                f"checkpoint {path} could not be written: {cause or error} ({free:,.0f} MB free);"
                " free some space, then go on with --resume auto: older checkpoints in"
                f" {path.parent} are untouched"
            ) from error
        if trainer.is_global_zero:
            if path.is_dir():
                remove_path(path)
            rename_durably(scratch, path)
            self._prune(path)
        trainer.strategy.barrier("checkpoint")
        self.latest = path
        self.on_saved(time.perf_counter() - began)
        return path

    def _check_finite(self, trainer: L.Trainer) -> None:
        """Refuse to save weights or moments that are not finite, if any rank has one."""
        bad = [name for name, tensor in saved_tensors(trainer) if not tensor.isfinite().all()]
        if not trainer.strategy.reduce_boolean_decision(not bad, all=True):
            where = ", ".join(bad[:3]) or "a tensor of another rank"
            raise DivergedError(
                f"step {trainer.global_step}: {where} holds numbers that are not finite; nothing"
                f" was saved, older checkpoints in {self.run / CHECKPOINTS_FOLDER} are untouched"
            )

    def _seal_folder(self, trainer: L.Trainer, folder: Path) -> None:
        """Record the digests of a sharded checkpoint; every rank hashes what it has written."""
        own = {path.name: file_digest(path) for path in folder.glob(f"__{trainer.global_rank}_*")}
        everybody: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(everybody, own)
        else:
            everybody = [own]
        if trainer.is_global_zero:
            digests = {name: digest for part in everybody for name, digest in part.items()}
            for path in folder.iterdir():
                if path.name not in digests:
                    digests[path.name] = file_digest(path)
            write_digests(folder, digests)

    def _prune(self, saved: Path) -> None:
        """Delete old checkpoints.

        The newest complete ones, the best and the one just saved are kept; damaged ones that are
        older than that go as well.
        """
        best = best_record(self.run)
        found = checkpoints(self.run)
        # A damaged file must not count as one of those kept, or the last good one would go.
        sound = [path for path in found if path == saved or damage(path) is None]
        kept = {path.name for path in sound[-self.keep :]} | {saved.name}
        kept |= set() if best is None else {best.checkpoint}
        for path in found:
            if path.name not in kept and (step_of(path) or 0) < (step_of(saved) or 0):
                remove_path(path)


def saved_tensors(trainer: L.Trainer) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's part of every trained weight and of every moment, by name."""
    names: dict[int, str] = {}
    for name, parameter in trainer.lightning_module.named_parameters():
        names[id(parameter)] = name
        if parameter.requires_grad:
            yield name, _local(parameter)
    for optimizer in trainer.optimizers:
        for owner, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield f"{key} of {names.get(id(owner), 'a parameter')}", _local(value)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def validates_now(trainer: L.Trainer) -> bool:
    """Tell whether a validation follows the optimizer step that has just ended."""
    step, every = trainer.global_step, trainer.val_check_batch
    last = step == trainer.max_steps or trainer.should_stop
    return bool(trainer.enable_validation and (last or (every and step % every == 0)))
