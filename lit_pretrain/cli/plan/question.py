"""The question of `plan`: parse the options of `fit` and of a plan, note what nobody gave.

Every gap is filled as `fit` fills it, and listed with its source as an `Assumption`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lit_pretrain.batch_sizes import BATCH_SETTINGS, BatchSizes, scheduled_batches
from lit_pretrain.cli.plan import PlanSettings
from lit_pretrain.cli.train.auto_parallel import AUTO
from lit_pretrain.cli.train.fit_plan import answers, frozen_parameters, trained_share
from lit_pretrain.cli.train.resolve import (
    UNITS,
    adapter_of,
    build,
    instantiate,
    mesh_of,
    optimizer_of,
    parallel_in,
    settings_of,
    transferred_net,
)
from lit_pretrain.cli.train.train_cli import TrainCLI, TrainParser
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest
from lit_pretrain.data.data_module import BaseData
from lit_pretrain.errors import UserError, did_you_mean, warn
from lit_pretrain.model.config import ModelConfig, count_parameters, padded_vocab_size
from lit_pretrain.parallel.mesh import check_sizes
from lit_pretrain.parallel.strategy import sharding_of
from lit_pretrain.roles import ROLES
from lit_pretrain.scaling.flops import (
    BASE,
    GIB,
    HEAP,
    Device,
    StageName,
    Utilization,
    find_device,
    known_devices,
    source,
    stage_cost,
)
from lit_pretrain.scaling.memory import Layout, offloaded
from lit_pretrain.scaling.plan import Assumption, Question
from lit_pretrain.scaling.planner import DAY, HOUR
from lit_pretrain.scaling.step_time import HOST
from lit_pretrain.step_size import (
    MeshSizes,
    StepSize,
    common_rows,
    counted,
    fullest,
    sizes_in_tokens,
)

GOODPUT = Utilization(
    0.9, "Llama Team 2024, section 3.3.4: more than 90 % effective training time on 16,384 GPUs"
)
UNCOUNTED_STEPS = 100
"""Steps to plan where a length in epochs cannot be counted, because its rows are elsewhere."""
_SIZES = ("seq_len", "micro_batch_size", "global_batch_tokens")


class PlanCLI(TrainCLI):
    """The config of a training command with the options of a plan; nothing is instantiated."""

    def __init__(self, args: ArgsType) -> None:
        self.settings: PlanSettings  # type: ignore[assignment]  # a plan's in place of a run's
        self.given: Namespace
        """What files and command line say, without any default."""
        super().__init__("plan", args)

    @property
    def names_data(self) -> bool:
        """Whether the options name data; if not, they describe a network alone."""
        return any(self.given.get(f"data.{name}") is not None for name in ("path", "class_path"))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a plan to those of a run."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(PlanSettings, None)
        assert isinstance(parser, TrainParser)
        parser.first_page = {"Plan": ("config", *PlanSettings.__dataclass_fields__)}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse once with the defaults, and once without to learn what is given."""
        assert isinstance(args, list)
        super().parse_arguments(parser, args)
        self.given = parser.parse_args(args, defaults=False)

    def before_instantiate_classes(self) -> None:
        """Take the tokenizer from the parent, as a run does."""
        fields = PlanSettings.__dataclass_fields__
        self.settings = PlanSettings(**{name: self.config[name] for name in fields})
        self.take_tokenizer()
        if self.parent is not None:
            self.config.model.init_from = str(self.parent.path)

    def instantiate_classes(self) -> None:
        """Make nothing: a plan needs sizes only."""


@dataclass(frozen=True)
class StepLayout:
    """How the data lays out an optimizer step."""

    seq_len: int
    rows: int
    """Samples of a micro-batch on one device."""
    sizes: Sequence[StepSize] = ()
    """Empty for a bare shape without data.global_batch_tokens and data.batch_schedule."""
    tokens: BatchSizes | None = None
    """Tokens of the steps over all devices; None where `sizes` is empty."""
    group: int = 1
    """Sequences that the network sees for each sample."""
    fixed: bool = False
    """Whether the loss depends on the micro-batch, which then must divide as it is."""


