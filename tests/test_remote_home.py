"""A run whose home is S3: it goes on from there on an empty machine, to the same bits, whatever
interrupts an upload; and the verbs that read runs read it there.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import checkpoints
from lit_pretrain.checkpoint.remote_run import COMPLETE, RemoteRun
from lit_pretrain.checkpoint.weights import weights_identity
from tests.test_distributed import ONE, SHARDED, TWO, figures
from tests.test_distributed import fit as distributed_fit
from tests.test_resume import at_step, losses, options

pytestmark = pytest.mark.usefixtures("one_thread")
HOME = "s3://models/runs"


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket, found as everywhere by the environment; what is cached lies in tmp_path."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": s3_server, "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    bucket = boto3.resource("s3").Bucket("models")
    bucket.create()
    bucket.objects.all().delete()
    return s3_server


def fit(dataset: Path, local: Path, *extra: str) -> int:
    arguments = options(dataset, Path("unused"), "x", "--keep_checkpoints=2", *extra)
    arguments[arguments.index("--runs=unused")] = f"--runs={HOME}"
    return main([*arguments, f"--local_runs={local}"])


def there() -> list[str]:
    """Names of the objects of the run."""
    found = boto3.client("s3").list_objects_v2(Bucket="models", Prefix="runs/x/")
    return [entry["Key"].removeprefix("runs/x/") for entry in found.get("Contents", ())]


def test_an_empty_machine_goes_on_past_an_interrupted_upload(
    s3: str, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The machine is lost while the checkpoint of step 12 is being uploaded."""
    assert main(options(dataset, tmp_path, "plain", "--keep_checkpoints=2")) == 0
    plain, lost = RemoteRun._put, []

    def put(self: RemoteRun, content: Path | bytes, name: str) -> None:
        newer = name.endswith(f"step=00000012.ckpt{COMPLETE}") or "step=00000014" in name
        if lost or newer:
            lost.append(name)
            raise OSError("no route to host")
        plain(self, content, name)

    def until(done: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end
            time.sleep(0.01)

    def eight_is_there() -> None:
        until(lambda: f"checkpoints/step=00000008.ckpt{COMPLETE}" in there())

    def twelve_is_lost() -> None:
        until(lambda: bool(lost))

    with (
        pytest.MonkeyPatch.context() as patch,
        at_step(11, eight_is_there),
        at_step(13, twelve_is_lost),
    ):
        patch.setattr(RemoteRun, "_put", put)
        assert fit(dataset, tmp_path / "a", "--async_checkpoints=true") == 2
    said = capfd.readouterr().err
    assert f"warning: {HOME}/x cannot be written: no route to host" in said
    assert f"error: {HOME}/x cannot be written: no route to host" in said
    shutil.rmtree(tmp_path / "a")
    assert fit(dataset, tmp_path / "b") == 2  # --resume never
    assert f"{HOME}/x already holds a run" in capfd.readouterr().err

    assert fit(dataset, tmp_path / "b", "--resume=auto") == 0
    said = capfd.readouterr()
    assert "step=00000012.ckpt is not whole (interrupted upload); it is passed over" in said.err
    assert "fetched step=00000008.ckpt, step=00000004.ckpt of" in said.out
    assert losses(tmp_path / "b" / "x") == losses(tmp_path / "plain")
    kept = [path.name for path in checkpoints(tmp_path / "plain")]
    assert [path.name for path in checkpoints(tmp_path / "b" / "x")] == kept
    for name in kept:
        assert weights_identity(str(tmp_path / "b" / "x" / "checkpoints" / name)) == (
            weights_identity(str(tmp_path / "plain" / "checkpoints" / name))
        )
    marks = [name for name in there() if name.endswith(COMPLETE)]
    assert marks == [f"checkpoints/{name}{COMPLETE}" for name in kept]  # retention there, too
    assert {"summary.md", "metrics.jsonl", "config.yaml", "state.json"} <= set(there())

    assert fit(dataset, tmp_path / "c", "--resume=auto") == 0
    assert "nothing is left to do" in capfd.readouterr().out


def test_what_cannot_be_reached_is_said_before_training(
    s3: str, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    boto3.client("s3").delete_bucket(Bucket="models")
    with at_step(0, lambda: pytest.fail("it trains")):
        assert fit(dataset, tmp_path / "a") == 2
    said = capfd.readouterr().err
    assert f"error: {HOME}/x cannot be listed" in said
    assert "NoSuchBucket" in said
    assert "Traceback" not in said


def test_verbs_read_a_run_where_it_lives_or_say_that_they_do_not(
    s3: str, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(dataset, tmp_path / "a", "--max_steps=4") == 0
    run = f"{HOME}/x"
    out = str(tmp_path / "out")
    reads = [
        ["generate", "--run", run, "--prompt", "a", "--max_new_tokens", "2"],
        ["generate", "--run", f"{run}/checkpoints/step=00000004.ckpt", "--prompt", "a",
         "--max_new_tokens", "2"],
        ["validate", "--run", run],
        ["inspect", "run", run],
        ["inspect", "run", run, "--verify"],
        ["inspect", "order", run, "--step", "1"],
        ["replay", run, "--step", "2"],
        ["export", "--to", "hf", run, out],
        ["finetune", "--from", run, f"--data.path={dataset}", "--data.seq_len=32",
         "--data.global_batch_tokens=256", "--data.micro_batch_size=8", "--data.val_tokens=256",
         "--max_steps=1", f"--runs={tmp_path}", "--name=child", "--model.compile=off",
         "--sample_prompts=[]"],
    ]  # fmt: skip
    for arguments in reads:
        assert main(arguments) == 0, (arguments, capfd.readouterr().err)
    refuses = [
        ["runs", HOME],
        ["scaling", "fit", run],
        ["average", run, f"{out}-mean", "--last", "2"],
        ["fit", f"--resume={run}/checkpoints/step=00000004.ckpt", f"--data.path={dataset}"],
    ]
    capfd.readouterr()
    for arguments in refuses:
        assert main(arguments) == 2, arguments
        said = capfd.readouterr().err
        assert "s3://models/runs" in said or "keeps 1 checkpoint" in said, (arguments, said)
        assert "Traceback" not in said


@pytest.mark.slow
def test_two_ranks_and_their_shards_go_on_as_one_on_an_empty_machine(
    dataset: Path, tmp_path: Path
) -> None:
    sharded = [*TWO, *SHARDED, "--async_checkpoints=true"]
    address = f"file://{tmp_path}/store"
    distributed_fit(dataset, tmp_path, "whole", *ONE)
    home = ("--name=x", f"--runs={address}", "--resume=auto")
    distributed_fit(dataset, tmp_path, "unused", *sharded, *home, f"--local_runs={tmp_path}/a")
    store = tmp_path / "store" / "x" / "checkpoints"
    assert (store / "step=00000008.ckpt" / "digests.json").is_file()
    (store / f"step=00000008.ckpt{COMPLETE}").unlink()
    said = distributed_fit(dataset, tmp_path, "unused", *TWO, *home, f"--local_runs={tmp_path}/b")
    assert said.count("fetched step=00000004.ckpt of") == 1
    assert figures(tmp_path / "b" / "x") == pytest.approx(figures(tmp_path / "whole"), abs=1e-5)
    assert (store / "step=00000008.ckpt").is_file()
