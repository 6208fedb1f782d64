"""`plan --minutes`: propose the shape that a time is best spent on, and say why others lose."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.cli.command.arguments import split_configs
from lit_pretrain.cli.plan import PlanSettings
from lit_pretrain.cli.plan.measured_steps import (
    keep_measured,
    measure_step,
    read_measured,
    setting_of,
)
from lit_pretrain.cli.plan.question import PlanCLI, ask
from lit_pretrain.cli.scaling.options import aligned
from lit_pretrain.cli.train.fit_plan import device_memory
from lit_pretrain.cli.train.resolve import UNITS, optimizer_of, settings_of
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, count_parameters, padded_vocab_size
from lit_pretrain.report.charts import clock, short
from lit_pretrain.scaling import memory
from lit_pretrain.scaling.flops import beside, flops_per_token
from lit_pretrain.scaling.plan import Question
from lit_pretrain.scaling.published import DEFAULT, find_law, published_law
from lit_pretrain.scaling.shape_search import (
    CPU,
    RACED,
    SHOWN,
    BitsLaw,
    MeasuredCost,
    Seconds,
    ShapeCandidate,
    ShapeSearch,
    Text,
    TimedStep,
    bits_law,
    search_shapes,
    size_by,
)
from lit_pretrain.scaling.step_time import RATES, Cluster, MatrixUpdate, step_time

MEASURED = 2
"""Shapes that a call measures at most: the first guess, and the best by what that has shown."""
INSTEAD = {
    "hours": "minutes are the time", "days": "minutes are the time",
    "dollars": "minutes are the budget", "tokens_per_second": "it is of one shape, and others run"
    " at other speeds: they are measured here, or --device names a known one",
    "unique_tokens": "the datasets have theirs", "inference_tokens": "it is for one shape",
    "price": "no money is computed", "png": "a picture shows the plan of one shape",
}  # fmt: skip
"""Options that do not go with --minutes, and why."""


class ShapeReport(TypedDict):
    """A shape, and what comes of it in the time."""

    n_layer: int
    width: int
    n_head: int
    vocab_size: int
    data: str
    parameters: int
    working: int
    """Parameters that multiply every token: matrices and head."""
    step_seconds: float
    measured: str | None
    """Date of the measurement; None where the seconds are computed."""
    steps: int
    tokens: int
    passes: float
    bits_per_byte: float
    why: str
    """Why it loses to the best; empty for that."""


class ShapesReport(TypedDict):
    """The proposal, as `plan --minutes --json` prints it."""

    minutes: float
    time_from: list[str]
    law: str
    trust: list[str]
    tried: int
    too_large: int
    best: list[ShapeReport]
    """The proposal first."""
    neighbours: list[ShapeReport]
    own: ShapeReport | None
    """The shape of the config."""
    command: str


def propose_shape(cli: PlanCLI, argv: Sequence[str]) -> ShapesReport:
    """Search the shapes for the time that `--minutes` gives.

    Raises:
        UserError: The options do not go together, the dataset is not here, or the time is none.
    """
    settings = cli.settings
    minutes = settings.minutes
    assert minutes is not None
    _check(cli, minutes)
    question = ask(cli, bare=False)
    if question.stage != "pretrain":
        raise UserError(
            "--minutes proposes the shape of a network that is pretrained; the config plans"
            f" {question.stage}"
        )
    batch = question.batch_tokens
    assert batch is not None  # prepared text has a size of the step
    texts = _texts(cli, question)
    law = None if settings.law is None else bits_law(find_law(settings.law), texts[0])
    if law is not None and len(texts) > 1 and Path(law.name).is_file():
        raise UserError(
            f"--law {law.name} is of the tokens of one vocabulary, and --datasets compares several"
        )
    goodput = 1.0 if settings.goodput is None else question.goodput

    def search(seconds: Seconds) -> ShapeSearch:
        def by(law: BitsLaw) -> ShapeSearch:
            return search_shapes(
                question.net, texts, batch, minutes=minutes * goodput, seconds=seconds, law=law,
                fits=lambda net: _fits(net, question),
            )  # fmt: skip

        if law is not None:
            return by(law)
        large = by(bits_law(published_law(DEFAULT), texts[0]))
        return by(RACED) if large.law.outside(large.best.net, large.best.useful_bytes) else large

    if question.device is None and settings.device is not None:
        raise UserError(
            f"--device {settings.device} has no known peak, so no time of a step is known:"
            " leave --device out to measure this machine"
        )
    if question.device is None:
        found, measured, time_from = _on_this_machine(cli, question, batch, search)
    else:
        seconds, time_from = _on_device(cli, question)
        found, measured = search(seconds), []
    if goodput < 1:
        time_from.append(f"{goodput:.0%} of the time (--goodput)")
    return _report(cli, argv, found, measured, minutes, time_from)


def _check(cli: PlanCLI, minutes: float) -> None:
    """Refuse what does not go with --minutes."""
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes {minutes:g} must be positive and finite")
    for name, why in INSTEAD.items():
        if cli.given.get(name) is not None:
            raise UserError(f"--{name} does not go with --minutes: {why}; leave one of them out")
    if cli.given.get("devices") is not None and cli.settings.device is None:
        raise UserError(
            "--devices counts devices of the kind that --device names; steps on this machine are"
            " measured on trainer.devices"
        )
    lengths = [name for name in UNITS if cli.config[name] is not None]
    if lengths:
        raise UserError(
            f"--minutes decides the length, so leave {lengths[0]}={cli.config[lengths[0]]:g} out"
        )
    if cli.settings.layout == "auto":
        raise UserError("--layout auto is for one shape: choose the shape first, without it")
    if not cli.names_data:
        raise UserError(
            "--minutes needs the dataset, whose tokens and bytes decide with the shape: give"
            " --data.path, or a config that names it"
        )


# ------------------------------------------------------------------ the text


def _texts(cli: PlanCLI, question: Question) -> list[Text]:
    """Read tokens and bytes of the config's dataset and of those beside it."""
    own = settings_of(cli.config.data)["path"]
    paths = list(dict.fromkeys([own, *cli.settings.datasets]))
    manifests = {path: _manifest(path) for path in paths}
    content = [
        {name: source.content_sha256 for name, source in manifest.sources.items()}
        for manifest in manifests.values()
    ]
    for path, its in zip(paths, content, strict=True):
        if its != content[0]:
            raise UserError(
                f"--datasets: {path} is made of other files than {own}, so their bits per byte do"
                " not compare; give datasets of the same text with other vocabularies"
            )
    found = []
    for path, manifest in manifests.items():
        splits = [source.splits["train"] for source in manifest.sources.values()]
        rows = padded_vocab_size(manifest.tokenizer.vocab_size)
        found.append(
            Text(
                path=path,
                vocab_size=question.net.vocab_size if path == own else rows,
                tokens=float(sum(split.tokens for split in splits)),
                bytes=float(sum(split.bytes for split in splits)),
            )
        )
    return found


