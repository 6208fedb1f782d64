"""Rollout layout: the charts that are looked at first where answers are sampled and rewarded."""

from collections.abc import Sequence
from typing import Any


def rollout_layout(rewards: Sequence[str]) -> dict[str, Any]:
    """A category for `SummaryWriter.add_custom_scalars`, to stand before those of `layout`.

    Args:
        rewards: Names of the rewards.
    """
    chart = ["Multiline"]
    return {
        "Rollout": {
            "reward": [*chart, ["train/reward$", "val/reward$"]],
            "each reward": [*chart, [f"{split}/rewards/{name}$" for name in rewards for split in ("train", "val")]],
            "groups with signal, truncated, clipped": [*chart, ["train/groups_with_signal", "train/truncated", "train/clip_ratio"]],
            "tokens of an answer": [*chart, ["train/completion_tokens", "val/completion_tokens"]],
            "entropy and divergence from the reference (nats per token)": [*chart, ["train/entropy", "train/kl$"]],
            "seconds of a rollout and of a step": [*chart, ["train/rollout_seconds", "time/step_seconds"]],
        }
    }
