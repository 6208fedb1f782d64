"""TensorBoard: under which names it shows a run's metrics, and the charts that it opens with.

TensorBoard opens on TIME SERIES, groups charts by the first part of their names, sorts the groups
and unfolds the first two. So every metric of metrics.jsonl gets a section in front of its name
(`Loss/val/loss`), and the sections are named such that what one looks at first comes first. Losses
of different kinds have sections of their own (`Loss_DPO/val/loss`), because runs of several stages
lie in one folder and curves of one name share an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_pretrain.batch_sizes import BatchSizes

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

# TensorBoard's own modules are imported where they are used: `fit --help` does not wait for them.

TEXT_LOSS = "Loss"
"""Section of the loss of networks on text, in nats per token."""
_BY_SOURCE = ("train_loss", "val_loss", "val_bits_per_byte")
_SECTIONS = {
    "lr": "Optimisation", "progress": "Progress", "throughput": "Speed", "time": "Speed",
    "mixture": "Sources", "data": "Sources", "eval": "Tasks", "layers": "Network",
    "roles": "Network", "noise_scale": "Optimisation", "gradient_variance": "Optimisation",
    "gradient_signal": "Optimisation",
}  # fmt: skip
COMPARED = ("train/loss", "val/loss", "val/bits_per_byte", "train/reward", "val/reward")
"""What is drawn over tokens and FLOPs as well, where runs with other batches can be compared."""
FLOPS_UNIT = 1e9
"""TensorBoard's axis holds whole numbers of 64 bits: in units of 1e9 FLOPs it reaches from toys to
9e27 FLOPs.
"""


def loss_section(objective: str, *, rows: bool, text_loss: bool) -> str:
    """Name the section of a run's losses; runs share it only if their losses can be compared.

    Args:
        objective: Class name of the objective.
        rows: Whether the run learns from rows, such as conversations, and not from text.
        text_loss: Whether the loss is nats per token.
    """
    return (
        f"{TEXT_LOSS}_{objective}" if not text_loss else f"{TEXT_LOSS}_SFT" if rows else TEXT_LOSS
    )


def tag_of(metric: str, losses: str) -> str:
    """Give the name under which TensorBoard shows a metric.

    Args:
        metric: Its name in metrics.jsonl. A name of somebody else's stays as it is.
        losses: Section of the run's losses.
    """
    group, _, rest = metric.partition("/")
    if group in _BY_SOURCE:
        section = f"{losses}_by_source"
    elif group == "forecast":
        section = f"{losses}_forecast"
    elif metric.startswith("train/grad_norm"):
        section = "Optimisation"
    elif group in ("train", "val"):
        section = losses
    elif group.startswith("eval_"):
        section = "Tasks"
    else:
        section = _SECTIONS.get(group, "")
    return f"{section}/{metric}" if section and rest else metric


# ------------------------------------------------------------------ the custom scalars

PREFERENCES = {
    "share of pairs ranked as labelled": ("rewards/accuracy",),
    "margin of the rewards": ("rewards/margin",),
    "rewards": ("rewards/chosen", "rewards/rejected"),
    "log-probability of the answers (nats)": ("logp/chosen", "logp/rejected"),
    "nats per token of the better answers": ("nll/chosen",),
    "odds ratio, logarithm": ("log_odds_ratio",),
    "mean square of the rewards": ("rewards/squared_mean",),
    "divergence from the reference (nats)": ("kl",),
}
"""Charts of what objectives over preferences report, most telling first: title and metrics."""
ROLLOUT = {
    "reward": ("reward",),
    "each reward": ("rewards/.*",),
    "groups with signal, truncated, clipped": ("groups_with_signal", "truncated", "clip_ratio"),
    "tokens of an answer": ("completion_tokens",),
    "entropy and divergence from the reference (nats per token)": ("entropy", "kl"),
    "seconds of a rollout": ("rollout_seconds",),
}
"""The same of objectives that answer prompts."""
STEPS = {
    "share of steps judged as labelled, and labelled right": (
        "steps/accuracy",
        "steps/share_right",
    ),
    "probability of being right, of right and of wrong steps": (
        "steps/score_right",
        "steps/score_wrong",
    ),
}
"""The same of process reward models."""
DISTILLATION = {
    "divergence from the teacher (nats per token)": ("divergence",),
    "nats per token of the labels": ("nll",),
}
"""The same of distillation."""

STATISTICS = {
    "activations of each layer, RMS": r"layers/(block|attention|feed_forward)_rms/",
    "activations of each layer, largest": r"layers/(block|attention|feed_forward)_max/",
    "attention logits of each layer, RMS": r"layers/attention_logits_rms/",
    "attention logits of each layer, largest": r"layers/attention_logits_max/",
    "gradients of each layer, RMS and largest": r"layers/gradient_",
    "update by weight of each layer": r"layers/update_ratio/",
    "gradients of each role, RMS and largest": r"roles/gradient_",
    "update by weight of each role": r"roles/update_ratio/",
}
"""Charts of runs that look into their layers (statistics_every)."""

NOISE_CHART = "gradient noise scale, in all and by role (tokens)"
"""Chart of runs that measure it (noise_scale_every)."""

Charts = dict[str, list[str]]
"""Title of a chart -> regular expressions of the tags that it shows."""


def layout(
    losses: str,
    *,
    forecast: str | None = None,
    metrics: Sequence[str] = (),
    rollout: bool = False,
    statistics: bool = False,
    noise_scale: bool = False,
) -> list[tuple[str, Charts, bool]]:
    """Lay out the page of custom scalars: category, charts, and whether it opens folded.

    TensorBoard merges the layouts of all runs by category, and drops a chart only if it is the very
    same. So a layout says nothing of a run but its kind: sources are matched by patterns, and
    charts of an objective carry its name.

    Args:
        losses: Section of the run's losses.
        forecast: The validation metric that a law forecasts; None where none does.
        metrics: What the objective reports beside its loss.
        rollout: Whether the run answers prompts.
        statistics: Whether the run looks into its layers.
        noise_scale: Whether the run measures its gradient noise.
    """
    text = losses == TEXT_LOSS
    kind = "" if text else f"{losses.removeprefix(f'{TEXT_LOSS}_')}: "
    bits = text or losses == f"{TEXT_LOSS}_SFT"
    unit = " (nats per token)" if bits else ""
    told = DISTILLATION if "divergence" in metrics else ROLLOUT if rollout else PREFERENCES | STEPS
    own = {
        f"{kind}{title}": [f"{losses}/(train|val)/{name}$" for name in names]
        for title, names in told.items()
        if any(name in metrics or (rollout and name.startswith("reward")) for name in names)
    }
    loss = {f"{kind}loss, train and validation{unit}": [f"{losses}/(train|val)/loss$"]}
    by_source = {f"{kind}train loss by source": [f"{losses}_by_source/train_loss/"]}
    if bits:
        by_source[f"{kind}validation bits per byte, in all and by source"] = [
            f"{losses}/val/bits_per_byte$",
            f"{losses}_by_source/val_bits_per_byte/",
        ]
    elif not rollout:
        by_source[f"{kind}validation loss by source"] = [f"{losses}_by_source/val_loss/"]
    goal = "reward" if rollout else "loss"
    over = {
        f"{kind}{goal} over {axis}": [f"{losses}_over_{tag}/(train|val)/{goal}$"]
        for axis, tag in (("tokens", "tokens"), ("FLOPs (in 1e9)", "GFLOPs"))
    }
    foreseen: Charts = {}
    if forecast is not None:
        title = f"{kind}{forecast.removeprefix('val/').replace('_', ' ')}, and its forecast"
        foreseen[title] = [f"{losses}/{forecast}$", f"{losses}_forecast/"]
    networks = {title: [f"Network/{pattern}"] for title, pattern in STATISTICS.items()}
    name = "Loss" if text else kind.removesuffix(": ")
    first = own | (loss if not rollout else {}) if own else loss
    return [
        (name, {**first, **foreseen, **({} if own else {**over, **by_source})}, False),
        *([(f"{name}: over tokens and FLOPs, by source", over | by_source, True)] if own else []),
        (
            "Optimisation",
            {
                "gradient norm before clipping": ["Optimisation/train/grad_norm"],
                "learning rates": ["Optimisation/lr/"],
                **({NOISE_CHART: ["Optimisation/noise_scale/"]} if noise_scale else {}),
            },
            True,
        ),
        (
            "Speed",
            {
                "tokens per second": ["Speed/throughput/tokens_per_second$"],
                "share of step time": ["Speed/time/(data|compute|other)_fraction$"],
                "seconds of a step": ["Speed/time/step_seconds$"],
            },
            True,
        ),
        ("Sources", {"share of each source in a window": ["Sources/mixture/"]}, True),
        *([("Network", networks, True)] if statistics else []),
    ]


def layout_summary(pages: Sequence[tuple[str, Charts, bool]]) -> Summary:
    """Encode a layout; torch's writer can do all but fold a category."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.custom_scalar import layout_pb2

    made = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=title,
                closed=folded,
                chart=[
                    layout_pb2.Chart(
                        title=name, multiline=layout_pb2.MultilineChartContent(tag=patterns)
                    )
                    for name, patterns in charts.items()
                ],
            )
            for title, charts, folded in pages
        ]
    )
    value = Summary.Value(
        tag="custom_scalars__config__",
        tensor=TensorProto(dtype="DT_STRING", string_val=[made.SerializeToString()]),
        metadata=_metadata("custom_scalars"),
    )
    return Summary(value=[value])


