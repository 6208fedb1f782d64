"""Runs with an adapter, through the real command line: trained, resumed, measured, merged,
exchanged with peft, and built upon.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.adapter import is_adapter_tensor
from lit_pretrain.checkpoint.layout import resolve
from lit_pretrain.checkpoint.network import load_adapted, load_network
from lit_pretrain.checkpoint.weights import (
    read_adapter_record,
    read_stored,
    read_weights,
    weights_identity,
    write_checkpoint,
)
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import read_metrics

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[1]
LORA = ROOT / "configs" / "finetune" / "lora.yaml"
SHAPE = [
    "--model.net.n_layer=2",
    "--model.net.width=32",
    "--model.net.n_head=2",
    "--model.net.ffn_width=64",
    "--model.net.max_seq_len=64",
]
SHORT = [
    "--data.seq_len=32", "--data.micro_batch_size=4", "--data.global_batch_tokens=256",
    "--data.val_tokens=512", "--log_every=1",
    "--validate_every=0", "--checkpoint_every=0", "--sample_prompts=[]", "--model.compile=off",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
]  # fmt: skip
FAST = ["--model.optimizer.init_args.lr=0.01"]


def options(dataset: Path, runs: Path, name: str, *extra: str) -> list[str]:
    return [*SHORT, f"--data.path={dataset}", f"--runs={runs}", f"--name={name}", *extra]


def fit(dataset: Path, runs: Path, name: str, *extra: str, verb: str = "finetune") -> Path:
    assert main([verb, *options(dataset, runs, name, *extra)]) == 0
    return runs / name


def lora_options(
    dataset: Path, runs: Path, name: str, *extra: str, base: str = "base"
) -> list[str]:
    parent = ["finetune", f"--from={runs / base}", f"--config={LORA}"]
    return [*parent, *options(dataset, runs, name, "--max_steps=4", *FAST, *extra)]


def lora(dataset: Path, runs: Path, name: str, *extra: str) -> Path:
    assert main(lora_options(dataset, runs, name, *extra)) == 0
    return runs / name


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command line says of arguments that it refuses."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1] != ""
    return err


def losses(run: Path) -> list[tuple[Any, ...]]:
    return [
        (m["step"], m.get("train/loss"), m.get("train/grad_norm"), m.get("val/loss"))
        for m in read_metrics(run)
    ]


def validated(run: Path, tmp_path: Path) -> float:
    assert main(["validate", f"--run={run}", f"--json={tmp_path / 'figures.json'}"]) == 0
    return float(json.loads((tmp_path / "figures.json").read_text())["val/loss"])


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another base, and a run with LoRA on the first; not to be changed."""
    folder = tmp_path_factory.mktemp("adapters") / "runs"
    for seed, name in enumerate(("base", "other")):
        fit(dataset, folder, name, *SHAPE, "--max_steps=3", f"--model.seed={seed}", verb="fit")
    lora(dataset, folder, "lora")
    return folder


@pytest.fixture
def own_runs(runs: Path, tmp_path: Path) -> Path:
    """A copy that may be changed, whose adapters still name the first place."""
    return Path(shutil.copytree(runs, tmp_path / "moved"))


# ---------------------------------------------------------------------- what a run leaves behind


def test_a_checkpoint_holds_the_adapter_its_optimizer_and_the_base_s_hash(runs: Path) -> None:
    path = resolve(str(runs / "lora"))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"]
    assert all(is_adapter_tensor(key) for key in checkpoint["state_dict"])
    base = resolve(str(runs / "base"))
    assert checkpoint["adapter"]["base"] == str(base)
    assert checkpoint["adapter"]["base_hash"] == weights_identity(str(base))
    assert (path.parent.parent / checkpoint["adapter"]["base_from_run"]).resolve() == base.resolve()
    moments = sum(s["exp_avg"].numel() for s in checkpoint["optimizer_states"][0]["state"].values())
    assert moments == sum(value.numel() for value in checkpoint["state_dict"].values())


def test_the_base_is_untouched_and_the_loss_falls(runs: Path) -> None:
    checkpoint = resolve(str(runs / "lora"))
    adapted, record, _ = load_adapted(checkpoint)
    before = read_stored(resolve(str(runs / "base")))
    after = adapted.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert record.adapter.rank == 16
    assert read_metrics(runs / "lora")[-1]["val/loss"] < read_metrics(runs / "base")[-1]["val/loss"]


def test_what_was_validated_in_training_is_what_the_finished_run_has(
    runs: Path, tmp_path: Path
) -> None:
    assert validated(runs / "lora", tmp_path) == pytest.approx(
        read_metrics(runs / "lora")[-1]["val/loss"], abs=1e-5
    )


