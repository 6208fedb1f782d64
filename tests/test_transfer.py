"""A transfer: nothing changes at the base; what it changes elsewhere survives every command; and
what it has no rule for is refused by name.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import resolve
from lit_pretrain.checkpoint.weights import read_metadata
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.transfer import Transfer

SMALL = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=64", "--model.compile=off", "--data.seq_len=32",
    "--data.global_batch_tokens=256", "--data.micro_batch_size=4", "--data.val_tokens=256",
    "--max_steps=3", "--log_every=1", "--checkpoint_every=3", "--sample_prompts=[]",
    "--trainer.precision=32-true", "--trainer.accelerator=cpu",
]  # fmt: skip
AT_BASE = (
    "{base_width: 32, base_depth: 2, base_head_dim: 16, base_n_kv_head: 2, base_batch_tokens: 256,"
    " base_tokens: 768}"
)
RECIPES = {
    "muon": [
        "--model.net.value_embeddings=alternate", "--model.net.residual_scalars=true",
        "--model.net.qk_norm=true", "--model.net.init=gpt2", "--model.optimizer.weight_decay=0.1",
    ],
    "adamw": [
        "--model.optimizer=lit_pretrain.optim.AdamW", "--model.net.tie_embeddings=true",
        "--model.net.n_kv_head=2", "--model.net.init=zero_residual",
    ],
}  # fmt: skip


def fit(folder: Path, dataset: Path, name: str, *options: str) -> Path:
    arguments = ["fit", *SMALL, f"--data.path={dataset}", f"--runs={folder}", f"--name={name}"]
    assert main([*arguments, *options]) == 0
    return folder / name


def state(run: Path) -> dict[str, Any]:
    entries = dict(read_metadata(resolve(str(run))))
    return {"weights": entries["state_dict"], "optimizer": entries["optimizer_states"]}


def data_of(run: Path) -> str:
    facts: str = json.loads((run / "provenance.json").read_text())["data"]
    return facts


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        # The groups of a transfer name themselves.
        names = one.keys() | other.keys() - {"name"}
        return all(same(one[name], other[name]) for name in names)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("recipe", RECIPES)
def test_at_the_base_no_bit_changes(recipe: str, dataset: Path, tmp_path: Path) -> None:
    plain = fit(tmp_path, dataset, "plain", *RECIPES[recipe])
    base = fit(tmp_path, dataset, "base", *RECIPES[recipe], f"--model.transfer={AT_BASE}")
    assert same(state(plain), state(base))
    assert [line.get("val/loss") for line in read_metrics(plain)] == [
        line.get("val/loss") for line in read_metrics(base)
    ]


@pytest.fixture(scope="module")
def tied(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tied head at twice the width of its base."""
    return fit(
        tmp_path_factory.mktemp("runs"), dataset, "tied", *RECIPES["adamw"],
        "--model.net.init=gpt2", "--model.transfer={base_width: 16, base_depth: 1}",
    )  # fmt: skip


def test_commands_that_read_a_run_know_its_transfer(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = read_metrics(tied)[-1]["val/loss"]
    assert main(["inspect", "run", str(tied)]) == 0
    line = "transfer: width × 2 and depth × 2 of the base, 1 layers × 16"
    assert line in capsys.readouterr().out
    assert main(["validate", "--run", str(tied), "--trainer.accelerator=cpu"]) == 0
    assert f"{loss:.4f}" in capsys.readouterr().out
    assert main(["generate", "--run", str(tied), "--prompt", "The", "--max_new_tokens", "2"]) == 0
    # It compares the logits, by transformers where that is installed.
    assert main(["export", "--to", "hf", str(tied), str(tmp_path / "hf")]) == 0
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "again")]) == 0
    capsys.readouterr()
    assert main(["validate", "--run", str(tmp_path / "again"), "--data.path",
                 data_of(tied), "--data.seq_len=32", "--data.val_tokens=256",
                 "--trainer.accelerator=cpu", "--trainer.precision=32-true"]) == 0  # fmt: skip
    assert f"{loss:.4f}"[:5] in capsys.readouterr().out


def test_a_resume_needs_the_same_base(
    tied: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([
        "fit", *SMALL, *RECIPES["adamw"], "--model.net.init=gpt2", f"--data.path={dataset}",
        f"--runs={tied.parent}", "--name=tied", "--resume=auto",
        "--model.transfer={base_width: 16, base_depth: 2}",
    ])  # fmt: skip
    assert code == 2
    said = capsys.readouterr().err
    assert "model.transfer.base_depth: the checkpoint has 1, this run 2" in said


def test_a_child_keeps_the_scale_of_its_parents_logits(
    tied: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = read_metrics(tied)[-1]["val/loss"]
    still = ["--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=0"]
    child = fit(tmp_path, dataset, "child", f"--from={tied}", "--max_steps=1", *still)
    assert read_metrics(child)[-1]["val/loss"] == pytest.approx(loss, rel=1e-6)
    code = main([
        "fit", *SMALL, f"--data.path={dataset}", f"--runs={tmp_path}", "--name=other",
        f"--from={tied}", "--model.transfer={base_width: 8, base_depth: 1}",
        "--model.net.logit_scale=null",
    ])  # fmt: skip
    assert code == 2
    said = capsys.readouterr().err
    assert "by 0.25, which was trained with 0.5" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.transfer={base_width: 0, base_depth: 2}"], ["base_width=0", "positive"]),
        (["--model.transfer={base_width: 16}"], ["base_depth"]),
        (
            ["--model.transfer={base_width: 16, base_depth: 2}",
             "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"],
            ["AdamW and MuonAdamW", "model.optimizer=torch.optim.sgd.SGD"],
        ),
        (
            ["--model.transfer={base_width: 16, base_depth: 2, base_head_dim: 8}",
             "--model.net.qk_norm=true", "--model.net.norm_weight=false"],
            ["base_head_dim=8", "norm_weight: true"],
        ),
        (
            ["--model.transfer={base_width: 16, base_depth: 2}", "--model.net.logit_scale=0.3",
             "--model.net.tie_embeddings=true"],
            ["logit_scale=0.3", "sets it to 0.5"],
        ),
        (
            ["--model.transfer={base_width: 16, base_depth: 2}",
             "--model.net.block=lit_pretrain.model.Block"],
            ["model.net.block", "residual stream"],
        ),
    ],
)  # fmt: skip
def test_what_it_has_no_rule_for_is_refused(
    options: Sequence[str], words: Sequence[str], dataset: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    try:
        code = main(
            ["fit", *SMALL, f"--data.path={dataset}", f"--runs={tmp_path}", "--name=no", *options]
        )
    except SystemExit as exit:  # of the parser
        code = int(exit.code or 0)
    assert code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "no").exists()


def test_batch_and_length() -> None:
    transfer = Transfer(384, 6, base_batch_tokens=4096, base_tokens=10**6)
    factors = transfer.step_factors(4 * 4096, 32 * 10**6)
    assert factors.rate == pytest.approx(2 * 32**-0.3)
    assert factors.beta2_power == 4
    # The time constant B / (rate × decay × T) stays: a step decays by 4 / 32 of what it did.
    assert factors.decay == pytest.approx(1 / 8)
    assert Transfer(384, 6).step_factors(1, 1) == transfer.step_factors(4096, 10**6)


@pytest.mark.parametrize("field", Transfer.__dataclass_fields__)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{field}={value} must be positive"):
        Transfer(**{"base_width": 1, "base_depth": 1, field: value})