def _metadata(plugin: str, content: bytes = b"") -> SummaryMetadata:
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    )


# ------------------------------------------------------------------ the hyperparameters


_EITHER = ("model.schedule.", "trainer.")
"""Fields that hold a number in one run and a word in the next ("100 steps" or "2%", 2 or "auto").
TensorBoard leaves out the runs whose value is of another type, so these are always words.
"""


def hyper_parameters(
    config: Mapping[str, Any],
    *,
    batch: BatchSizes,
    parameters: int,
    stage: str,
    objective: str,
) -> dict[str, float | str | bool]:
    """Collect what the page HPARAMS shows of a run: what one compares by, then its whole config.

    TensorBoard puts first what differs between runs and sorts by name, hence the numbers.

    Args:
        config: Resolved config, as it is saved.
        batch: Input tokens of the optimizer steps; shown is that of the last one.
        parameters: Of the network.
        stage: The verb, with the adapter if there is one.
        objective: Class name of the objective.
    """
    first: dict[str, float | str | bool] = {
        "1 learning rate": _peak_rate(config["model"]),
        "2 batch (tokens)": batch.size(config["max_steps"] - 1),
        "3 parameters": parameters,
        "4 tokens": batch.first(config["max_steps"]),
        "5 stage": stage,
        "6 objective": objective,
    }
    whole = {group: config[group] for group in ("model", "data")} | {
        "trainer": {
            name: config["trainer"][name]
            for name in ("devices", "num_nodes", "precision", "strategy")
        },
        "seed": config["seed_everything"],
        "max_steps": config["max_steps"],
    }
    return first | dict(_leaves("", whole))


def _peak_rate(model: Mapping[str, Any]) -> float:
    """Find the peak learning rate: `lr`, or of an optimizer with one for each role the matrices'.

    NaN for an optimizer of somebody's that has neither.
    """
    settings = model["optimizer"].get("init_args") or {}
    role = "matrix" if model["adapter"] is None else "adapter"
    found = settings.get("lr", settings.get(f"{role}_lr"))
    return float(found) if isinstance(found, (int, float)) else math.nan


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, float | str | bool]]:
    """Flatten a config; a list is one value, and a field without a value is left out."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(value, (bool, int, float)) and not prefix.startswith(_EITHER):
        yield prefix, value
    elif value is not None:
        yield prefix, str(value)


def hparams_summary(tag: str, data: HParamsPluginData) -> Summary:
    """Encode what the page HPARAMS reads of a run."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    data.version = metadata.PLUGIN_DATA_VERSION
    value = Summary.Value(
        tag=tag,
        tensor=metadata.NULL_TENSOR,
        metadata=_metadata(metadata.PLUGIN_NAME, data.SerializeToString()),
    )
    return Summary(value=[value])
