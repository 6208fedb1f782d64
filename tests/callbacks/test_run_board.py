"""RunBoard: what TensorBoard's own backends make of runs of several stages in one folder."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams.backend_context import Context

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.run_board import RunBoard
from lit_pretrain.report.run_folder import METRICS, SUMMARY_PAGE, MetricsFile

NET = (
    "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2", "--model.compile=off",
    "--trainer.accelerator=cpu", "--checkpoint_every=0", "--sample_prompts=[]",
)  # fmt: skip
TEXT = (
    "--data.seq_len=32", "--data.micro_batch_size=2", "--data.global_batch_tokens=128",
    "--data.val_tokens=512", "--log_every=1", "--validate_every=3",
    "--model.optimizer=lit_pretrain.optim.AdamW",
)  # fmt: skip


def fit(runs: Path, dataset: Path, name: str, *options: str) -> None:
    made = [*NET, *TEXT, f"--data.path={dataset}", f"--runs={runs}", f"--name={name}", *options]
    assert main(["fit", *made]) == 0


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two learning rates, and a DPO run on the first."""
    runs = tmp_path_factory.mktemp("runs")
    fit(runs, dataset, "slow", "--max_steps=6", "--model.optimizer.lr=1e-3")
    fit(runs, dataset, "fast", "--max_steps=6", "--model.optimizer.lr=1e-2")
    rows = [{"prompt": f"{i}?", "chosen": f"{i}.", "rejected": "No."} for i in range(20)]
    (runs / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dpo = {
        "model": {
            "objective": {"class_path": "lit_pretrain.objective.DPO"},
            "optimizer": {"class_path": "lit_pretrain.optim.AdamW", "init_args": {"lr": 1e-4}},
        },
        "data": {
            "class_path": "lit_pretrain.data.PreferenceData",
            "init_args": {
                "sources": {"pairs": {"path": str(runs / "rows.jsonl"), "format": "preference"}},
                "seq_len": 32, "global_batch_rows": 4, "micro_batch_size": 4, "validation": 0.2,
            },
        },
        "max_steps": 2,
    }  # fmt: skip
    (runs / "dpo.yaml").write_text(yaml.safe_dump(dpo))
    arguments = ["--from", str(runs / "slow"), "--config", str(runs / "dpo.yaml"), *NET[3:]]
    assert main(["posttrain", *arguments, "--log_every=1", f"--runs={runs}", "--name=dpo"]) == 0
    return runs


class Board:
    """TensorBoard's backends over a folder of runs."""

    def __init__(self, folder: Path) -> None:
        multiplexer = plugin_event_multiplexer.EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        self.provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
        self.about = base_plugin.TBContext(data_provider=self.provider)

    def scalars(self) -> dict[str, dict[str, Any]]:
        """Run -> tag -> what the provider knows of it."""
        listed = self.provider.list_scalars(
            context.RequestContext(), experiment_id="", plugin_name="scalars"
        )
        return {run: dict(tags) for run, tags in listed.items()}

    def hparams(self) -> Any:
        hparams = Context(self.about)
        request = context.RequestContext()
        return hparams.experiment_from_metadata(
            request, "", True, hparams.hparams_metadata(request, ""), []
        )

    def titles(self) -> Iterator[str]:
        made = CustomScalarsPlugin(self.about).layout_impl(context.RequestContext(), "")
        for category in json.loads(made)["category"]:
            yield from (chart["title"] for chart in category["chart"])

    def images(self) -> dict[str, Sequence[str]]:
        listed = self.provider.list_blob_sequences(
            context.RequestContext(), experiment_id="", plugin_name="images"
        )
        return {run: list(tags) for run, tags in listed.items()}


@pytest.fixture(scope="module")
def board(runs: Path) -> Board:
    return Board(runs)


def test_runs_have_their_own_names_and_stages_their_own_curves(board: Board) -> None:
    found = board.scalars()
    assert set(found) == {"slow", "fast", "dpo"}
    shared = set(found["dpo"]) & set(found["slow"])
    assert shared
    assert not {tag for tag in shared if tag.startswith("Loss")}
    assert "Loss_DPO/train/rewards/margin" in found["dpo"]


def test_no_chart_is_a_point_at_step_0(board: Board) -> None:
    for run, tags in board.scalars().items():
        at_zero = [
            tag
            for tag, series in tags.items()
            if series.max_step == 0 and "_over_GFLOPs" not in tag  # toys of a few MFLOPs
        ]
        assert not at_zero, (run, at_zero)


def test_what_a_sweep_changed_comes_first_among_the_hyper_parameters(
    runs: Path, tmp_path: Path
) -> None:
    for name in ("slow", "fast"):
        (tmp_path / name).symlink_to(runs / name)
    found = Board(tmp_path).hparams()
    differing = [info.name for info in found.hparam_infos if info.differs]
    assert differing == ["1 learning rate", "model.optimizer.init_args.lr"]
    after = [info.name for info in found.hparam_infos if not info.differs]
    assert after[:2] == ["2 batch (tokens)", "3 parameters"]
    first = [info.name.tag for info in list(found.metric_infos)[:3]]
    assert first == ["Loss/train/loss", "Loss/val/bits_per_byte", "Loss/val/loss"]


def test_hyper_parameters_of_all_stages_are_there(board: Board) -> None:
    names = [info.name for info in board.hparams().hparam_infos]
    assert names[0] == "1 learning rate"
    assert {"6 objective", "model.objective.init_args.beta", "data.seq_len"} <= set(names)


def test_titles_stay_unique_when_layouts_are_merged(board: Board) -> None:
    titles = list(board.titles())
    assert len(titles) == len(set(titles))
    assert "loss over tokens" in titles
    assert "DPO: margin of the rewards" in titles


def test_pictures_tell_the_sources_apart_and_need_a_curve(board: Board) -> None:
    found = board.images()
    assert "Pictures/validation bits per byte by source" in found["slow"]
    assert "dpo" not in found  # two windows are no curve


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def attempt(first: int | None, steps: Sequence[int]) -> None:
        board = RunBoard(run, first_step=first)
        if first is None:
            (run / METRICS).unlink(missing_ok=True)
        file = MetricsFile(run / METRICS, first_step=first or 0)
        board.begin("Loss", {"1 learning rate": 0.1})
        for step in steps:
            line = {"train/loss": 1 / step, "progress/tokens": 64 * step, "progress/flops": step}
            file.write(step, line)
            board.log_metrics(line, step)
        board.finalize("failed")

    attempt(None, [1, 2])
    attempt(None, [1, 2, 3, 4])  # the first was killed before its first checkpoint
    time.sleep(1.1)  # event files are named by the second, and read in the order of their names
    attempt(2, [3, 4, 5])
    events = EventAccumulator(str(run))
    events.Reload()
    for tag, unit in (("Loss/train/loss", 1), ("Loss_over_tokens/train/loss", 64)):
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx({unit * step: 1 / step for step in range(1, 6)})
        assert len(events.Scalars(tag)) == 5


def test_the_page_of_pictures(runs: Path) -> None:
    page = (runs / "slow" / SUMMARY_PAGE).read_text()
    for shown in ("validation bits per byte by source", "tokens per second", ">story <b>"):
        assert shown in page, shown
    assert "src=" not in page
    assert "http" not in page
    assert "margin of the rewards" in (runs / "dpo" / SUMMARY_PAGE).read_text()