def _manifest(path: str) -> Manifest:
    if "://" in path or not (Path(path) / MANIFEST_FILENAME).is_file():
        raise UserError(
            f"{path} is no prepared dataset on this machine (it has no {MANIFEST_FILENAME}), and"
            " --minutes needs its tokens and bytes: prepare it first, or give the path of a copy"
        )
    return Manifest.load(Path(path))


# ------------------------------------------------------------------ the time


def _on_this_machine(
    cli: PlanCLI,
    question: Question,
    batch: BatchSizes,
    search: Callable[[Seconds], ShapeSearch],
) -> tuple[ShapeSearch, list[TimedStep], list[str]]:
    """Measure steps of the best shapes, and search with what they show."""
    config = cli.plain_config()
    for name in (*PlanSettings.__dataclass_fields__, "tokenizer", "from", "config"):
        config.pop(name, None)  # no options of `fit`, or none of a network that begins anew
    setting = setting_of(config, question.net)
    tokens = batch.sizes[0]
    measured = [] if cli.settings.measure else read_measured(setting, question.net)
    found = search(MeasuredCost(CPU, measured).seconds if measured else CPU.seconds)
    for _ in range(MEASURED):
        best = found.best
        if any(each.net == best.net for each in measured):
            break
        measured.append(measure_step(setting, best.net, best.text.path, tokens))
        keep_measured(setting, measured)
        found = search(MeasuredCost(CPU, measured).seconds)
    shapes = "; ".join(
        f"{each.net.n_layer} × {each.net.width}, {each.net.vocab_size:,} tokens,"
        f" {each.seconds:.3g} s ({each.date})"
        for each in measured
    )
    return (
        found,
        measured,
        [
            f"{setting.machine}",
            f"steps of {tokens:,} tokens measured here: {shapes}; --measure measures again",
            "other shapes by the proportions of their parts, which were within 8 % of the steps of"
            " 18 shapes",
            "of training steps alone: starting, compiling, validating and saving come on top",
        ],
    )


