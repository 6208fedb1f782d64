"""The layout that a run is planned by: what stands beside the network, what is in four bits,
and what it answers at once.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.cli.plan.question import PlanCLI
from lit_pretrain.cli.train import fit_plan
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.memory import NF4_BYTES, Answering, Layout, peak, states

NET = {"n_layer": 2, "width": 64, "n_head": 2, "ffn_width": 128, "max_seq_len": 64}
SHAPE = [f"--model.net.{name}={value}" for name, value in NET.items()]
DATA = "--data.class_path=lit_pretrain.data."


@pytest.fixture(scope="module")
def work(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base run, a smaller one, and pairs."""
    work = tmp_path_factory.mktemp("planned")
    common = [
        "--data.seq_len=32",
        "--data.micro_batch_size=2",
        "--data.global_batch_tokens=64",
        "--data.val_tokens=64",
        "--max_steps=1",
    ]
    quiet = [
        "--model.compile=off",
        "--sample_prompts=[]",
        "--trainer.accelerator=cpu",
        f"--data.path={dataset}",
        f"--runs={work}",
    ]
    assert main(["fit", *SHAPE, *common, *quiet, "--name=base"]) == 0
    assert main(["fit", *SHAPE, "--model.net.width=32", *common, *quiet, "--name=small"]) == 0
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(40)
    ]
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return work


