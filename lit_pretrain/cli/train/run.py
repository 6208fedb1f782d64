"""Train: what `fit`, `posttrain` and `finetune` do, from arguments to a finished run folder."""

import dataclasses
import gc
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pretrain.batch_sizes import BATCH_SETTINGS
from lit_pretrain.callbacks.metrics import GroupSignal
from lit_pretrain.callbacks.run_board import RunBoard
from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.chat.template import TEMPLATE_FILENAME as TEMPLATE
from lit_pretrain.checkpoint.layout import artefact_folder, newest_complete
from lit_pretrain.checkpoint.lineage import LINEAGE_FILENAME, Lineage, lineage_of, stage_record
from lit_pretrain.checkpoint.resume_contract import OPTIMIZER, differences, fork_lines
from lit_pretrain.checkpoint.weights import read_record
from lit_pretrain.cli.command.load_run import quiet_libraries
from lit_pretrain.cli.train.fit_plan import devices_line, fit_plan
from lit_pretrain.cli.train.precision import peak_dtype
from lit_pretrain.cli.train.ranks import (
    check_restarts,
    hand_over_processes,
    listening,
    one_voice,
)
from lit_pretrain.cli.train.resolve import (
    adapter_cost,
    adapter_of,
    net_of,
    settings_of,
    transfer_of,
)
from lit_pretrain.cli.train.rewind import record_rewind
from lit_pretrain.cli.train.train_cli import TrainCLI
from lit_pretrain.cli.train.trainer import begin_loggers, log_to
from lit_pretrain.errors import DivergedError, UserError, refusal_of_system, warn
from lit_pretrain.files import seal_json, write_file
from lit_pretrain.model.config import count_parameters
from lit_pretrain.parallel.strategy import mesh_sizes
from lit_pretrain.plain_data import dump_config, read_config
from lit_pretrain.report.goodput import goodput_line
from lit_pretrain.report.rewinds import write_rewinds
from lit_pretrain.report.run_folder import (
    CONFIG,
    LOGGERS,
    METRICS,
    PROVENANCE,
    SUMMARY,
    MetricsFile,
    Provenance,
    ProvenanceFacts,
    RunLock,
    check_run_unused,
    provenance,
    read_metrics,
    read_provenance,
    recorded_seconds,
    timestamp,
    write_skips,
)
from lit_pretrain.report.run_state import recorded_attempt
from lit_pretrain.report.summary import Foreseen, write_summary
from lit_pretrain.report.tensorboard import hyper_parameters, loss_section
from lit_pretrain.scaling.flops import peak_flops
from lit_pretrain.stage.guard import Spike
from lit_pretrain.step_size import counted


def train(verb: str, argv: list[str], began: float) -> int:
    """Run one of the training verbs.

    Args:
        verb: fit, posttrain or finetune.
        argv: Its arguments.
        began: When the command was started, by `time.monotonic`.

    Returns:
        The exit code.
    """
    quiet_libraries()
    check_restarts()
    lock, cli, arguments = RunLock(), None, argv
    try:
        while True:
            before, cli = cli, TrainCLI(verb, arguments, lock, fetch=cli is None)
            if before is not None:
                hand_over_processes(before.trainer, cli.trainer)
                cli.callbacks.stop.go_on_from(before.callbacks.stop)
                before = None
                gc.collect()  # a Trainer refers to itself, and holds the memory of its network
            if cli.finished and (cli.place.folder / SUMMARY).is_file():
                if cli.trainer.is_global_zero:
                    print(
                        f"done: {cli.place.folder} has made all of its"
                        f" {cli.config.max_steps:,} steps; nothing is left to do"
                    )
                return 0
            uploads = cli.callbacks.uploads
            try:
                with (
                    keeps_what_is_safe(cli.place.folder),
                    nullcontext() if uploads is None else uploads.finishing(Spike),
                ):
                    _train(cli, began)
            except Spike:
                # What is recorded is all that a resume needs, and a resume is proven to be exact.
                arguments = [
                    *argv,
                    f"--runs={cli.config.runs}",
                    f"--name={cli.config.name}",
                    "--resume=auto",
                ]
                began = time.monotonic()
                continue
            return 0
    finally:
        lock.release()