@pytest.mark.parametrize(
    "extra",
    [
        ["--model.adapter.dora=true"],
        ["--model.adapter.quantize=nf4", "--model.adapter.rslora=true"],
        ["--model.adapter.init=pissa"],
    ],
    ids=["dora", "nf4", "pissa"],
)
def test_every_kind_trains_and_reads_back(
    extra: list[str], dataset: Path, own_runs: Path, tmp_path: Path
) -> None:
    run = lora(dataset, own_runs, "kind", *extra)
    assert (
        abs(read_metrics(run)[-1]["val/loss"] - read_metrics(own_runs / "base")[-1]["val/loss"])
        > 1e-3
    )
    assert validated(run, tmp_path) == pytest.approx(read_metrics(run)[-1]["val/loss"], abs=1e-5)
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    composed, whole = read_weights(str(run)), read_weights(str(tmp_path / "merged"))
    assert all(torch.equal(value, composed[key]) for key, value in whole.items())


def test_costs_are_printed_and_lineage_is_shown(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "run", str(runs / "lora")]) == 0
    out = capsys.readouterr().out
    net = load_network(resolve(str(runs / "lora")))
    total = sum(p.numel() for p in net.parameters())
    trained = sum(v.numel() for v in read_stored(resolve(str(runs / "lora"))).values())
    assert f"LoRA, rank 16, on 14 matrices: {trained:,} of {total:,} parameters trained" in out
    assert f"from {resolve(str(runs / 'base'))}" in out
    assert "16 on 14 matrices" not in (runs / "base" / "summary.md").read_text()
    assert f"{trained:,} of {total:,}" in (runs / "lora" / "summary.md").read_text()


def test_generation_reads_base_and_adapter(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "generate",
                f"--run={runs / 'lora'}",
                "--prompt=The",
                "--max_new_tokens=12",
                "--temperature=0",
                "--device=cpu",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith("The")
    checkpoint = resolve(str(runs / "lora"))
    whole, (beside, _, _) = load_network(checkpoint).eval(), load_adapted(checkpoint)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens), beside(tokens), atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "extra",
    [[], ["--model.adapter.dora=true", "--model.adapter.quantize=nf4"]],
    ids=["lora", "qdora"],
)
def test_a_resumed_run_has_the_same_losses_to_the_bit(
    extra: list[str], dataset: Path, own_runs: Path
) -> None:
    """Dropout included: the config has 5 %."""
    settings = ["--checkpoint_every=2", "--model.adapter.dropout=0.2", *extra]
    run = lora(dataset, own_runs, "stopped", *settings)
    whole = losses(run)
    (run / "checkpoints" / "step=00000004.ckpt").unlink()
    lora(dataset, own_runs, "stopped", *settings, "--resume=auto")
    assert losses(run) == whole
    assert len(whole) == 5