@pytest.fixture
def planned(work: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plan a run of `posttrain` and go no further."""
    seen: list[tuple[ModelConfig, Layout]] = []

    def stop(net: ModelConfig, layout: Layout, **_: Any) -> None:
        seen.append((net, layout))
        raise UserError("planned")

    monkeypatch.setattr("lit_pretrain.cli.train.train_cli.check_memory", stop)

    def plan(*options: str) -> tuple[ModelConfig, Layout]:
        fixed = [
            f"--runs={work}",
            "--name=planned",
            "--max_steps=2",
            "--trainer.accelerator=cpu",
            "--trainer.precision=32-true",
        ]
        assert main(["posttrain", "--from", str(work / "base"), *fixed, *options]) == 2
        return seen.pop()

    return plan


def dpo(work: Path) -> list[str]:
    data = [
        f"--data.init_args.path={work / 'pairs.jsonl'}",
        "--data.init_args.format=preference",
        "--data.init_args.seq_len=64",
    ]
    batch = ["--data.init_args.global_batch_rows=8", "--data.init_args.micro_batch_size=4"]
    return [DATA + "PreferenceData", *data, *batch, "--model.objective=lit_pretrain.objective.DPO"]


def test_a_reference_that_is_a_copy_is_counted(work: Path, planned: Any) -> None:
    net, layout = planned(*dpo(work))
    assert (layout.rows, layout.group) == (8, 2)
    assert layout.frozen == count_parameters(net).total
    assert planned(*dpo(work), f"--model.reference_cache={work / 'column'}")[1].frozen == 0
    assert planned(*dpo(work), "--model.adapter.rank=2")[1].frozen == 0  # it is switched off
    other = planned(*dpo(work), f"--model.reference={work / 'small'}")[1].frozen
    assert (
        other
        == count_parameters(ModelConfig(**NET | {"width": 32, "vocab_size": net.vocab_size})).total
        < layout.frozen
    )


def test_what_is_in_four_bits_takes_four_bits(work: Path, planned: Any) -> None:
    net, full = planned(*dpo(work), "--model.adapter.rank=2")
    quantized = planned(*dpo(work), "--model.adapter.rank=2", "--model.adapter.quantize=nf4")[1]
    blocks = count_parameters(net).matmul - net.vocab_size * net.width
    assert (full.quantized, quantized.quantized) == (0, blocks)
    assert full.added == quantized.added > 0
    assert states(net, full).parameters - states(net, quantized).parameters == pytest.approx(
        blocks * (4 - NF4_BYTES)
    )
    assert peak(net, quantized).bytes < peak(net, full).bytes


def test_what_is_frozen_by_name_needs_no_moments(work: Path, planned: Any) -> None:
    net, layout = planned(*dpo(work), "--model.freeze=[blocks.0, token_embedding]")
    embedding, block = net.vocab_size * net.width, 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert layout.trainable == pytest.approx(1 - (embedding + block) / count_parameters(net).total)
    assert states(net, layout).moments < states(net, planned(*dpo(work))[1]).moments


TASK = "{name: addition, digits: 1, rows: 60, prompt: '{a} {op} {b} ='}"
RL = [
    DATA + "PromptData", f"--data.init_args.sources={{sums: {{task: {TASK}}}}}",
    "--data.init_args.template=plain",
    "--data.init_args.seq_len=32", "--data.init_args.global_batch_rows=8",
    "--data.init_args.micro_batch_size=2",
    "--data.init_args.group_size=4", "--data.init_args.max_prompt_tokens=24",
    "--data.init_args.validation=0.2",
    "--model.objective=lit_pretrain.objective.GRPO",
    "--model.rollout.rewards={a: {path: ExactAnswer}}",
    "--model.rollout.max_completion_tokens=8",
]  # fmt: skip


def test_answers_are_counted_as_many_as_are_there_at_once(planned: Any) -> None:
    net, layout = planned(*RL)
    assert layout.answering == Answering(rows=32, prompts=8, prompt_tokens=24, new_tokens=8)
    assert (layout.rows, layout.group, layout.frozen) == (8, 4, 0)
    engine = (
        "--model.rollout.engine={class_path: lit_pretrain.rollout.BuiltIn, init_args: {rows: 5}}"
    )
    fewer = planned(*RL, engine)[1]
    assert fewer.answering == Answering(rows=5, prompts=2, prompt_tokens=24, new_tokens=8)
    assert peak(net, fewer).answers < peak(net, layout).answers
    assert planned(*RL, "--trainer.devices=2")[1].answering.rows == 16
    assert planned(*RL, "--model.objective.beta=0.1")[1].frozen == count_parameters(net).total
    vllm = (
        "--model.rollout.engine={class_path: lit_pretrain.rollout.VLLM, init_args: {folder:"
        " nowhere}}"
    )
    assert planned(*RL, vllm)[1].answering is None  # it keeps its own cache


def test_a_rollout_that_cannot_fit_is_refused_with_what_would(
    work: Path, planned: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [
        *RL,
        "--data.init_args.global_batch_rows=40",
        "--data.init_args.group_size=50",
        "--data.init_args.micro_batch_size=1",
    ]
    net, layout = planned(*long)
    found = peak(net, layout)
    assert found.phase == "answers"
    limit = max(found.loss, found.backward, found.optimizer) * 1.5
    assert limit < found.answers
    monkeypatch.setattr(fit_plan, "device_memory", lambda device: limit)
    monkeypatch.setattr(fit_plan, "beside", lambda tensors, device: 0.0)
    monkeypatch.setattr(fit_plan, "room", lambda limit, device: limit)
    with pytest.raises(
        UserError,
        match=r"the network answers .*fewer answers at once .*BuiltIn, init_args: \{rows: \d+",
    ) as error:
        fit_plan.check_memory(net, layout, ranks_here=1, allow=False)
    assert "FSDP" not in str(error.value)  # which refuses rollouts


@pytest.mark.parametrize(
    ("options", "devices", "line"),
    [
        ([], 1, "1 device"),
        ([], 2, "2 devices, DDP"),
        (["--trainer.strategy=fsdp"], 4, "4 devices, mesh dp_shard 4"),
        (["--parallel.tp=2"], 4, "4 devices, mesh dp_shard 2 × tp 2"),
        (["--parallel.dp_replicate=2"], 8, "8 devices, mesh dp_replicate 2 × dp_shard 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_devices_are_said_with_their_mesh(options: list[str], devices: int, line: str) -> None:
    config = PlanCLI([*SHAPE, *options, "--devices", str(devices), "--max_steps=1"]).config
    assert fit_plan.devices_line(config, devices) == line


def test_a_run_and_its_inspection_name_the_devices(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((work / "base" / "provenance.json").read_text())["devices"] == "1 device"
    capsys.readouterr()
    assert main(["inspect", "run", str(work / "base")]) == 0
    assert ", 1 device\n" in capsys.readouterr().out
