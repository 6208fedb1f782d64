"""Layout of TensorBoard's custom scalars, which opens on the curves to look at first."""

from collections.abc import Sequence
from typing import Any

PREFERENCES = {
    "share of pairs in which the better answer has the greater reward": ("rewards/accuracy",),
    "margin of the rewards": ("rewards/margin",),
    "rewards": ("rewards/chosen", "rewards/rejected"),
    "log-probability of the answers (nats)": ("logp/chosen", "logp/rejected"),
    "nats per token of the better answers": ("nll/chosen",),
    "odds ratio, logarithm": ("log_odds_ratio",),
    "mean square of the rewards": ("rewards/squared_mean",),
    "divergence from the reference (nats)": ("kl",),
}
"""Charts of what objectives over preferences report, most telling first: title and metrics."""


def layout(
    sources: Sequence[str], forecast: str | None = None, metrics: Sequence[str] = ()
) -> dict[str, Any]:
    """Lay out categories and charts for `SummaryWriter.add_custom_scalars`.

    Args:
        sources: Names of the mixture's sources.
        forecast: The validation metric that a law forecasts; None where none does.
        metrics: What the objective reports beside its loss.
    """
    chart = ["Multiline"]
    foreseen = {
        "validation, and a run of this size that ends here": [
            *chart,
            [f"{forecast}$", "forecast/loss", "forecast/low", "forecast/high"],
        ]
    }
    judged = any(name.startswith("rewards/") for name in metrics)
    preferences = {
        title: [
            *chart,
            [f"{split}/{name}$" for name in names if name in metrics for split in ("train", "val")],
        ]
        for title, names in PREFERENCES.items()
        if judged and any(name in metrics for name in names)
    }
    loss = {
        f"train and validation ({'of the objective' if judged else 'nats per token'})": [
            *chart,
            ["train/loss", "val/loss"],
        ]
    }
    by_source = {"train by source": [*chart, [f"train_loss/{s}" for s in sources]]}
    if judged:
        by_source["validation by source"] = [*chart, [f"val_loss/{s}" for s in sources]]
    else:
        loss["bits per byte"] = [*chart, ["val/bits_per_byte$"]]
        by_source["validation bits per byte by source"] = [
            *chart,
            [f"val_bits_per_byte/{s}" for s in sources],
        ]
    return {
        **({} if forecast is None else {"Forecast": foreseen}),
        **({"Preferences": preferences} if preferences else {}),
        "Loss": loss | by_source,
        "Optimisation": {
            "gradient norm before clipping": [*chart, ["train/grad_norm$", "train/grad_norm_max"]],
            "learning rates": [*chart, ["lr/.*"]],
        },
        "Speed": {
            "tokens per second": [*chart, ["throughput/tokens_per_second"]],
            "share of step time": [
                *chart,
                ["time/data_fraction", "time/compute_fraction", "time/other_fraction"],
            ],
        },
        "Data": {
            "realised mixture": [*chart, [f"mixture/{s}" for s in sources]],
            "tokens": [*chart, ["progress/tokens"]],
        },
    }


def rollout_layout(rewards: Sequence[str]) -> dict[str, Any]:
    """Lay out the category of rollouts, to stand before those of `layout`.

    Args:
        rewards: Names of the rewards.
    """
    chart = ["Multiline"]
    return {
        "Rollout": {
            "reward": [*chart, ["train/reward$", "val/reward$"]],
            "each reward": [
                *chart,
                [f"{split}/rewards/{name}$" for name in rewards for split in ("train", "val")],
            ],
            "groups with signal, truncated, clipped": [
                *chart,
                ["train/groups_with_signal", "train/truncated", "train/clip_ratio"],
            ],
            "tokens of an answer": [*chart, ["train/completion_tokens", "val/completion_tokens"]],
            "entropy and divergence from the reference (nats per token)": [
                *chart,
                ["train/entropy", "train/kl$"],
            ],
            "seconds of a rollout and of a step": [
                *chart,
                ["train/rollout_seconds", "time/step_seconds"],
            ],
        }
    }