def test_resuming_on_another_base_is_refused_with_both_hashes(
    dataset: Path, own_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lora(dataset, own_runs, "stopped", "--checkpoint_every=2")
    (run / "checkpoints" / "step=00000004.ckpt").unlink()
    err = refused(
        capsys,
        *lora_options(
            dataset, own_runs, "stopped", "--checkpoint_every=2", "--resume=auto", base="other"
        ),
    )
    for name in ("base", "other"):
        assert weights_identity(str(own_runs / name)) in err


def test_resuming_with_other_settings_names_them(
    dataset: Path, own_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(
        capsys, *lora_options(dataset, own_runs, "lora", "--model.adapter.rank=8", "--resume=auto")
    )
    assert "model.adapter.rank: the checkpoint has 16, this run 8" in err


# ---------------------------------------------------------------------- the base beneath


def test_runs_that_have_moved_together_still_fit(
    dataset: Path, own_runs: Path, tmp_path: Path
) -> None:
    run = lora(dataset, own_runs, "lora2")
    elsewhere = own_runs.rename(tmp_path / "elsewhere")
    assert validated(elsewhere / "lora2", tmp_path) == pytest.approx(
        read_metrics(elsewhere / "lora2")[-1]["val/loss"], abs=1e-5
    )
    assert not run.exists()


def test_a_changed_base_is_refused_with_both_hashes(dataset: Path, own_runs: Path) -> None:
    run = lora(dataset, own_runs, "lora2")
    base = resolve(str(own_runs / "base"))
    before = weights_identity(str(base))
    checkpoint = torch.load(base, weights_only=True)
    checkpoint["state_dict"]["net.final_norm.weight"][0] += 1e-3
    torch.save(checkpoint, base)
    with pytest.raises(UserError) as error:
        read_weights(str(run))
    assert before in str(error.value)
    assert weights_identity(str(base)) in str(error.value)


def test_a_base_that_is_gone_can_be_named(
    dataset: Path, own_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lora(dataset, own_runs, "lora2")
    (own_runs / "base").rename(own_runs / "hidden")
    err = refused(capsys, "generate", f"--run={run}")
    assert "is gone" in err
    assert "merge RUN OUT --base" in err
    assert "sha256" in refused(
        capsys, "merge", run, tmp_path / "merged", f"--base={own_runs / 'other'}"
    )
    assert not (tmp_path / "merged").exists()
    assert main(["merge", str(run), str(tmp_path / "merged"), f"--base={own_runs / 'hidden'}"]) == 0
    assert validated(tmp_path / "merged", tmp_path) == pytest.approx(
        read_metrics(run)[-1]["val/loss"], abs=1e-5
    )


# ---------------------------------------------------------------------- average


def test_adapters_average_on_their_base_wherever_it_lies(
    own_runs: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two adapters of one base, the second with all tensors of the first taken twice."""
    lora, twice = own_runs / "lora", own_runs / "twice"
    shutil.copytree(lora, twice)
    path = resolve(str(twice))
    checkpoint = dict(torch.load(path, weights_only=True))
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: 2 * value for key, value in state.items()}
    write_checkpoint(checkpoint, path)
    out = tmp_path / "deep" / "averaged"
    assert main(["average", str(lora), str(twice), str(out)]) == 0
    mean, one = read_stored(resolve(str(out))), read_stored(resolve(str(lora)))
    assert mean.keys() == one.keys()
    assert all(torch.equal(value, (1.5 * one[key].double()).float()) for key, value in mean.items())
    record = read_adapter_record(resolve(str(out)))
    assert record is not None
    assert Path(record.find_base(resolve(str(out)))).exists()
    assert len(read_weights(str(out))) == len(read_weights(str(runs / "base")))
    err = refused(capsys, "average", runs / "base", lora, tmp_path / "mixed")
    assert "do not belong together: the adapter differs" in err


# ---------------------------------------------------------------------- merge


def test_a_merged_run_is_a_run_and_a_parent(
    runs: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", str(runs / "lora"), str(merged)]) == 0
    out = capsys.readouterr().out
    assert "largest difference" in out
    composed, whole = read_weights(str(runs / "lora")), read_weights(str(merged))
    assert composed.keys() == whole.keys()
    assert all(torch.equal(value, composed[key]) for key, value in whole.items())
    assert not any(is_adapter_tensor(key) for key in whole)
    assert main(["inspect", "run", str(merged)]) == 0
    lineage = capsys.readouterr().out
    assert [
        name in lineage for name in ("merge, started", "finetune, started", "fit, started")
    ] == [True] * 3
    # A further stage from the merged run, from the adapter's run itself, and an adapter upon the
    # adapter: all begin at the same loss.
    first = []
    for name, parent, extra in (
        ("a", merged, []),
        ("b", runs / "lora", []),
        ("c", runs / "lora", ["--model.adapter.rank=4"]),
    ):
        run = fit(dataset, tmp_path, name, f"--from={parent}", "--max_steps=1", *extra)
        first.append(next(m["train/loss"] for m in read_metrics(run) if "train/loss" in m))
    assert first == pytest.approx([first[0]] * 3, abs=1e-6)
    assert validated(tmp_path / "c", tmp_path) == pytest.approx(
        read_metrics(tmp_path / "c")[-1]["val/loss"], abs=1e-5
    )


def test_a_merged_run_appears_whole_or_not_at_all(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    for arguments, says in (
        ([str(runs / "lora"), str(tmp_path / "there")], "exists already"),
        ([str(runs / "base"), str(tmp_path / "merged")], "whole network"),
        (
            [str(runs / "lora"), str(tmp_path / "merged"), "--tolerance=1e-12", "--dtype=bfloat16"],
            "nothing is written",
        ),
        ([str(runs / "nowhere"), str(tmp_path / "merged")], "does not exist"),
    ):
        assert says in refused(capsys, "merge", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_merging_casts_last(runs: Path, tmp_path: Path) -> None:
    assert (
        main(
            [
                "merge",
                str(runs / "lora"),
                str(tmp_path / "half"),
                "--dtype=bfloat16",
                "--tolerance=0.5",
            ]
        )
        == 0
    )
    exact, half = read_weights(str(runs / "lora")), read_stored(resolve(str(tmp_path / "half")))
    assert all(torch.equal(value, exact[key].bfloat16()) for key, value in half.items())


# ---------------------------------------------------------------------- peft


def test_to_peft_and_back(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "export", str(runs / "lora"), str(tmp_path / "peft")]) == 0
    language = ["lineage.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        *language,
    ]
    assert (
        main(
            [
                "adapter",
                "import",
                str(tmp_path / "peft"),
                str(tmp_path / "back"),
                str(runs / "base"),
            ]
        )
        == 0
    )
    ours, back = (read_stored(resolve(str(place))) for place in (runs / "lora", tmp_path / "back"))
    assert ours.keys() == back.keys()
    assert all(torch.equal(value, back[key]) for key, value in ours.items())
    assert validated(tmp_path / "back", tmp_path) == pytest.approx(
        read_metrics(runs / "lora")[-1]["val/loss"], abs=1e-5
    )
    assert "whole network" in refused(
        capsys, "adapter", "export", runs / "base", tmp_path / "peft2"
    )
    assert "is not an adapter of peft" in refused(
        capsys, "adapter", "import", runs, tmp_path / "back2", runs / "base"
    )


# ---------------------------------------------------------------------- freeze, and what makes no
# sense


def test_frozen_weights_stay_and_the_others_move(dataset: Path, runs: Path, tmp_path: Path) -> None:
    run = fit(
        dataset,
        tmp_path,
        "frozen",
        f"--from={runs / 'base'}",
        "--max_steps=2",
        "--model.freeze=['blocks\\.0\\.', token_embedding]",
    )
    before, after = read_weights(str(runs / "base")), read_weights(str(run))
    same = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert same == {key for key in before if key.startswith(("blocks.0.", "token_embedding."))}
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["freeze"] == [
        "blocks\\.0\\.",
        "token_embedding",
    ]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--model.adapter.rank=4", "--model.freeze=[head]"], "no effect beside model.adapter"),
        (["--model.adapter.rank=4", "--sharded_checkpoints=true"], "sharded_checkpoints"),
        (["--model.adapter.targets=[q_porj]"], "attention.q_proj"),
        (["--model.freeze=[blokcs]"], "blocks"),
    ],
)
def test_combinations_without_sense_are_refused_by_name(
    extra: list[str],
    says: str,
    dataset: Path,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = options(dataset, tmp_path, "no", f"--from={runs / 'base'}", "--max_steps=1", *extra)
    assert says in refused(capsys, "finetune", *arguments)


def test_an_adapter_needs_a_trained_network(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--from RUN" in refused(
        capsys,
        "fit",
        *options(dataset, tmp_path, "no", *SHAPE, "--max_steps=1", "--model.adapter.rank=4"),
    )


def test_compiled_and_plain_training_agree(dataset: Path, runs: Path, own_runs: Path) -> None:
    from lit_pretrain.stage.origin import can_compile

    if can_compile(torch.device("cpu")) is not None:
        pytest.skip("no compiler on this machine")
    plain = [
        m["train/loss"]
        for m in read_metrics(lora(dataset, own_runs, "plain", "--model.adapter.dropout=0"))
        if "train/loss" in m
    ]
    run = lora(dataset, own_runs, "compiled", "--model.adapter.dropout=0", "--model.compile=on")
    compiled = [m["train/loss"] for m in read_metrics(run) if "train/loss" in m]
    assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_and_hand_over(
    strategy: str, dataset: Path, own_runs: Path, run_cli: RunCli
) -> None:
    plain = ["--model.adapter.dropout=0", "--checkpoint_every=2"]
    expected = [figure[1:] for figure in losses(lora(dataset, own_runs, "one", *plain))]
    two = [*plain, "--trainer.devices=2", f"--trainer.strategy={strategy}"]
    done = run_cli(*lora_options(dataset, own_runs, strategy, *two))
    assert done.returncode == 0, done.stderr
    run = own_runs / strategy
    assert torch.load(resolve(str(run)), weights_only=True)["adapter"][
        "base_hash"
    ] == weights_identity(str(own_runs / "base"))
    found = [figure[1:] for figure in losses(run)]
    assert [x for line in found for x in line if x] == pytest.approx(
        [x for line in expected for x in line if x], rel=1e-4
    )
    # Two go on from the middle, and one reads what they leave.
    resolve(str(run)).unlink()
    again = run_cli(*lora_options(dataset, own_runs, strategy, *two, "--resume=auto"))
    assert again.returncode == 0, again.stderr
    assert [figure[1:] for figure in losses(run)] == found
    whole, other = read_weights(str(run)), read_weights(str(own_runs / "one"))
    for key, value in whole.items():
        torch.testing.assert_close(value, other[key], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_sharding_nf4_is_refused_by_name(dataset: Path, own_runs: Path, run_cli: RunCli) -> None:
    extra = ["--model.adapter.quantize=nf4", "--trainer.devices=2", "--trainer.strategy=fsdp"]
    done = run_cli(*lora_options(dataset, own_runs, "no", *extra))
    assert done.returncode == 2
    assert "cannot be sharded" in done.stderr