def _train(cli: TrainCLI, started: float) -> None:
    """Train, and write the summary; of a run that was killed before it had one, only the latter."""
    trainer, stage, data = cli.trainer, cli.model, cli.datamodule
    # Before anything is written: a run that is refused leaves nothing behind.
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    sizes = mesh_sizes(trainer.strategy)
    device = trainer.strategy.root_device
    stage.check(data.contract, data, sharded=sharded, sizes=sizes, device=device)
    data.setup("fit")
    stage.schedule.in_steps(cli.config.max_steps, data.batch_tokens)
    stage.optimizer_recipe.over_run(cli.config.max_steps, data.batch_tokens)
    dtype = peak_dtype(cli.config.trainer.precision, float8=stage.float8 is not None)
    cli.callbacks.metrics.peak = peak_of(trainer, dtype)
    first_step = read_record(cli.place.checkpoint).step if cli.place.checkpoint else 0
    plan = fit_plan(
        cli.config,
        net_of(cli.config),
        cli.layout,
        data,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )
    adapter = adapter_of(cli.config)
    lines = [plan.line, *([] if cli.chosen is None else [cli.chosen]), *cli.lowered]
    if adapter is not None:
        lines.append(adapter_cost(net_of(cli.config), adapter).line(adapter))
    transfer = transfer_of(cli.config)
    if transfer is not None:
        net = net_of(cli.config)
        lines.append(transfer.line(net.width, net.n_layer))
    said = "\n".join(lines)
    mixture = data.exposure(cli.config.max_steps)
    if data.skips:
        left_out = counted(data.skips.count, "steps")
        mixture += f"\nleft out of the order: steps {data.skips} ({left_out})"
    if cli.place.held:
        held = counted(cli.place.held.count, "steps")
        mixture += f"\nupdates left out: steps {cli.place.held} ({held})"
    for rewind in cli.place.rewinds:
        mixture += f"\n{rewind.line}"
    kept: list[str] = []
    if cli.place.checkpoint is not None and cli.place.forks:
        saved = read_record(cli.place.checkpoint).contract
        kept = fork_lines(saved, cli.contract, str(cli.place.checkpoint))
        stage.new_settings = any(
            line.startswith(OPTIMIZER) for line in differences(saved, cli.contract)
        )
    foreseen = plan.expected
    cli.callbacks.metrics.expected = None if foreseen is None else foreseen.values
    if trainer.is_global_zero:
        cli.callbacks.ledger.begin(
            started, first_step=first_step, goes_on=cli.settings.resume != "never"
        )
        # First: opening the logs imports TensorBoard.
        print(said, mixture, *kept, sep="\n", flush=True)
        start_run(cli, first_step, None if foreseen is None else foreseen.metric)
        for remark in data.remarks():
            warn(remark)
        if cli.place.checkpoint:
            print(f"resume: {cli.place.checkpoint}, step {first_step}")
    signal = GroupSignal()
    cli.callbacks.metrics.sinks.append(signal)
    folder = cli.place.folder
    recorded = recorded_attempt(folder) if trainer.is_global_zero else nullcontext()
    began = time.perf_counter()
    try:
        with (
            recorded,
            one_voice(trainer),
            listening(trainer, cli.callbacks.stop),
            cli.callbacks.watchdog.watching(trainer),
            keeps_what_is_safe(folder),
        ):
            if not cli.finished:
                try:
                    trainer.fit(
                        stage,
                        datamodule=data,
                        ckpt_path=str(cli.place.checkpoint) if cli.place.checkpoint else None,
                        weights_only=True,
                    )
                except Spike as spike:
                    refusal: Exception | None = None
                    if trainer.is_global_zero:
                        try:
                            record_rewind(cli, spike)
                        except Exception as error:  # raised once the other ranks know of it
                            refusal = error
                    cli.callbacks.stop.before_rewind(trainer, refusal)
                    raise
    except DivergedError as error:
        if not error.samples:
            raise
        place = data.skips.place(trainer.global_step)
        raise DivergedError(
            f"{error}\nthe step read: {data.describe(error.samples)}\nIf its rows are at fault, go"
            f" on without them: --resume auto --skip_steps {place}:{place + 1}",
            error.samples,
        ) from error
    if trainer.is_global_zero:
        seconds = time.perf_counter() - began, cli.callbacks.metrics.train_seconds
        if cli.finished:
            seconds = recorded_seconds(read_metrics(cli.place.folder))
        ledger = cli.callbacks.ledger
        ledger.write(trainer.global_step)
        law = (
            None
            if foreseen is None
            else Foreseen(foreseen.metric, foreseen.end.loss, foreseen.interval, foreseen.text)
        )
        summary = write_summary(
            cli.place.folder,
            seconds=seconds[0],
            train_seconds=seconds[1],
            plan=said,
            forecast=law,
            mixture=mixture,
            samples=cli.callbacks.samples.latest,
            goodput=goodput_line(ledger.attempts),
        )
        for logger in trainer.loggers:
            if isinstance(logger, RunBoard):
                logger.end(trainer.global_step)
        bits = (
            f", {summary['val/bits_per_byte']:.4f} bits per byte"
            if "val/bits_per_byte" in summary
            else ""
        )
        found = (
            f"val loss {summary['val/loss']:.4f}{bits}"
            if stage.rollout is None
            else f"val reward {0.0 - summary['val/loss']:.4f}"
        )
        print(f"done: {cli.place.folder}: {found}")
        for remark in [*data.remarks(), *signal.remarks()]:
            warn(remark)
        if law is not None and law.contradicts(summary[law.metric]):
            warn(
                f"the loss lies outside its forecast: {law.beside(summary)}. Before the law is used"
                " again, look for what differs from its runs (data, rate, batch, schedule), or fit"
                " it anew with this run"
            )