def ask(cli: PlanCLI, *, bare: bool, own_step: bool = True) -> Question:
    """Build the question that the options ask.

    Args:
        cli: Parsed options.
        bare: Whether to plan the network alone, for its own positions, and not as `fit` would train
            it on its default dataset.
        own_step: Whether the config decides the size of a step; False where a sweep's rule does.
    """
    config, settings, noted = cli.config, cli.settings, list[Assumption]()
    if config.parallel == AUTO:
        config.parallel, settings.layout = None, "auto"  # `choose_layout` fills it in
    data = None if bare else build(config.data, here=False)
    manifest = None if data is None else _manifest(data, noted)
    net = _net(config, data, manifest, noted)
    step = _bare_step(cli.given, net, noted) if data is None else _step(cli.given, data, noted)
    if step.seq_len > net.max_seq_len:
        raise UserError(
            f"data.seq_len={step.seq_len} is longer than the network's positions,"
            f" model.net.max_seq_len={net.max_seq_len}"
        )
    if not own_step:
        step = replace(step, sizes=(), tokens=None)
    device = _device(settings.device)
    precision, dtype = _precision(
        config.trainer.precision, settings.dtype, config.model.float8, noted
    )
    if config.model.float8 is not None and device is not None and device.peak(dtype) is None:
        raise UserError(
            f"model.float8={config.model.float8}: {device.name} has no products in fp8 that are"
            " known here: leave it out, or name another --device"
        )
    given = settings.devices
    devices = _devices_of(config.trainer) if given is None else given
    if devices is not None and devices < 1:
        raise UserError(f"devices={devices} must be at least 1")
    stage, rank = _stage(cli, data, noted)
    cost = stage_cost(net, step.seq_len, stage, rank)
    layout = _layout(cli, net, step, devices or 1, noted)
    layout = replace(
        layout, precision=precision, float8=dtype == "fp8",
        device="cpu" if device is None else "cuda", fused_norm=device is not None,
        added=cost.added, quantized=cost.quantized,
        trainable=cost.trainable * (1.0 if cost.added else trained_share(net, config.model.freeze)),
        frozen=_frozen(cli, net, reference=cost.reference),
        answering=None if data is None else answers(config, data, devices or 1),
    )  # fmt: skip
    noted.append(
        Assumption(
            "beside tensors",
            f"{BASE[layout.device] / GIB:g} GiB"
            + (f" and {HEAP[layout.device]:.0%} of them" if HEAP[layout.device] else ""),
            source(layout.device),
        )
    )
    moved = offloaded(net, layout)
    if moved:
        noted.append(
            Assumption(
                "offload",
                f"{moved / GIB:.2f} GiB of a micro-batch wait in the host's memory for each device",
                f"the inputs of the blocks, {2 * moved / HOST:.3g} s there and back at"
                f" {HOST / 1e9:g} GB/s (PCIe 5.0), not hidden and not in the MFU",
            )
        )
    utilization = _utilization(settings, device, dtype, noted)
    return Question(
        net=net, layout=layout, devices=devices, stage=stage, lora_rank=rank,
        steps=step.sizes, batch_tokens=step.tokens, fixed_rows=step.fixed,
        optimizer=optimizer_of(cli.config).name,
        device=device, dtype=dtype,
        mfu=utilization, tokens_per_second=settings.tokens_per_second,
        goodput=_goodput(settings, noted), price=settings.price,
        **(_length(cli, data, step, noted) if own_step else Length())._asdict(),
        dollars=settings.dollars, seconds=_seconds(settings),
        limit=_memory_limit(settings, device),
        unique_tokens=_unique(settings.unique_tokens, manifest),
        inference_tokens=settings.inference_tokens, law=settings.law,
        assumptions=tuple(noted),
    )  # fmt: skip


def _net(
    config: Namespace, data: BaseData | None, manifest: Manifest | None, noted: list[Assumption]
) -> ModelConfig:
    """Build the shape; the data's tokenizer sets its vocabulary where the options do not."""
    if config.model.net.vocab_size is None:
        known = _vocabulary(data, manifest)
        size = ModelConfig.vocab_size if known is None else padded_vocab_size(known)
        why = (
            "no vocab_size and no dataset is given"
            if known is None
            else "the dataset's tokenizer, padded as `fit` does"
        )
        noted.append(Assumption("vocabulary", f"{size:,}", why))
        config.model.net.vocab_size = size
    return transferred_net(config)


