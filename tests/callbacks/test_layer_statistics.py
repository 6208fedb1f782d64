"""LayerStatistics: figures of a run against those of plain hooks, and a run that stays the same."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_pretrain.__main__ import main
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.report.tensorboard import STATISTICS

STEPS, EVERY = 6, 3
RUN = (
    "fit", "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.n_kv_head=1", "--model.compile=off", "--data.seq_len=32",
    "--data.micro_batch_size=2", "--data.global_batch_tokens=256", "--data.val_tokens=512",
    f"--max_steps={STEPS}", "--log_every=2", "--checkpoint_every=2", "--sample_prompts=[]",
    "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--model.clip_norm=0.01",
)  # fmt: skip
PLAIN = '''
"""A callback with plain hooks, which keeps everything and sums it afterwards."""
import json
import lightning as L


def figures(tensors):
    import torch
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    return {"rms": flat.square().mean().sqrt().item(), "max": flat.abs().max().item()}


class Plain(L.Callback):
    def on_train_start(self, trainer, module):
        self.seen, self.told = {}, {}
        for layer, block in enumerate(module.net.blocks):
            for name, its in (("block", block), ("attention", block.attention),
                              ("feed_forward", block.feed_forward)):
                def keep(m, i, out, key=f"{name}/{layer}"):
                    self.seen.setdefault(key, []).append(out)
                its.register_forward_hook(keep)

    def on_train_batch_start(self, trainer, module, batch, i):
        self.seen.clear()
        self.count = sum(int((micro.labels_BT != -100).sum()) for micro in batch)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.grads = {n: p.grad / self.count for n, p in module.net.named_parameters()}
        self.before = {n: p.detach().clone() for n, p in module.net.named_parameters()}

    def on_train_batch_end(self, trainer, module, *rest):
        told = {}
        for key, tensors in self.seen.items():
            name, layer = key.split("/")
            for figure, value in figures(tensors).items():
                told[f"layers/{name}_{figure}/{layer}"] = value
        roles = {n: group["role"] for group in trainer.optimizers[0].param_groups
                 for n, p in module.net.named_parameters()
                 if any(p is q for q in group["params"])}
        groups = {}
        for n in roles:
            groups.setdefault(f"roles/{{}}/{roles[n]}", []).append(n)
            if n.startswith("blocks."):
                groups.setdefault(f"layers/{{}}/{n.split('.')[1]}", []).append(n)
        after = dict(module.net.named_parameters())
        for key, names in groups.items():
            its = figures([self.grads[n] for n in names])
            told[key.format("gradient_rms")] = its["rms"]
            told[key.format("gradient_max")] = its["max"]
            moved = figures([after[n].detach().double() - self.before[n].double() for n in names])
            told[key.format("update_ratio")] = (
                moved["rms"] / figures([self.before[n] for n in names])["rms"])
        self.told[trainer.global_step] = told

    def on_train_end(self, trainer, module):
        with open("plain.json", "w") as file:
            json.dump(self.told, file)
'''  # fmt: skip


def fit(dataset: Path, folder: Path, name: str, *options: str) -> list[dict[str, float]]:
    """Run in this process; return the lines of its metrics."""
    given = [f"--data.path={dataset}", f"--runs={folder}", f"--name={name}", *options]
    assert main([*RUN, *given]) == 0
    return read_metrics(folder / name)


def losses(lines: list[dict[str, float]]) -> list[tuple[Any, ...]]:
    names = ("step", "train/loss", "val/loss", "train/grad_norm")
    kept = [line for line in lines if "train/loss" in line or "val/loss" in line]
    return [tuple(line.get(name) for name in names) for line in kept]


def statistics(lines: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    return {int(line["step"]): line for line in lines if any("layers/" in name for name in line)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture(scope="module")
def watched(dataset: Path, folder: Path) -> list[dict[str, float]]:
    """A run of four micro-batches a step that looks into its layers, beside plain hooks."""
    (folder / "plain_statistics.py").write_text(PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        return fit(
            dataset, folder, "watched", f"--statistics_every={EVERY}",
            "--trainer.callbacks=[plain_statistics.Plain]",
        )  # fmt: skip


def test_figures_are_those_of_plain_hooks(folder: Path, watched: list[dict[str, float]]) -> None:
    plain = json.loads((folder / "plain.json").read_text())
    told = statistics(watched)
    assert list(told) == [3, 6]
    for step, values in told.items():
        assert plain[str(step)].keys() <= values.keys()
        scores = values.keys() - plain[str(step)].keys() - {"step"}
        assert scores == {
            f"layers/attention_logits_{figure}/{n}" for figure in ("rms", "max") for n in (0, 1)
        }
        for name, expected in plain[str(step)].items():
            assert values[name] == pytest.approx(expected, rel=1e-6), (step, name)


def test_the_run_stays_the_same_to_the_last_bit(
    dataset: Path, folder: Path, watched: list[dict[str, float]]
) -> None:
    off = fit(dataset, folder, "off")
    assert not statistics(off)
    assert losses(off) == losses(watched)
    saved = [
        torch.load(folder / name / "checkpoints" / "step=00000006.ckpt", weights_only=True)
        for name in ("off", "watched")
    ]
    for name, weight in saved[0]["state_dict"].items():
        assert torch.equal(weight, saved[1]["state_dict"][name])


def test_a_resume_tells_what_an_uninterrupted_run_tells(
    dataset: Path, folder: Path, watched: list[dict[str, float]]
) -> None:
    checkpoint = folder / "watched" / "checkpoints" / "step=00000004.ckpt"
    copy = folder / "again"
    (copy / "checkpoints").mkdir(parents=True)
    for file in ("config.yaml", "provenance.json", "metrics.jsonl", "metrics.xxh3"):
        (copy / file).write_bytes((folder / "watched" / file).read_bytes())
    (copy / "checkpoints" / checkpoint.name).write_bytes(checkpoint.read_bytes())
    again = fit(dataset, folder, "again", "--resume=auto", f"--statistics_every={EVERY}")
    assert losses(again) == losses(watched)
    assert statistics(again) == statistics(watched)


def test_tensorboard_has_curves_of_every_chart_and_one_picture(
    folder: Path, watched: list[dict[str, float]]
) -> None:
    events = EventAccumulator(str(folder / "watched"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    for title, pattern in STATISTICS.items():
        assert any(re.match(f"Network/{pattern}", tag) for tag in tags["scalars"]), title
    assert [tag for tag in tags["images"] if "layers" in tag] == ["Pictures/layers"]


def test_how_often_is_a_count(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=x", "--statistics_every=-1"]
    assert main([*RUN, *given]) == 2
    assert "statistics_every=-1 must not be negative" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ["--trainer.strategy=ddp"],
        ["--trainer.strategy=fsdp"],
        ["--parallel.tp=2"],
        ["--parallel.cp=2"],
    ],
    ids=["ddp", "fsdp", "tp", "cp"],
)
def test_two_ranks_tell_what_one_tells(
    layout: list[str], dataset: Path, run_cli: Any, tmp_path: Path
) -> None:
    told = []
    shape = [
        "--model.net.n_kv_head=2", "--model.net.qk_norm=true", "--model.net.sliding_window=8",
        "--model.net.window_pattern=SL", "--model.net.attn_softcap=5", "--max_steps=3",
    ]  # fmt: skip
    for name, options in (("one", []), ("two", ["--trainer.devices=2", *layout])):
        given = [f"--data.path={dataset}", f"--runs={tmp_path}", f"--name={name}"]
        done = run_cli(*RUN, *shape, *given, f"--statistics_every={EVERY}", *options)
        assert done.returncode == 0, done.stderr
        told.append(statistics(read_metrics(tmp_path / name))[3])
    one, two = told
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert math.isfinite(value)
        assert two[name] == pytest.approx(value, rel=1e-5), name
