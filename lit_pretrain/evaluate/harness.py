"""Tasks of lm-evaluation-harness on a network of ours, and the report of their scores.

A score never stands without the conditions that it was measured under.
"""

import dataclasses
import importlib.util
import io
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO, TypedDict

from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.lineage import StageRecord
from lit_pretrain.decontaminate.evaluation_set import DecontaminationRecord, content_sha256
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.plain_data import check_yaml_file
from lit_pretrain.record_files import read_records

if TYPE_CHECKING:
    from lit_pretrain.model.transformer import Transformer

LM_EVAL = "lm_eval"


class WithoutBars(io.TextIOBase):
    """Pass a stream on without progress bars, which begin with a carriage return."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._after_bar = False

    def write(self, text: str) -> int:
        """Write what is neither a bar nor the end of one."""
        bar = text.startswith("\r") or (self._after_bar and not text.strip())
        if not bar:
            self.stream.write(text)
        self._after_bar = bar
        return len(text)


@dataclass(frozen=True)
class EvaluationRequest:
    """Say which tasks to score, and how."""

    tasks: tuple[str, ...]
    """Names of the harness's tasks, of tasks in `include`, or YAML files."""
    include: str | None = None
    """A folder of more task files."""
    shots: int | None = None
    """Examples before each question; None: as the task says."""
    limit: int | None = None
    """Only the first so many items of each task."""
    batch_size: int = 16
    """Rows at once."""
    bos: bool | None = None
    """Whether contexts begin with bos; None: as prompts of this network do."""
    apply_chat_template: bool = False
    """Put questions as conversations."""
    seed: int = 1234
    """Of the choice of examples, and of answers that are sampled."""


DecontaminationVerdict = Literal["clean", "contaminated", "undeclared"]


class DecontaminationStatus(NamedTuple):
    """Whether an evaluation set is among the training data."""

    verdict: DecontaminationVerdict
    """clean: the data of every stage was compared with the set, and no hit is left. contaminated:
    hits were found and kept. undeclared: some data was never compared with it, or is not known.
    """
    reason: str
    """The stages that decide the verdict, in words."""


@dataclass(frozen=True)
class Score:
    """Hold the result of one task."""

    task: str
    metrics: Mapping[str, float]
    """By the harness's names, such as acc or exact_match,strict-match; those of the default
    filter without it.
    """
    errors: Mapping[str, float]
    """Standard errors of those that have one."""
    shots: int
    items: int
    version: str
    status: DecontaminationStatus