def _on_device(cli: PlanCLI, question: Question) -> tuple[Seconds, list[str]]:
    """Compute the seconds of a step from the table of devices."""
    q, device = question, question.device
    assert device is not None
    peak = device.peak(q.dtype)
    if peak is None:
        raise UserError(
            f"the peak of {device.name} in {q.dtype} is not known, so no time of a step is: name"
            " another --device or --dtype, or leave --device out to measure this machine"
        )
    devices = q.layout.devices
    if cli.settings.mfu is None and device.name in RATES:
        network = cli.settings.network_gbits
        cluster = Cluster.of(
            device, q.dtype, machine=cli.settings.machine_devices,
            network=None if network is None else network * 1e9 / 8,
        )  # fmt: skip
        work = optimizer_of(cli.config).update_work
        micro_batches = q.layout.micro_batches or 1
        groups = devices // q.layout.together
        whole = q.layout.rows // q.layout.group * micro_batches * groups * q.layout.seq_len

        def by_parts(net: ModelConfig, tokens: int) -> float:
            parts = step_time(
                net, q.layout, cluster, micro_batches=micro_batches,
                update=MatrixUpdate(net, work),
            )  # fmt: skip
            per_token = (parts.seconds - parts.optimizer) / whole
            return per_token * tokens + parts.optimizer

        return by_parts, [
            f"{devices:,} × {device.name} in {q.dtype}, by the table of devices:"
            f" {cluster.rates.source}",
            "what launching kernels costs is not in it: networks of a few million parameters run"
            " slower",
        ]
    assert q.mfu is not None
    share = q.mfu

    def by_flops(net: ModelConfig, tokens: int) -> float:
        per_token = flops_per_token(net, q.layout.seq_len).training
        return per_token * tokens / (peak * share.value * devices)

    return by_flops, [
        f"{devices:,} × {device.name} in {q.dtype}, {share.value:.0%} of the peak at every shape"
        f" ({share.source})"
    ]


def _fits(net: ModelConfig, question: Question) -> bool:
    limit = question.limit
    layout = question.layout
    if limit is None and question.device is None:
        limit = device_memory(layout.device)
    needed = memory.peak(net, layout).bytes
    return limit is None or needed + beside(needed, layout.device) <= limit


# ------------------------------------------------------------------ the answer


def _report(
    cli: PlanCLI,
    argv: Sequence[str],
    found: ShapeSearch,
    measured: Sequence[TimedStep],
    minutes: float,
    time_from: list[str],
) -> ShapesReport:
    law, best = found.law, found.best
    dates = {each.net: each.date for each in measured}

    def told(its: ShapeCandidate) -> ShapeReport:
        counts = count_parameters(its.net)
        return {
            "n_layer": its.net.n_layer, "width": its.net.width, "n_head": its.net.n_head,
            "vocab_size": its.net.vocab_size, "data": its.text.path,
            "parameters": counts.total, "working": counts.matmul,
            "step_seconds": its.step_seconds, "measured": dates.get(its.net),
            "steps": its.steps, "tokens": its.tokens, "passes": its.passes,
            "bits_per_byte": its.bits, "why": "" if its is best else why(its, best, found.law),
        }  # fmt: skip

    return {
        "minutes": minutes,
        "time_from": time_from,
        "law": (
            f"{law.name}: {law.e:.4g} + {law.a:.4g} / N^{law.alpha:.3g} + {law.b:.4g}"
            + (f" V^{law.gamma:.3g}" if law.gamma else "")
            + f" / S^{law.beta:.3g} bits per byte, N {_COUNTED[law.counts]}, S bytes read"
            + (", V the vocabulary" if law.gamma else "")
            + f"; {law.source}"
        ),
        "trust": _trust(found),
        "tried": len(found.found),
        "too_large": found.too_large,
        "best": [told(its) for its in found.found[:SHOWN]],
        "neighbours": [told(its) for its in found.neighbours()],
        "own": None if found.own is None else told(found.own),
        "command": fit_command(cli, argv, best),
    }


_COUNTED = {
    "blocks": "parameters in the blocks' matrices",
    "matmul": "parameters in matrix products",
    "total": "all parameters",
    "nonembed": "parameters without embeddings",
}


def why(other: ShapeCandidate, best: ShapeCandidate, law: BitsLaw) -> str:
    """Say what a shape loses to the best one, and what it gains."""
    size = size_by(other.net, law.counts) / size_by(best.net, law.counts)
    read = other.useful_bytes / best.useful_bytes
    parts = [
        (other.terms.network - best.terms.network, f"{size:.2f} × the size"),
        (other.terms.text - best.terms.text, f"{read:.2f} × the text"),
    ]
    return ", ".join(f"{what} {more:+.3f}" for more, what in sorted(parts, reverse=True))