@contextmanager
def keeps_what_is_safe(run: Path) -> Iterator[None]:
    """Say what is safe of a run whose metrics, events or summary the system refuses to write.

    Raises:
        UserError: The block met such a refusal.
    """
    try:
        yield
    # Libraries wrap what the system refuses in exceptions of their own; others are raised again.
    except Exception as error:
        if (refused := refusal_of_system(error)) is None:
            raise
        kept = newest_complete(run)
        safe = (
            "it has no checkpoint yet, so start it again"
            if kept is None
            else f"its checkpoint {kept.name} is safe, so go on with --resume auto"
        )
        raise UserError(f"the run {run} stopped: {refused}; {safe}") from error


def start_run(cli: TrainCLI, first_step: int, forecast: str | None) -> None:
    """Write what the run is before it begins, and open its logs.

    Args:
        cli: The run.
        first_step: Of this attempt.
        forecast: The validation metric that a law forecasts; None where none does.
    """
    folder, config, data = cli.place.folder, cli.plain_config(), cli.datamodule
    if not cli.lock.held:
        cli.lock.take(folder)
        check_run_unused(folder)  # another process may have begun one since the first look
    write_rewinds(folder, cli.place.rewinds)
    write_skips(folder, data.skips)
    text = dump_config(config)
    # Without a checkpoint of the run's own, nothing is left of earlier attempts that this one would
    # have to agree with.
    attempt = len(list(folder.glob("config*.yaml"))) if first_step else 0
    latest = folder / (CONFIG if attempt == 0 else f"config.resume-{attempt}.yaml")
    write_file(latest, text)
    if attempt:
        renew_config(folder / CONFIG, text, config)
    # A run that goes on beyond its end has one of its shorter self.
    (folder / SUMMARY).unlink(missing_ok=True)
    command = ["lit_pretrain", cli.verb, "--config", str(latest), "--resume", "auto"]
    cli.callbacks.stop.go_on = f"go on with: {shlex.join(command)}"
    adapter = adapter_of(cli.config)
    facts = ProvenanceFacts(
        verb=cli.verb,
        manifest_hash=data.manifest_hash,
        tokenizer_hash=data.tokenizer_hash,
        template_hash=data.template_hash,
        data=data.location,
        skipped=cli.config.skip_steps,
        parent=cli.config.model.init_from
        or (str(cli.place.checkpoint) if cli.place.forks else cli.settings.fork),
        resumed_from=str(cli.place.checkpoint) if cli.place.checkpoint else None,
        precision=cli.config.trainer.precision,
        threads=torch.get_num_threads(),
        devices=devices_line(cli.config, cli.trainer.world_size),
        unique_tokens=data.unique_tokens(config["max_steps"]),
        parameters=dataclasses.asdict(count_parameters(net_of(cli.config))),
        forecast=forecast,
        adapter=(
            None if adapter is None else adapter_cost(net_of(cli.config), adapter).line(adapter)
        ),
        started=timestamp(),
    )
    recorded = provenance(facts)
    place = folder / (PROVENANCE if attempt == 0 else f"provenance.resume-{attempt}.json")
    if attempt:
        try:
            read_provenance(folder)
        except UserError as error:
            warn(f"{error}; the facts of this attempt take its place")
            place = folder / PROVENANCE
    write_file(place, seal_json(recorded))
    write_language(folder, cli, recorded)
    file = MetricsFile(
        folder / METRICS,
        first_step=first_step,
        expected=cli.place.resumes and first_step >= cli.settings.log_every,
    )
    cli.callbacks.metrics.sinks.append(file.write)
    if ids := begin_loggers(cli.trainer.loggers, config):
        write_file(folder / LOGGERS, json.dumps(ids))
    for logger in cli.trainer.loggers:
        cli.callbacks.metrics.sinks.append(partial(log_to, logger))
        if isinstance(logger, RunBoard):
            open_board(cli, logger, config, forecast)
            logger.experiment.add_text("config", "```yaml\n" + text + "```", first_step)
            cli.callbacks.samples.writer = cli.callbacks.answers_shown.writer = logger.experiment
    if cli.callbacks.uploads is not None:
        cli.callbacks.uploads.begin()
        print(f"home: {cli.callbacks.uploads.remote.address}; {folder} is its copy", flush=True)


