"""Secrets are neither written nor compared, whatever their name, origin and place."""

import json
from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.resume_contract import differences
from lit_pretrain.errors import UserError
from lit_pretrain.plain_data import dump_config, read_config
from lit_pretrain.redaction import (
    HIDDEN,
    comparable,
    is_secret,
    origin_of,
    redact,
    redact_arguments,
    refuse_hidden,
)

SECRET = "s3cr3t-Zq9"
SECRETS = (
    "api_key", "apiKey", "API-KEY", "token", "hf_token", "access_token", "password", "passwd",
    "client_secret", "secretAccessKey", "aws_session_token", "private_key", "credentials", "auth",
    "connection_string", "account_key", "cookie", "Authorization", "sas_token",
)  # fmt: skip
PLAIN = ("eos_token", "bos_token", "max_tokens", "tokenizer", "keep", "path", "n_kv_head", "keys")


def test_names() -> None:
    assert [name for name in SECRETS if not is_secret(f"model.reward.{name}")] == []
    assert [name for name in PLAIN if is_secret(f"model.{name}")] == []
    assert is_secret("data.storage_options.client_kwargs.key")
    assert is_secret("data.init_args.storage_options.anything")
    assert not is_secret("data.storage_options.endpoint_url")


def test_no_option_of_ours_is_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """Else its value would be lost: the names are those of the saved config."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert redact(config) == config
    assert len(str(config)) > 1000


@pytest.mark.parametrize("name", SECRETS)
def test_every_place_of_a_secret(name: str) -> None:
    places = [
        {name: SECRET},
        {"a": {name: SECRET}},
        {"a": [{"class_path": "x.Y", "init_args": {name: SECRET}}]},
        {name: [SECRET]},
        {"storage_options": {"client_kwargs": {"whatever": SECRET}}},
        {"path": f"s3://{name}:{SECRET}@bucket/x"},
        {"path": f"https://{SECRET}@host/x?page=1"},
        {"path": f"https://host/x?page=1&X-Amz-Signature={SECRET}&sig={SECRET}"},
    ]
    for config in places:
        assert SECRET not in json.dumps(redact(config))
        assert SECRET not in json.dumps(comparable(config | redact(config)))
        words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
                 for key, value in config.items()]  # fmt: skip
        assert SECRET not in " ".join(redact_arguments(words))
        split = [part for word in words for part in word.split("=", 1)]
        assert SECRET not in " ".join(redact_arguments(split))
        with pytest.raises(UserError, match="which the run did not store"):
            refuse_hidden(redact(config))


def test_references_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE", SECRET)
    monkeypatch.setenv("SHORT", "ab")
    text = "x: ${oc.env:PROBE}\ny: a${oc.env:SHORT}c\nz: \\${oc.env:PROBE}\nsection: {v: '${x}'}\n"
    resolved = {
        "x": SECRET, "y": "aabc", "z": "${oc.env:PROBE}", "section": {"v": SECRET},
        "other": f"/data/${{b}}\\{SECRET}", "plain": "ab", "n": 3,
    }  # fmt: skip
    written = dump_config(redact(resolved, origin_of([text])))
    assert SECRET not in written
    assert "y: a${oc.env:SHORT}c" in written
    assert "plain: ab\n" in written
    file = tmp_path / "config.yaml"
    file.write_text(written)
    assert read_config(file) == resolved
    monkeypatch.delenv("SHORT")
    assert read_config(file)["y"] == "a${oc.env:SHORT}c"


def test_config_of_others_reads_no_secret_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    file = tmp_path / "config.yaml"
    file.write_text(
        "path: s3://evil/${oc.env:MY_API_KEY}\nstorage_options: {k: '${oc.env:MY_API_KEY}'}"
    )
    found = read_config(file)
    assert found["path"] == "s3://evil/${oc.env:MY_API_KEY}"
    assert found["storage_options"] == {"k": SECRET}


def test_contracts_of_older_checkpoints_show_no_secret() -> None:
    saved = {
        "data.storage_options.key": "old",
        "model.reward": [{"api_key": "old"}],
        "max_steps": 1,
    }
    now = {"max_steps": 2, "model.reward": [{"api_key": "new"}]}
    assert differences(saved, now) == ["max_steps: the checkpoint has 1, this run 2"]


def test_run_and_rotation(
    tmp_path: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run whose secret comes from the environment goes on with another one."""
    monkeypatch.setenv("PROBE", SECRET)
    monkeypatch.setenv("ROOT", str(dataset.parent))
    config = tmp_path / "own.yaml"
    config.write_text(
        "data:\n  path: ${oc.env:ROOT}/" + dataset.name + "\n  seq_len: 32\n"
        "  global_batch_tokens: 64\n  micro_batch_size: 2\n  val_tokens: 64\n"
        "  storage_options: {secret: '${oc.env:PROBE}', endpoint_url: 'http://h'}\n"
    )
    common = [
        "fit", f"--runs={tmp_path}", "--name=run", "--model.net.n_layer=1", "--model.net.width=16",
        "--model.net.n_head=1", "--model.net.max_seq_len=32", "--model.compile=off",
        "--trainer.accelerator=cpu", "--sample_prompts=[]", "--log_every=1",
        "--model.schedule.kind=constant", "--model.schedule.warmup=1 steps",
    ]  # fmt: skip
    assert main([*common, f"--config={config}", "--max_steps=1"]) == 0
    monkeypatch.setenv("PROBE", "another-9Zq")
    run = tmp_path / "run"
    again = ["fit", f"--config={run / 'config.yaml'}", "--resume=auto", "--max_steps=2"]
    assert main(again) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    for file in run.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert SECRET.encode() not in content, file
            assert b"another-9Zq" not in content, file
    assert SECRET not in shown.out + shown.err
    assert "secret: ${oc.env:PROBE}" in (run / "config.yaml").read_text()
    assert read_config(run / "config.yaml")["data"]["path"] == str(dataset)
    # A literal one cannot come back, and the run says so.
    literal = '--data.storage_options={"secret": "' + SECRET + '", "region": "x"}'
    assert (
        main([*common[:2], "--name=b", *common[3:], f"--config={config}", "--max_steps=1", literal])
        == 0
    )
    stored = read_config(tmp_path / "b" / "config.yaml")["data"]["storage_options"]
    assert stored == {"secret": HIDDEN, "region": "x"}
    assert main(["fit", f"--config={tmp_path / 'b' / 'config.yaml'}", "--resume=auto"]) == 2
    assert "data.storage_options.secret: a secret" in capsys.readouterr().err