def _vocabulary(data: BaseData | None, manifest: Manifest | None) -> int | None:
    """Count the token ids of the data; None where neither dataset nor tokenizer is here."""
    if manifest is not None:
        return manifest.tokenizer.vocab_size
    if data is None or data.scaling_laws_apply:  # a dataset that is elsewhere
        return None
    try:
        return data.vocab_size
    except UserError:
        return None


def _bare_step(given: Namespace, net: ModelConfig, noted: list[Assumption]) -> StepLayout:
    """Lay out a step for a shape that comes without data."""
    sizes = {name: given.get(f"data.{name}") for name in _SIZES}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"data.{name}={size} must be positive")
    seq_len, rows, _ = sizes.values()
    if seq_len is None:
        seq_len = net.max_seq_len
        why = "its max_seq_len: a bare shape"
        noted.append(Assumption("data.seq_len", f"{seq_len:,}", why))
    if rows is None:
        rows = 1
        noted.append(Assumption("data.micro_batch_size", "1", "the least: a bare shape"))
    said = {name: given.get(f"data.{name}") for name in BATCH_SETTINGS}
    if all(value is None for value in said.values()):
        return StepLayout(seq_len, rows)
    said["batch_schedule"] = scheduled_batches(_plain(said["batch_schedule"]))
    batch, scheduled = BatchSizes.of(said), said["batch_schedule"] is not None
    return StepLayout(seq_len, rows, sizes_in_tokens(batch, seq_len, scheduled=scheduled), batch)


def _plain(entries: Sequence[Any] | None) -> list[Any] | None:
    """Read the entries of a list that the parser has not made into objects."""
    if entries is None:
        return None
    return [entry.as_dict() if isinstance(entry, Namespace) else entry for entry in entries]


def _step(given: Namespace, data: BaseData, noted: list[Assumption]) -> StepLayout:
    """Lay out a step as the data does, and note the sizes that are defaults of `fit`."""
    settings = settings_of(given.data) if "data" in given else {}
    for name in _SIZES:
        value = getattr(data, name, None)
        if settings.get(name) is None and value is not None:
            noted.append(Assumption(f"data.{name}", f"{value:,}", "the default of `fit`"))
    return StepLayout(
        data.seq_len, data.micro_batch_size, data.step_sizes, data.batch_tokens,
        data.sequences_per_row, data.micro_batch_is_fixed,
    )  # fmt: skip


def _layout(
    cli: PlanCLI, net: ModelConfig, step: StepLayout, devices: int, noted: list[Assumption]
) -> Layout:
    """Lay the run out on its devices, with a smaller micro-batch where a step takes one."""
    config, rows, accumulates = cli.config, step.rows, False
    sizes = mesh_of(config, devices) or MeshSizes()
    check_sizes(sizes, net, step.seq_len)
    step_rows = None
    if step.sizes:
        divisions = [
            size.divide(devices, rows, fixed=step.fixed, together=sizes.together)
            for size in step.sizes
        ]
        size, division = fullest(step.sizes, divisions)
        said, rows, step_rows = size.lowered(division, rows), division.micro_batch_size, size.rows
        noted += [] if said is None else [Assumption("micro-batch", counted(rows, "rows"), said)]
        accumulates = any(each.micro_batches > 1 for each in divisions)
    optimizer = optimizer_of(config)
    moments = {role: optimizer.moments(role) for role in ROLES}
    in_type = "" if optimizer.moment_bytes is None else f" in {optimizer.moment_bytes} bytes each"
    noted.append(
        Assumption(
            "optimizer",
            optimizer.name,
            f"it keeps {counted(optimizer.moments('matrix'), 'moments')} of a matrix and"
            f" {optimizer.moments('embedding')} of an embedding{in_type}; its workspace is not"
            " counted",
        )
    )
    return Layout(
        rows=rows * step.group, group=step.group, seq_len=step.seq_len,
        step_rows=step_rows, common_rows=common_rows(step.sizes),
        devices=devices,
        sharding=sharding_of(config.trainer.strategy, parallel_in(config), devices),
        copies=sizes.dp_replicate, cp=sizes.cp, tp=sizes.tp,
        compiled=config.model.compile != "off", head=cli.settings.head,
        checkpointing=config.model.activation_checkpointing,
        optimizer_moments=moments, moment_bytes=optimizer.moment_bytes,
        averaged=config.model.ema_half_life is not None, accumulates=accumulates,
    )  # fmt: skip