def renew_config(file: Path, text: str, config: Mapping[str, Any]) -> None:
    """Write config.yaml anew if length, skips or batch have changed, or if it is damaged.

    Readers use it.

    Args:
        file: The run's config.yaml.
        text: The config with which the run goes on.
        config: The same as plain values.
    """
    try:
        found = read_config(file)
        before = int(found["max_steps"])
        batches = [
            {name: settings_of(each["data"]).get(name) for name in BATCH_SETTINGS}
            for each in (found, config)
        ]
    except (UserError, KeyError, TypeError, ValueError) as error:
        warn(f"{error}; {file} is written anew from the settings of this attempt")
    else:
        same_skips = found.get("skip_steps") == config["skip_steps"]
        if before == config["max_steps"] and same_skips and batches[0] == batches[1]:
            return
        if before != config["max_steps"]:
            write_file(file.with_name(f"config.{before}-steps.yaml"), file.read_bytes())
    write_file(file, text)


def open_board(
    cli: TrainCLI, board: RunBoard, config: Mapping[str, Any], forecast: str | None
) -> None:
    """Tell TensorBoard what kind of run this is and by what to compare it."""
    objective, data, adapter = cli.model.objective, cli.datamodule, adapter_of(cli.config)
    name = type(objective).__name__
    adapted = "" if adapter is None else f" with {'DoRA' if adapter.dora else 'LoRA'}"
    board.begin(
        loss_section(name, rows=data.template_hash is not None, text_loss=objective.bits_per_byte),
        hyper_parameters(
            config,
            batch=data.batch_tokens,
            parameters=count_parameters(net_of(cli.config)).total,
            stage=cli.verb + adapted,
            objective=name,
        ),
        forecast=forecast,
        metrics=objective.metric_names,
        rollout=cli.model.rollout is not None,
        statistics=cli.settings.statistics_every > 0,
        noise_scale=cli.settings.noise_scale_every > 0,
    )


def write_language(folder: Path, cli: TrainCLI, facts: Provenance) -> None:
    """Write tokenizer, template and lineage to a run's folder.

    They say what the run's text looks like, and all that lies behind it.
    """
    cli.datamodule.save(folder)
    parent = facts["parent"]
    inherited = (
        None
        if parent is None or cli.datamodule.template_hash is not None
        else ModelTokenizer.found(artefact_folder(parent))
    )
    if (
        inherited is not None
        and inherited.template is not None
        and inherited.tokenizer.hash == cli.datamodule.tokenizer_hash
    ):
        write_file(
            folder / TEMPLATE, inherited.template.source
        )  # text has no template; the network still knows its parent's
    record = cli.datamodule.record()
    if cli.datamodule.skips:
        record["skipped"] = str(cli.datamodule.skips)
    lineage = Lineage.begin(
        ModelTokenizer.of(folder),
        stage_record(str(folder), facts, record),
        None if parent is None else lineage_of(parent),
    )
    write_file(folder / LINEAGE_FILENAME, lineage.dump())


def peak_of(trainer: Trainer, dtype: str) -> float | None:
    """Find the peak of all devices of a run together in a dtype, where it is known."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = peak_flops(name, dtype)
    if peak is None:
        warn(
            f"the peak of {name!r} in {dtype} is not known: no model-FLOPs utilisation will be"
            " reported"
        )
        return None
    return peak * trainer.world_size