def check_installed() -> str:
    """Return the version of the harness.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec(LM_EVAL) is None:
        raise UserError(
            "tasks need lm-evaluation-harness: install the extra, as in: bash scripts/setup.sh eval"
        )
    from importlib.metadata import version

    return version(LM_EVAL)


def load_tasks(request: EvaluationRequest) -> Any:
    """Load the harness's task objects.

    Raises:
        UserError: A task is not known, or its data cannot be read.
    """
    check_installed()
    from lm_eval.tasks import TaskManager

    for name in (LM_EVAL, "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if request.include is not None and not Path(request.include).is_dir():
        raise UserError(f"--include {request.include} is not a folder")
    files = {name for name in request.tasks if name.endswith((".yaml", ".yml"))}
    folder = [] if request.include is None else sorted(Path(request.include).rglob("*.yaml"))
    for file in [*map(Path, sorted(files)), *folder]:
        check_yaml_file(file, "the task file")
    manager = TaskManager(include_path=request.include, include_defaults=False)
    if not set(request.tasks) - files <= set(manager.all_tasks):
        manager = TaskManager(include_path=request.include)  # reads some ten thousand files
    unknown = sorted(set(request.tasks) - files - set(manager.all_tasks))
    if unknown:
        hint = did_you_mean(unknown[0], manager.all_tasks, limit=3)
        raise UserError(f"there is no task {unknown[0]!r}.{hint or ' Name one, or a YAML file.'}")
    try:
        with redirect_stderr(WithoutBars(sys.stderr)):
            return manager.load(list(request.tasks))
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        ImportError,
        AttributeError,
    ) as error:  # what datasets and the harness raise for data and task files
        raise UserError(
            f"the tasks {', '.join(request.tasks)} cannot be loaded: {type(error).__name__}:"
            f" {error}"
        ) from error


def run_tasks(
    net: "Transformer",
    language: ModelTokenizer,
    request: EvaluationRequest,
    stages: Sequence[StageRecord],
    *,
    loaded: Any = None,
    autocast: AbstractContextManager[Any] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Score a network on tasks.

    Args:
        net: The network; dropout is off and weights are untouched.
        language: Its tokenizer and template.
        request: Which tasks, and how.
        stages: Its lineage.
        loaded: What `load_tasks` gave.
        autocast: In which scores are computed; None: in the dtype of the weights.
        on_batch: Called after every batch of requests.
    """
    loaded = load_tasks(request) if loaded is None else loaded
    from lm_eval.evaluator import evaluate

    from lit_pretrain.evaluate.language_model import NetworkLM

    lm = NetworkLM(
        net,
        language,
        bos=begins_with_bos(language, request),
        chat=request.apply_chat_template,
        batch_size=request.batch_size,
        autocast=nullcontext() if autocast is None else autocast,
        seed=request.seed,
        on_batch=on_batch,
    )
    for task in loaded["tasks"].values():
        if request.shots is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=request.shots or 0)
        task.set_fewshot_seed(seed=request.seed)
    with redirect_stderr(WithoutBars(sys.stderr)), redirect_stdout(sys.stderr):
        results = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=request.limit,
            bootstrap_iters=1000,  # only for metrics whose error has no formula
            log_samples=False,
            apply_chat_template=request.apply_chat_template,
            fewshot_as_multiturn=request.apply_chat_template,
        )
    scores = []
    for name, task in loaded["tasks"].items():
        metrics, errors = _numbers(results["results"][name])
        scores.append(
            Score(
                task=name,
                metrics=metrics,
                errors=errors,
                shots=int(results["n-shot"][name]),
                items=int(results["n-samples"][name]["effective"]),
                version=str(results["versions"][name]),
                status=decontamination_status(content_hashes(task), stages),
            )
        )
    return scores


def begins_with_bos(language: ModelTokenizer, request: EvaluationRequest) -> bool:
    """Tell whether contexts begin with bos."""
    if request.apply_chat_template:
        return False  # the template writes it, if it is wanted
    return language.adds_bos if request.bos is None else request.bos


