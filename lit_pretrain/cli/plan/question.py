"""Turn a config and the options of `plan` into a question, noting an assumption for each gap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_pretrain.cli.command.notices import warn
from lit_pretrain.cli.signatures import data_parameters
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters, padded_vocab_size
from lit_pretrain.optim import OptimizerRecipe
from lit_pretrain.roles import ROLES
from lit_pretrain.scaling.flops import stage_cost
from lit_pretrain.scaling.hardware import (
    BASE,
    GIB,
    HEAP,
    Device,
    Utilization,
    find_device,
    known_devices,
    source,
)
from lit_pretrain.scaling.memory import Layout, Sharding
from lit_pretrain.scaling.plan import Assumption, Question
from lit_pretrain.scaling.planner import DAY, HOUR
from lit_pretrain.scaling.published import find_law
from lit_pretrain.step_size import StepSize, counted

GOODPUT = Utilization(
    0.9, "Llama Team 2024, section 3.3.4: more than 90 % effective training time on 16,384 GPUs"
)


def ask(
    config: Namespace, *, optimizer: type[OptimizerRecipe], bare: bool, own_step: bool = True
) -> Question:
    """Build the question that the options ask.

    Args:
        config: Parsed options.
        optimizer: Class of the optimizer's recipe.
        bare: Whether no config file has a data section: the shape is then planned for its own
            sequence length.
        own_step: Whether the config decides the size of a step; False where a sweep's rule does.
    """
    noted: list[Assumption] = []
    manifest = _manifest(config.data.path, noted)
    net = _net(config.model.net, manifest, noted)
    data = _data(config.data, net, bare=bare, noted=noted)
    device = _device(config.device)
    precision, dtype = _precision(config.trainer.precision, noted)
    devices = config.devices or _devices_of(config.trainer)
    if devices is not None and devices < 1:
        raise UserError(f"devices={devices} must be at least 1")
    sharding = _sharding(config.trainer.strategy, devices or 1)
    step, rows = data["global_batch_tokens"] if own_step else None, data["micro_batch_size"]
    size = None if step is None else StepSize(step, data["seq_len"])
    division = None if size is None else size.divide(devices or 1, rows)
    if size is not None and division is not None:
        said, rows = size.lowered(division, rows), division.micro_batch_size
        noted += [] if said is None else [Assumption("micro-batch", counted(rows, "rows"), said)]
    cost = stage_cost(net, data["seq_len"], config.stage, config.lora_rank)
    moments = {role: optimizer.moments(role) for role in ROLES}
    layout = Layout(
        rows=rows, seq_len=data["seq_len"], step_rows=None if size is None else size.rows,
        devices=devices or 1, sharding=sharding, precision=precision,
        compiled=config.model.compile != "off", head=config.head,
        checkpointing=config.model.activation_checkpointing,
        optimizer_moments=moments,
        accumulates=division is not None and division.micro_batches > 1,
        trainable=cost.trainable, added=cost.added, quantized=cost.quantized,
        frozen=count_parameters(net).total if cost.reference else 0,
        device="cpu" if device is None else "cuda", fused_norm=device is not None,
    )  # fmt: skip
    noted.append(
        Assumption(
            "optimizer",
            optimizer.__name__,
            f"it keeps {counted(moments['matrix'], 'moments')} of a matrix and"
            f" {moments['embedding']} of an embedding; its workspace is not counted",
        )
    )
    noted.append(
        Assumption(
            "beside tensors",
            f"{BASE[layout.device] / GIB:g} GiB"
            + (f" and {HEAP[layout.device]:.0%} of them" if HEAP[layout.device] else ""),
            source(layout.device),
        )
    )
    utilization = _utilization(config, device, dtype, noted)
    return Question(
        net=net, layout=layout, devices=devices, stage=config.stage, lora_rank=config.lora_rank,
        step_tokens=step,
        device=device, dtype=dtype,
        mfu=utilization, tokens_per_second=config.tokens_per_second,
        goodput=_goodput(config, noted), price=config.price,
        **_length(config, step), dollars=config.dollars, seconds=_seconds(config),
        limit=_memory_limit(config, device),
        unique_tokens=_unique(config.unique_tokens, manifest),
        inference_tokens=config.inference_tokens, law=find_law(config.law).name,
        assumptions=tuple(noted),
    )  # fmt: skip


def _net(
    values: ModelConfig | Namespace, manifest: Manifest | None, noted: list[Assumption]
) -> ModelConfig:
    """Build the shape; a dataset's tokenizer sets its vocabulary where the options do not."""
    fields: dict[str, Any] = (
        values.as_dict() if isinstance(values, Namespace) else dict(vars(values))
    )
    if isinstance(fields["rope_scaling"], dict):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    if fields["vocab_size"] is None:
        fields["vocab_size"] = (
            ModelConfig.vocab_size
            if manifest is None
            else padded_vocab_size(manifest.tokenizer.vocab_size)
        )
        why = (
            "no vocab_size and no dataset is given"
            if manifest is None
            else "the dataset's tokenizer, padded as `fit` does"
        )
        noted.append(Assumption("vocabulary", f"{fields['vocab_size']:,}", why))
    return ModelConfig(**fields)