def _stage(cli: PlanCLI, data: BaseData | None, noted: list[Assumption]) -> tuple[StageName, int]:
    """Find the kind of training and the rank of its adapter."""
    if cli.settings.stage is not None:
        return cli.settings.stage, cli.settings.lora_rank
    adapter = adapter_of(cli.config)
    if adapter is not None:
        stage: StageName = "lora" if adapter.quantize is None else "qlora"
        noted.append(Assumption("stage", stage, "model.adapter"))
        return stage, adapter.rank
    objective = instantiate(cli.config.model.objective, "model.objective")
    if "ref_logp" in objective.needs:
        noted.append(Assumption("stage", "dpo", f"{type(objective).__name__} has a reference"))
        return "dpo", cli.settings.lora_rank
    if cli.parent is not None:
        noted.append(Assumption("stage", "sft", f"its weights start from {cli.parent.path}"))
        return "sft", cli.settings.lora_rank
    if data is not None and not data.scaling_laws_apply:
        noted.append(Assumption("stage", "sft", "its rows are no text for pretraining"))
        return "sft", cli.settings.lora_rank
    return "pretrain", cli.settings.lora_rank


def _frozen(cli: PlanCLI, net: ModelConfig, *, reference: bool) -> int:
    """Count the parameters of the networks that only run forward beside the one that trains."""
    if cli.settings.stage is not None:
        return count_parameters(net).total if reference else 0
    # Rows may bring the log-probabilities of a reference; a plan does not read them.
    return frozen_parameters(cli.config, frozenset())


def _manifest(data: BaseData, noted: list[Assumption]) -> Manifest | None:
    """Load the manifest of a dataset on this machine; a plan does not fetch any other."""
    path = data.location
    if not data.scaling_laws_apply:  # rows have no manifest
        return None
    if "://" in path or not (Path(path) / MANIFEST_FILENAME).is_file():
        noted.append(
            Assumption(
                "data.path", path, "not here: its unique tokens and its vocabulary are not known"
            )
        )
        return None
    return Manifest.load(Path(path))


def _unique(given: float | None, manifest: Manifest | None) -> float | None:
    if given is not None and given <= 0:
        raise UserError(f"unique_tokens={given:g} must be positive")
    if given is None and manifest is not None:
        return float(sum(source.splits["train"].tokens for source in manifest.sources.values()))
    return given


def _device(name: str | None) -> Device | None:
    if name is None:
        return None
    device = find_device(name)
    if device is None:
        warn(
            f"the device {name!r} is not known: no peak, so no time from an MFU, and no limit of"
            f" memory but --memory_gib.{did_you_mean(name, known_devices())}"
        )
    return device


def _precision(
    given: str | None, dtype: str | None, recipe: str | None, noted: list[Assumption]
) -> tuple[str, str]:
    """Return the precision of the layout, and the type of its matrix products."""
    if dtype is not None or recipe is not None:
        why = "the products of the blocks alone are in it"
        noted.append(Assumption("memory in fp8", given or "bf16-mixed", why))
        return given or "bf16-mixed", "fp8"
    if given is None:
        noted.append(
            Assumption(
                "trainer.precision",
                "bf16-mixed",
                "the default of `fit` where the device computes in bf16",
            )
        )
        return "bf16-mixed", "bf16"
    known = {
        "bf16-mixed": "bf16",
        "bf16-true": "bf16",
        "16-mixed": "fp16",
        "16-true": "fp16",
        "32-true": "tf32",
        "32": "tf32",
    }
    if given not in known:
        raise UserError(f"trainer.precision={given!r} is not one of {', '.join(known)}")
    return given, known[given]


def _devices_of(trainer: Namespace) -> int | None:
    local = trainer.devices
    if isinstance(local, str) and local.isdigit():
        local = int(local)
    local = len(local) if isinstance(local, list) else local
    nodes = trainer.num_nodes or 1
    return local * nodes if isinstance(local, int) and local > 0 else nodes if nodes > 1 else None


def _memory_limit(settings: PlanSettings, device: Device | None) -> float | None:
    if settings.memory_gib is not None:
        return float(settings.memory_gib * GIB)
    return None if device is None else device.memory