def _numbers(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Split the results of a task into metrics and their standard errors."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in result.items():
        name, _, how = key.partition(",")
        if not isinstance(value, (int, float)) or not how:
            continue  # alias, and sizes
        label = name.removesuffix("_stderr") + ("" if how == "none" else f",{how}")
        (errors if name.endswith("_stderr") else metrics)[label] = float(value)
    return metrics, errors


def content_hashes(task: Any) -> frozenset[str]:
    """Hash the records that a task asks about, in its local files and as the harness reads them."""
    split = task.config.test_split or task.config.validation_split
    hashes = set()
    files = (task.config.dataset_kwargs or {}).get("data_files")
    named = files.get(split) if isinstance(files, Mapping) else files
    for file in [named] if isinstance(named, str) else named or []:
        if "://" not in file:
            hashes.add(content_sha256(read_records(file)))
    rows = task.dataset[split] if task.dataset is not None and split in task.dataset else []
    hashes.add(content_sha256([dict(row) for row in rows]))
    return frozenset(hashes)


def decontamination_status(
    content_hashes: frozenset[str], stages: Sequence[StageRecord]
) -> DecontaminationStatus:
    """Judge an evaluation set for a network.

    Args:
        content_hashes: sha256 of the set's records (`evaluation_set.content_sha256`), as they lie
            in its file and as the harness reads them.
        stages: The network's lineage.
    """
    undeclared, contaminated, clean = [], [], []
    for stage in stages:
        data = stage["data"]
        if data is None:
            undeclared.append(f"what {stage['name']} was trained on is not known")
            continue
        if not data["sources"]:
            continue  # merge and export read no data
        records = [DecontaminationRecord.from_json(raw) for raw in data["gate"]]
        record = next((r for r in records if r.content_sha256 in content_hashes), None)
        if record is None:
            undeclared.append(f"{data['where']} was never decontaminated against it")
        elif not record.clean:
            contaminated.append(
                f"{data['where']} holds {record.items_hit:,} of its {record.items:,} items"
                f" ({record.documents_hit:,} documents)"
            )
        else:
            rest = (
                f", {record.unchecked_items:,} of {record.items:,} items too short to be looked for"
                if record.unchecked_items
                else ""
            )
            clean.append(f"{data['where']} was decontaminated against it as {record.name}{rest}")
    if contaminated:
        return DecontaminationStatus("contaminated", "; ".join(contaminated + undeclared))
    if undeclared or not clean:
        return DecontaminationStatus("undeclared", "; ".join(undeclared) or "no data is recorded")
    return DecontaminationStatus("clean", "; ".join(clean))


class EvaluationReport(TypedDict):
    """The report of `evaluate`, as its file holds it."""

    conditions: dict[str, object]
    """What it was measured on and with."""
    held_out: dict[str, dict[str, float]]
    """Source -> loss (nats per token), perplexity and bits per byte."""
    tasks: dict[str, dict[str, object]]
    """Name of the task -> its `Score` and status."""


def evaluation_json(
    conditions: Mapping[str, Any],
    held_out: Mapping[str, Mapping[str, float]],
    scores: Sequence[Score],
) -> EvaluationReport:
    """Collect the whole report as JSON values.

    Args:
        conditions: What it was measured on and with.
        held_out: Source -> loss (nats per token), perplexity and bits per byte.
        scores: Of the tasks.
    """
    tasks = {
        score.task: {**dataclasses.asdict(score), "status": score.status._asdict()}
        for score in scores
    }
    return {
        "conditions": dict(conditions),
        "held_out": {name: dict(values) for name, values in held_out.items()},
        "tasks": tasks,
    }


def flat(held_out: Mapping[str, Mapping[str, float]], scores: Sequence[Score]) -> dict[str, float]:
    """Give each figure one name, for TensorBoard and metrics.jsonl."""
    figures = {
        f"eval/{key}/{source}": value
        for source, values in held_out.items()
        for key, value in values.items()
    }
    return figures | {
        f"eval_{score.task}/{metric}": value
        for score in scores
        for metric, value in score.metrics.items()
    }


def page(
    conditions: Mapping[str, Any],
    held_out: Mapping[str, Mapping[str, float]],
    scores: Sequence[Score],
) -> list[str]:
    """Lay the report out as lines: conditions, held-out text by source, tasks."""
    width = max(map(len, conditions), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in conditions.items()]
    if held_out:
        lines += [
            "",
            f"{'held-out text':<20} {'nats/token':>11} {'perplexity':>11} {'bits/byte':>10}",
        ]
        for name, values in held_out.items():
            lines.append(
                f"{name:<20} {values['loss']:>11.4f} {values['perplexity']:>11.2f}"
                f" {values['bits_per_byte']:>10.4f}"
            )
    if scores:
        lines += [
            "",
            (
                f"{'task':<20} {'metric':<24} {'value':>10} {'±':>8} {'items':>6} {'shots':>5} "
                " decontamination"
            ),
        ]
        for score in scores:
            for i, (metric, value) in enumerate(score.metrics.items()):
                error = f"{_short(score.errors[metric]) if metric in score.errors else '':>8}"
                where = f"{score.status.verdict}: {score.status.reason}" if i == 0 else ""
                name = score.task if i == 0 else ""
                lines.append(
                    f"{name:<20} {metric:<24} {_short(value):>10} {error} {score.items:>6}"
                    f" {score.shots:>5}  {where}".rstrip()
                )
    return lines


def _short(value: float) -> str:
    """Write four decimals or, for the perplexity of an untrained network, four digits."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
