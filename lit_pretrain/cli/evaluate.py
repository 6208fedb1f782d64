"""Measure a run: loss, perplexity and bits per byte by source, and tasks of lm-eval."""

import json
import math
import time
from pathlib import Path
from typing import Any, Literal

from lit_pretrain.cli.command.load_run import Weights
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError

EVALUATIONS_FOLDER = "evaluations"
"""Of a run, where reports are kept."""


def evaluate_run(
    run: str,
    checkpoint: str = "last",
    data: str | None = None,
    held_out: bool = True,
    tasks: list[str] | str = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
    include: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    bos: bool | None = None,
    apply_chat_template: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    device: str = "auto",
    seed: int = 1234,
    report: str | None = None,
    tensorboard: bool = True,
    weights: Weights = "trained",
    accept: list[str] = [],  # noqa: B006  (as tasks)
    trust: bool = False,
) -> int:
    """Measure a run.

    Args:
        run: A run folder, or one of its checkpoints. A Hugging Face folder becomes a run by
            `lit_pretrain import`.
        checkpoint: For a run folder: last or best.
        data: A prepared dataset whose validation split is measured, in place of the run's own data.
        held_out: Measure the held-out text at all.
        tasks: Tasks of lm-evaluation-harness (the extra `eval`), as a list or with commas: names,
            or YAML files such as configs/tasks/local_piqa.yaml.
        include: A folder of more task files, by whose names `tasks` may go.
        shots: Examples before each question. Default: as each task says, else none.
        limit: Only the first items of each task.
        batch_size: Rows of tasks at once.
        bos: Begin contexts with the bos token. Default: for networks that have seen documents only,
            as they all began with it.
        apply_chat_template: Put questions as conversations, by the run's template.
        precision: In which everything is computed.
        device: auto, cpu, gpu, cuda or mps.
        seed: Of the choice of examples, and of sampled answers.
        report: File of the report; it must not exist. Default: one of its own in RUN/evaluations.
        tensorboard: Also write the figures to the run's TensorBoard, at the step of the checkpoint.
        weights: The weights as training left them, or their moving average (model.ema_half_life).
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
        trust: Import classes that the run's config names and that are not of lit_pretrain.
    """
    if checkpoint not in ("last", "best"):
        raise UserError(
            f"--checkpoint={checkpoint!r} must be last or best; a single checkpoint is named as RUN"
            " itself"
        )
    if report is not None and Path(report).exists():
        raise UserError(f"{report} exists already; choose another file, or remove it")
    names = (
        [name.strip() for name in tasks.split(",") if name.strip()]
        if isinstance(tasks, str)
        else tasks
    )
    if not held_out and not names:
        raise UserError("nothing is to be measured: leave out --held_out=false, or give --tasks")
    from lit_pretrain.checkpoint.layout import resolve, step_of
    from lit_pretrain.checkpoint.lineage import check_files, lineage_of
    from lit_pretrain.cli.command.load_run import quiet_libraries
    from lit_pretrain.evaluate.harness import (
        EvaluationRequest,
        begins_with_bos,
        check_installed,
        evaluation_json,
        flat,
        load_tasks,
        page,
        run_tasks,
    )
    from lit_pretrain.files import check_output, write_file, writing

    quiet_libraries()
    path = resolve(run, which=checkpoint)
    home, trained = path.parent.parent, step_of(path)
    step = trained or 0
    name = f"step={step:08d}-{time.strftime('%Y%m%d-%H%M%S')}"
    file = Path(report) if report is not None else home / EVALUATIONS_FOLDER / f"{name}.json"
    report_place = (f"the report {file}", "name another with --report")
    events_place = (f"the events in {home}", "leave them out with --tensorboard=false")
    # Hours of measuring may lie between here and the report.
    check_output(file, *report_place)
    if tensorboard and trained is not None:
        check_output(home / "events", *events_place)
    request = EvaluationRequest(
        tuple(names), include, shots, limit, batch_size, bos, apply_chat_template, seed
    )
    language = check_files(path, accept=tuple(accept))
    if language is None:
        raise UserError(f"{home} holds no tokenizer.json, so nothing can be asked of its network")
    version = check_installed() if names else None
    loaded = load_tasks(request) if names else None
    began = time.perf_counter()
    figures: dict[str, dict[str, float]] = {}
    where: str | None = None
    if held_out:
        figures, where = _held_out(path, data, precision, device, accept, trust, weights)
    stages = lineage_of(path).stages
    scores = []
    if names:
        net, autocast = _network(path, precision, device, weights)
        scores = run_tasks(net, language, request, stages, loaded=loaded, autocast=autocast)
    template = "none" if language.template is None else language.template.hash[:16]
    conditions: dict[str, object] = {"checkpoint": str(path)}
    if held_out:
        conditions["held-out text"] = f"the validation split of {where}"
    conditions["precision"] = precision
    if weights == "average":
        conditions["weights"] = "their moving average"
    if names:
        conditions |= {
            "harness": f"lm-eval {version}",
            "contexts": (
                f"{'begin' if begins_with_bos(language, request) else 'do not begin'} with bos"
                f" ({language.tokenizer.bos})"
            ),
            "chat template": f"{template}, {'applied' if apply_chat_template else 'not applied'}",
            "limit": "none" if limit is None else f"the first {limit} items of each task",
            "seed": seed,
        }
    conditions["tokenizer"] = language.tokenizer.hash[:16]
    conditions["time"] = f"{time.perf_counter() - began:.1f} s"
    for line in page(conditions, figures, scores):
        print(line)
    written = evaluation_json(
        {**conditions, "language": language.record(), "stages": stages}, figures, scores
    )
    with writing(*report_place):
        write_file(file, _dump(written))
    # What was not trained here has no place on the axis, and averages are no points of the curve.
    if tensorboard and trained is not None and weights == "trained":
        from torch.utils.tensorboard import SummaryWriter

        from lit_pretrain.report.tensorboard import TEXT_LOSS, tag_of

        with writing(*events_place):
            writer = SummaryWriter(str(home), filename_suffix=".evaluate")
            for key, value in flat(figures, scores).items():
                writer.add_scalar(tag_of(key, TEXT_LOSS), value, step)
            writer.close()
    print(f"report: {file}")
    return 0


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _network(path: Path, precision: str, device: str, weights: Weights) -> Any:
    """Load the network on its device, with the autocast of its precision."""
    from contextlib import nullcontext

    import torch

    from lit_pretrain.checkpoint.network import load_network
    from lit_pretrain.cli.command.load_run import choose_device

    place = choose_device(device)
    autocast = torch.autocast(place, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    return load_network(path, average=weights == "average").to(place).eval(), autocast


def _held_out(
    path: Path,
    data: str | None,
    precision: str,
    device: str,
    accept: list[str],
    trust: bool,
    weights: str,
) -> tuple[dict[str, dict[str, float]], str]:
    """Measure loss, perplexity and bits per byte by source, as `validate` does.

    Returns them and the place of the data.

    Raises:
        UserError: The run's own data is of another kind, or is gone.
    """
    from lit_pretrain.checkpoint.layout import config_of
    from lit_pretrain.cli.command.load_run import choose_device
    from lit_pretrain.cli.validate import EvaluateCLI, check_losses

    saved = config_of(path)["data"]
    rows = "class_path" in saved
    options = [
        f"--run={path}",
        f"--trainer.precision={precision}",
        f"--trainer.accelerator={choose_device(device)}",
        f"--trust={str(trust).lower()}",
    ]
    options += [f"--accept={accept}", f"--weights={weights}"]
    if data is not None:
        if rows:
            options += ["--data=lit_pretrain.data.TextData", f"--data.path={data}"]
        else:
            options += [f"--data.path={data}"]
        options += ["--model.objective=lit_pretrain.objective.CrossEntropy"]
    elif not rows and not saved.get("path"):
        raise UserError(
            f"the run of {path} was not trained here and names no data: give --data DATASET, or"
            " --held_out=false with --tasks"
        )
    cli = EvaluateCLI("validate", options)
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    found = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    check_losses(found, "val", str(path))
    if "val/bits_per_byte" not in found:
        raise UserError(
            f"the objective of {path} has no loss per token: `lit_pretrain validate --run"
            f" {path.parent.parent}` reports its figures; here give --data DATASET, a prepared"
            " dataset, or --held_out=false"
        )
    figures = {"all": (found["val/loss"], found["val/bits_per_byte"])}
    for source in cli.datamodule.sources:
        if f"val_loss/{source}" in found:
            figures[source] = (found[f"val_loss/{source}"], found[f"val_bits_per_byte/{source}"])
    named = {
        source: {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}
        for source, (loss, bits) in figures.items()
    }
    return named, str(cli.datamodule.location)


def main(argv: list[str]) -> int:
    """Run `lit_pretrain evaluate RUN`."""
    from lit_pretrain.cli.command.parser import run_function

    return run_function("evaluate", __doc__, evaluate_run, argv, as_positional=True)


VERB = Verb(main, example="lit_pretrain evaluate runs/quickstart")