def _data(
    given: Namespace, net: ModelConfig, *, bare: bool, noted: list[Assumption]
) -> dict[str, Any]:
    """Complete the options of the data with those of `fit`, or of a bare shape."""
    defaults: dict[str, Any] = (
        {"seq_len": net.max_seq_len, "micro_batch_size": 1, "global_batch_tokens": None}
        if bare
        else data_parameters()
    )
    found = {}
    for name in ("seq_len", "micro_batch_size", "global_batch_tokens"):
        found[name] = defaults[name] if given[name] is None else given[name]
        if found[name] is not None and found[name] < 1:
            raise UserError(f"data.{name}={found[name]} must be positive")
        if given[name] is None and found[name] is not None:
            why = (
                ("its max_seq_len" if name == "seq_len" else "the least") + ": a bare shape"
                if bare
                else "the default of `fit`"
            )
            noted.append(Assumption(f"data.{name}", f"{found[name]:,}", why))
    if found["seq_len"] > net.max_seq_len:
        raise UserError(
            f"data.seq_len={found['seq_len']} is longer than the network's positions,"
            f" model.net.max_seq_len={net.max_seq_len}"
        )
    return found


def _manifest(path: str | None, noted: list[Assumption]) -> Manifest | None:
    """Load the manifest of a dataset on this machine; a plan does not fetch any other."""
    if path is None:
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


def _precision(given: str | None, noted: list[Assumption]) -> tuple[str, str]:
    """Return the precision of the layout, and the type of its matrix products."""
    if given is None:
        noted.append(
            Assumption(
                "trainer.precision",
                "bf16-mixed",
                "the default of `fit` where the device computes in bf16",
            )
        )
        return "bf16-mixed", "bf16"
    if given == "fp8":
        noted.append(
            Assumption("memory in fp8", "bf16-mixed", "products in fp8 keep what bf16 keeps")
        )
        return "bf16-mixed", "fp8"
    known = {
        "bf16-mixed": "bf16",
        "bf16-true": "bf16",
        "16-mixed": "fp16",
        "16-true": "fp16",
        "32-true": "tf32",
        "32": "tf32",
    }
    if given not in known:
        raise UserError(f"trainer.precision={given!r} is not one of {', '.join(known)}, fp8")
    return given, known[given]


def _devices_of(trainer: Namespace) -> int | None:
    local = trainer.devices
    if isinstance(local, str) and local.isdigit():
        local = int(local)
    local = len(local) if isinstance(local, list) else local
    nodes = trainer.num_nodes or 1
    return local * nodes if isinstance(local, int) and local > 0 else nodes if nodes > 1 else None


def _sharding(strategy: Any, devices: int) -> Sharding:
    name = str(
        strategy.get("class_path") if isinstance(strategy, dict) else strategy or "auto"
    ).lower()
    if "fsdp" in name or "modelparallel" in name or "sharded" in name:
        return "fsdp"
    return "ddp" if devices > 1 else "none"


def _memory_limit(config: Namespace, device: Device | None) -> float | None:
    if config.memory_gib is not None:
        return float(config.memory_gib * GIB)
    return None if device is None else device.memory


def _utilization(
    config: Namespace, device: Device | None, dtype: str, noted: list[Assumption]
) -> Utilization | None:
    """Return the MFU to assume; None where the speed is measured or cannot be known."""
    if config.mfu is not None and not 0 < config.mfu <= 1:
        raise UserError(f"mfu={config.mfu} must lie in (0, 1]: it is a share of the peak")
    if config.mfu is not None and config.tokens_per_second is not None:
        raise UserError("give mfu or tokens_per_second: each says how fast it trains")
    if device is None and config.mfu is not None:
        raise UserError("mfu is a share of a device's peak: give --device")
    if device is None or config.tokens_per_second is not None:
        return None
    if device.peak(dtype) is None:
        warn(
            f"the peak of {device.name} in {dtype} is not known: no time without"
            " --tokens_per_second"
        )
        return None
    if config.mfu is not None:
        return Utilization(config.mfu, "given")
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


def _goodput(config: Namespace, noted: list[Assumption]) -> float:
    if config.goodput is not None:
        return float(config.goodput)
    noted.append(Assumption("goodput", f"{GOODPUT.value:g}", GOODPUT.source))
    return GOODPUT.value


def _length(config: Namespace, step: int | None) -> dict[str, float | None]:
    given = [name for name in ("max_steps", "max_tokens", "max_flops") if config[name] is not None]
    if len(given) > 1:
        raise UserError(
            f"give one of max_steps, max_tokens and max_flops; found {' and '.join(given)} (null"
            " takes one of a config back)"
        )
    if config.max_steps is None:
        return {"tokens": config.max_tokens, "flops": config.max_flops}
    if step is None:
        raise UserError(
            "max_steps is a length only with data.global_batch_tokens: give that, or max_tokens"
        )
    return {"tokens": float(config.max_steps * step), "flops": None}


def _seconds(config: Namespace) -> float | None:
    if config.days is not None and config.hours is not None:
        raise UserError("give days or hours, not both")
    if config.days is not None:
        return float(config.days * DAY)
    return None if config.hours is None else float(config.hours * HOUR)