def _trust(found: ShapeSearch) -> list[str]:
    """Say how far the forecast can be trusted."""
    law, best = found.law, found.best
    outside = law.outside(best.net, best.useful_bytes)
    close = sum(its.bits <= 1.01 * best.bits for its in found.found)
    said = [
        f"{close} of {len(found.found)} shapes lie within 1 % of the best: among them the law"
        " cannot choose, and a race can (scripts/race.py)"
        if close > 1
        else "no other shape comes within 1 %"
    ]
    if outside:
        said.append(f"outside the law's range: {'; '.join(outside)}. The order is a guess there")
    else:
        said.append("within the law's range")
    said.append(
        "differences between shapes are what the law is for: other text, and another recipe, have"
        " other values"
    )
    return said


def fit_command(cli: PlanCLI, argv: Sequence[str], best: ShapeCandidate) -> str:
    """Write the line that trains a shape."""
    net, own = best.net, cli.config.model.net
    ours: dict[str, int | str] = {
        "model.net.n_layer": net.n_layer, "model.net.width": net.width,
        "model.net.n_head": net.n_head,
    }  # fmt: skip
    if own.head_dim is not None and net.head_dim is None:
        ours["model.net.head_dim"] = "null"
    for name in ("n_kv_head", "ffn_width"):
        if getattr(own, name) is not None:
            value = getattr(net, name)
            ours[f"model.net.{name}"] = "null" if value is None else value
    given = settings_of(cli.config.data)["path"]
    if best.text.path != given:
        ours["data.path"] = best.text.path
    ours["max_steps"] = best.steps
    configs, others = split_configs(list(argv))
    kept = _without(others, {*PlanSettings.__dataclass_fields__, *ours})
    words = ["lit_pretrain", "fit"]
    words += [word for config in configs for word in ("--config", config)]
    words += kept
    words += [word for name, value in ours.items() for word in (f"--{name}", str(value))]
    return shlex.join(words)


def _without(args: Sequence[str], names: set[str]) -> list[str]:
    """Leave options out of a command line, with their values."""
    kept, rest = [], list(args)
    while rest:
        arg = rest.pop(0)
        name, equals, _ = arg.removeprefix("--").partition("=")
        value = [] if equals or not rest or rest[0].startswith("--") else [rest.pop(0)]
        if name.removesuffix("+") not in names:
            kept += [arg, *value]
    return kept


def shapes_table(report: ShapesReport) -> str:
    """Format a proposal."""
    title = f"shapes for {_minutes(report['minutes'])}"
    rows: list[tuple[str, ...]] = [
        ("", "layers × width", "vocabulary", "parameters", "at work", "s/step", "steps", "tokens",
         "passes", "bits/byte", ""),
    ]  # fmt: skip
    best = report["best"]
    shown = [(str(place), shape) for place, shape in enumerate(best, 1)]
    own = report["own"]
    if own is not None and own not in best:
        shown.append(("yours", own))
    lowest = best[0]["bits_per_byte"]
    rows += [_row(place, shape, lowest) for place, shape in shown]
    lines = [title, "─" * len(title), *aligned(rows, left=(0, 1, 10)), ""]
    lines.append("why its neighbours lose (differences in bits per byte)")
    lines += [
        f"  {shape['n_layer']} × {shape['width']}, {shape['vocab_size']:,} tokens"
        f" ({shape['bits_per_byte'] - lowest:+.3f}): {shape['why']}"
        for shape in report["neighbours"]
    ]
    lines += ["", "time"]
    lines += [f"  {line}" for line in report["time_from"]]
    lines += ["", "loss", f"  {report['law']}"]
    lines += [f"  {line}" for line in report["trust"]]
    large = f"; {report['too_large']:,} do not fit in memory" if report["too_large"] else ""
    lines += [f"  {report['tried']:,} shapes tried{large}", "", "to train the first:"]
    return "\n".join([*lines, f"  {report['command']}"]) + "\n"


def _row(place: str, shape: ShapeReport, lowest: float) -> tuple[str, ...]:
    more = shape["bits_per_byte"] / lowest - 1
    return (
        place, f"{shape['n_layer']} × {shape['width']}", f"{shape['vocab_size']:,}",
        short(shape["parameters"]), short(shape["working"]), f"{shape['step_seconds']:.3g}",
        f"{shape['steps']:,}", short(shape["tokens"]), f"{shape['passes']:.2f}",
        f"{shape['bits_per_byte']:.4f}", f"{more:+.1%}" if place != "1" else "",
    )  # fmt: skip


def _minutes(minutes: float) -> str:
    return f"{minutes:g} minutes" if minutes < 120 else f"{clock(60 * minutes)} ({minutes:g} min)"