def _utilization(
    settings: PlanSettings, device: Device | None, dtype: str, noted: list[Assumption]
) -> Utilization | None:
    """Return the MFU to assume; None where the speed is measured or cannot be known."""
    if settings.mfu is not None and not 0 < settings.mfu <= 1:
        raise UserError(f"mfu={settings.mfu} must lie in (0, 1]: it is a share of the peak")
    if settings.mfu is not None and settings.tokens_per_second is not None:
        raise UserError("give mfu or tokens_per_second: each says how fast it trains")
    if device is None and settings.mfu is not None:
        raise UserError("mfu is a share of a device's peak: give --device")
    if device is None or settings.tokens_per_second is not None:
        return None
    if device.peak(dtype) is None:
        warn(
            f"the peak of {device.name} in {dtype} is not known: no time without"
            " --tokens_per_second"
        )
        return None
    if settings.mfu is not None:
        return Utilization(settings.mfu, "given")
    default = device.utilization(dtype)
    noted.append(
        Assumption(
            "MFU",
            f"{default.value:.0%} of {device.peak(dtype) or 0:.3g} FLOP/s ({device.name}, {dtype},"
            " dense)",
            default.source,
        )
    )
    return default


def _goodput(settings: PlanSettings, noted: list[Assumption]) -> float:
    if settings.goodput is not None:
        return float(settings.goodput)
    noted.append(Assumption("goodput", f"{GOODPUT.value:g}", GOODPUT.source))
    return GOODPUT.value


class Length(NamedTuple):
    """Length of a run, in tokens or in FLOPs; both None where money or time decide it."""

    tokens: float | None = None
    flops: float | None = None


def _length(
    cli: PlanCLI, data: BaseData | None, step: StepLayout, noted: list[Assumption]
) -> Length:
    """Find the length that the config gives, or that `fit` takes where it gives none."""
    config, settings = cli.config, cli.settings
    given = {name: config[name] for name in UNITS if config[name] is not None}
    if len(given) > 1:
        raise UserError(
            f"give one of {', '.join(UNITS)}; found {' and '.join(given)} (null takes one of a"
            " config back)"
        )
    if not given:
        unit, default = _default_length(data)
        if default is None or any(
            each is not None
            for each in (settings.dollars, settings.days, settings.hours, settings.minutes)
        ):
            return Length()
        noted.append(Assumption(unit, f"{default:g}", "the default of `fit`"))
        given = {unit: default}
    name, value = next(iter(given.items()))
    if name == "max_tokens":
        return Length(tokens=value)
    if name == "max_flops":
        return Length(flops=value)
    if name == "max_epochs" and data is None:
        raise UserError(
            f"max_epochs={value:g} is a length only with data: name it, or give max_steps"
        )
    if step.tokens is None:
        raise UserError(
            f"{name} is a length only with data.global_batch_tokens or data.batch_schedule: give"
            " one of them, or max_tokens"
        )
    steps = _steps_of(value, data, noted) if name == "max_epochs" and data else int(value)
    return Length(tokens=float(step.tokens.first(steps)))


def _default_length(data: BaseData | None) -> tuple[str, float | None]:
    if data is None or data.default_steps is not None:
        return "max_steps", None if data is None else data.default_steps
    return "max_epochs", data.default_epochs


def _steps_of(epochs: float, data: BaseData, noted: list[Assumption]) -> int:
    """Count the steps of some epochs; where the rows cannot be read, plan for a few and say so."""
    if data.default_steps is not None:
        return data.steps_of(epochs)
    try:
        data.check_files()
        return data.steps_of(epochs)
    except UserError as error:
        warn(
            f"max_epochs={epochs:g} cannot be counted: {error}\nThe plan takes {UNCOUNTED_STEPS}"
            " steps in its place; --max_steps gives the length."
        )
        why = f"the rows of max_epochs={epochs:g} cannot be counted here"
        noted.append(Assumption("max_steps", str(UNCOUNTED_STEPS), why))
        return UNCOUNTED_STEPS


def _seconds(settings: PlanSettings) -> float | None:
    if settings.days is not None and settings.hours is not None:
        raise UserError("give days or hours, not both")
    if settings.days is not None:
        return float(settings.days * DAY)
    return None if settings.hours is None else float(settings.hours * HOUR)
