"""TensorBoard: names, charts and hyperparameters (tests/callbacks/test_run_board.py reads what runs
write).
"""

import re
from typing import Any

import pytest

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.report.tensorboard import hyper_parameters, layout, loss_section, tag_of

KINDS: dict[str, tuple[str, ...]] = {
    "Loss": (),
    "Loss_SFT": (),
    "Loss_DPO": ("rewards/accuracy", "rewards/margin", "rewards/chosen", "rewards/rejected"),
    "Loss_KTO": ("rewards/chosen", "rewards/rejected", "logp/chosen", "logp/rejected", "kl"),
    "Loss_GRPO": ("clip_ratio", "entropy"),
    "Loss_Distillation": ("divergence", "nll"),
}


def pages(losses: str) -> list[tuple[str, dict[str, list[str]], bool]]:
    return layout(losses, metrics=KINDS[losses], rollout=losses == "Loss_GRPO")


def test_a_run_that_measures_its_noise_has_a_chart_of_it() -> None:
    """TensorBoard merges the charts of a category over runs, so the others have none."""
    for measured in (False, True):
        charts = {
            name: patterns
            for _, found, _ in layout("Loss", noise_scale=measured)
            for name, patterns in found.items()
        }
        tag = tag_of("noise_scale/matrix", "Loss")
        assert any(re.match(p, tag) for its in charts.values() for p in its) is measured


# ---------------------------------------------------------------------- names


def test_losses_of_different_kinds_have_names_of_their_own() -> None:
    """Curves of one name share an axis."""
    sections = [
        loss_section("CrossEntropy", rows=False, text_loss=True),
        loss_section("CrossEntropy", rows=True, text_loss=True),
        *(loss_section(name, rows=True, text_loss=False) for name in ("DPO", "KTO", "GRPO")),
    ]
    assert sections == ["Loss", "Loss_SFT", "Loss_DPO", "Loss_KTO", "Loss_GRPO"]
    for metric in (
        "train/loss",
        "val/loss",
        "val_loss/code",
        "forecast/loss",
        "val/rewards/margin",
    ):
        assert len({tag_of(metric, section) for section in sections}) == len(sections)


def test_what_one_looks_at_first_sorts_first() -> None:
    """TIME SERIES unfolds the first two groups, HPARAMS shows the first five metrics."""
    metrics = [
        "data/supervised_fraction", "eval_piqa/acc", "forecast/loss", "lr/matrix", "mixture/code",
        "progress/tokens", "throughput/mfu", "time/step_seconds", "train/grad_norm", "train/loss",
        "train_loss/code", "val/bits_per_byte", "val/loss", "val_loss/code",
    ]  # fmt: skip
    tags = sorted(tag_of(metric, "Loss") for metric in metrics)
    assert tags[:3] == ["Loss/train/loss", "Loss/val/bits_per_byte", "Loss/val/loss"]
    assert list(dict.fromkeys(tag.split("/")[0] for tag in tags))[:2] == ["Loss", "Loss_by_source"]
    assert tag_of("mine/weight_norm", "Loss") == "mine/weight_norm"
    assert tag_of("plain", "Loss") == "plain"


def test_titles_of_charts_are_unique_and_at_most_twelve_are_unfolded() -> None:
    titles: list[str] = []
    for losses in KINDS:
        unfolded = [charts for _, charts, folded in pages(losses) if not folded]
        assert 2 <= sum(map(len, unfolded)) <= 12, losses
        titles += [title for charts in unfolded for title in charts]
        for _, charts, folded in pages(losses):
            assert not folded or charts.keys().isdisjoint(titles)
    assert len(titles) == len(set(titles))


# ---------------------------------------------------------------------- hyperparameters


def config(**trainer: Any) -> dict[str, Any]:
    return {
        "model": {
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.95]}},
            "adapter": None,
            "schedule": {"warmup": "0", "final": 0.0},
        },
        "data": {"seq_len": 8, "path": "data/x", "weights": {"code": 1}, "shuffle": True},
        "trainer": {"devices": 1, "num_nodes": 1, "precision": "32-true", "strategy": "auto"}
        | trainer,
        "seed_everything": 7,
        "max_steps": 5,
    }


def of(config: dict[str, Any]) -> dict[str, Any]:
    return hyper_parameters(
        config, batch=BatchSizes.one(64), parameters=10, stage="fit", objective="DPO"
    )


def test_hyper_parameters_begin_with_what_one_compares_by_and_hold_the_whole_config() -> None:
    found = of(config())
    assert sorted(found)[:6] == [
        "1 learning rate", "2 batch (tokens)", "3 parameters", "4 tokens", "5 stage", "6 objective",
    ]  # fmt: skip
    assert (found["1 learning rate"], found["4 tokens"]) == (0.1, 320)
    assert found["model.optimizer.init_args.betas"] == "[0.9, 0.95]"
    assert (found["data.weights.code"], found["data.shuffle"], found["seed"]) == (1, True, 7)
    assert "model.adapter" not in found


def test_a_field_is_of_one_type_in_all_runs() -> None:
    """TensorBoard leaves out the runs that have another."""
    for devices in (1, "auto"):
        assert isinstance(of(config(devices=devices))["trainer.devices"], str)
    assert isinstance(of(config())["model.schedule.warmup"], str)


@pytest.mark.parametrize(
    ("settings", "adapter", "rate"),
    [
        ({"matrix_lr": 0.02, "adapter_lr": 0.1}, None, 0.02),
        ({"matrix_lr": 0.02, "adapter_lr": 0.1}, {"rank": 4}, 0.1),
        ({"speed": 3}, None, None),
    ],
)
def test_the_rate_of_an_optimizer_with_one_for_each_role(
    settings: dict[str, float], adapter: Any, rate: float | None
) -> None:
    made = config()
    made["model"]["optimizer"]["init_args"] = settings
    made["model"]["adapter"] = adapter
    found = of(made)["1 learning rate"]
    assert found == rate if rate is not None else found != found
