"""Runs that leave for Hugging Face and come back, through the real command line; and the
contract that is checked at every hand-over.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.layout import resolve
from lit_pretrain.checkpoint.lineage import Lineage
from lit_pretrain.checkpoint.network import TEXTS, load_network
from lit_pretrain.checkpoint.weights import read_weights, weights_identity

NET = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=4",
    "--model.net.n_kv_head=2", "--model.net.ffn_width=64",
    "--model.net.max_seq_len=128",
]  # fmt: skip
SHORT = [
    "--log_every=5", "--validate_every=0", "--checkpoint_every=0", "--sample_prompts=[]",
    "--model.compile=off",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true", "--model.optimizer.class_path=lit_pretrain.optim.AdamW",
    "--model.optimizer.init_args.lr=0.01",
]  # fmt: skip
TEXT = [
    "--data.seq_len=32",
    "--data.micro_batch_size=8",
    "--data.global_batch_tokens=512",
    "--data.val_tokens=512",
]


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a run on conversations and a LoRA on that; not to be changed."""
    work = tmp_path_factory.mktemp("exchange")
    place = [f"--runs={work}"]
    assert (
        main(
            [
                "fit",
                *NET,
                *SHORT,
                *TEXT,
                f"--data.path={dataset}",
                *place,
                "--name=base",
                "--max_steps=20",
            ]
        )
        == 0
    )
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?"},
                {"role": "assistant", "content": f"The fox is {i}."},
            ]
        }
        for i in range(40)
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "path": str(work / "rows.jsonl"),
        "seq_len": 128,
        "global_batch_rows": 4,
        "micro_batch_size": 2,
        "validation": 0.2,
    }
    config = {"data": {"class_path": "lit_pretrain.data.ChatData", "init_args": data}}
    (work / "sft.yaml").write_text(yaml.safe_dump(config))
    sft = ["posttrain", f"--config={work / 'sft.yaml'}", *SHORT, *place]
    assert main([*sft, f"--from={work / 'base'}", "--name=sft", "--max_steps=5"]) == 0
    lora = [
        "--model.adapter.rank=4",
        "--model.adapter.alpha=8",
        "--model.adapter.targets=['attention']",
    ]
    assert main([*sft, *lora, f"--from={work / 'sft'}", "--name=lora", "--max_steps=5"]) == 0
    return work


@pytest.fixture(scope="module")
def exported(runs: Path) -> Path:
    """The run on conversations as a Hugging Face folder of several files; not to be changed."""
    out = runs / "sft-hf"
    assert main(["export", "--to=hf", str(runs / "sft"), str(out), "--max_shard_gb=0.00005"]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command line says of arguments that it refuses."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_tokenizer(folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(spec))


# ---------------------------------------------------------------------- export


def test_the_folder_is_what_transformers_wants(exported: Path, runs: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra (transformers)")
    net, language = load_network(resolve(str(runs / "sft"))).eval(), ModelTokenizer.of(runs / "sft")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    messages = [{"role": "user", "content": "What is 7?"}]
    assert language.template is not None
    text = language.template.render(
        messages, bos=language.tokenizer.bos, eos=language.tokenizer.eos, generation_prompt=True
    ).text
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    )
    ids = language.tokenizer.encode_spelt([text])[0].ids.tolist()
    assert tokenizer(text)["input_ids"] == ids  # no bos, which the template does not write
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    assert sorted(model.generation_config.eos_token_id) == sorted(language.stop_ids)
    assert len(language.stop_ids) == 2
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.tensor([ids])).logits,
            net.logits(net(torch.tensor([ids]))),
            atol=1e-5,
            rtol=1e-5,
        )
    assert len(list(exported.glob("model-*.safetensors"))) > 1
    assert (
        json.loads((exported / "tokenizer_config.json").read_text())["chat_template"]
        == (exported / "chat_template.jinja").read_text()
    )


def test_the_tokenizer_begins_with_bos_if_it_is_told_to(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra (transformers)")
    assert main(["export", str(runs / "base"), str(tmp_path / "out"), "--dtype=bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "the run and its export read by transformers: largest difference" in out
    assert "done:" in out
    own, load = (
        ModelTokenizer.of(runs / "base").tokenizer,
        transformers.AutoTokenizer.from_pretrained,
    )
    assert load(tmp_path / "out")("The fox")["input_ids"] == own.encode("The fox")
    assert load(tmp_path / "out", add_bos_token=True)("The fox")["input_ids"] == [
        own.bos_id,
        *own.encode("The fox"),
    ]
    assert "add_bos_token=True" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_a_tokenizer_that_transformers_reads_otherwise_is_named(
    runs: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers 5 gives a Qwen2 the tokenizer of Qwen2, which cuts numbers into digits; a
    Llama keeps its own.
    """
    transformers = pytest.importorskip("transformers", reason="needs the dev extra (transformers)")
    place = [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=biased", "--max_steps=1"]
    assert main(["fit", *NET, "--model.net.qkv_bias=true", *SHORT, *TEXT, *place]) == 0
    capsys.readouterr()
    for run, kind in ((tmp_path / "biased", "qwen2"), (runs / "base", "llama")):
        assert main(["export", str(run), str(tmp_path / kind)]) == 0
        said = capsys.readouterr().out
        own, theirs = (
            ModelTokenizer.of(run).tokenizer,
            transformers.AutoTokenizer.from_pretrained(tmp_path / kind),
        )
        same = all(
            theirs(text, add_special_tokens=False).input_ids == own.encode(text) for text in TEXTS
        )
        assert ("tokenizer: AutoTokenizer of transformers" in said) is not same
        assert same or kind == "qwen2"
        plain = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / kind)
        assert all(
            plain(text, add_special_tokens=False).input_ids == own.encode(text) for text in TEXTS
        )
        assert f"done: {tmp_path / kind}: {kind}" in said


def test_the_card_and_the_lineage_name_everything(
    exported: Path, runs: Path, dataset: Path
) -> None:
    lineage = Lineage.read(exported)
    assert lineage is not None
    assert [stage["verb"] for stage in lineage.stages] == ["export", "posttrain", "fit"]
    assert lineage.language == ModelTokenizer.of(runs / "sft").record()
    assert set(lineage.stages[2]["data"]["sources"]) == {"story", "sums", "code"}
    card = (exported / "README.md").read_text()
    for text in (
        "CC0-1.0",
        "made for tests",
        "rows.jsonl",
        str(dataset),
        "largest difference",
        "not decontaminated",
    ):
        assert text in card


def test_an_adapter_is_exported_within_its_base(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(runs / "lora"), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    whole, back = read_weights(str(runs / "lora")), read_weights(str(tmp_path / "back"))
    assert all(torch.equal(value, back[key]) for key, value in whole.items())
    # A run that was not trained here has read no data.
    assert "give a dataset that was prepared with its tokenizer: --data.path" in refused(
        capsys, "validate", tmp_path / "back"
    )
    assert "was not trained here" in refused(capsys, "inspect", "order", tmp_path / "back")


def test_nothing_is_written_over_and_a_failure_leaves_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert "exists already" in refused(capsys, "export", runs / "base", tmp_path / "there")
    assert "exists already" in refused(capsys, "import", runs / "sft-hf", tmp_path / "there")
    err = refused(
        capsys, "export", runs / "base", tmp_path / "out", "--dtype=bfloat16", "--tolerance=1e-9"
    )
    assert "nothing is written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_parts_of_our_own_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        "--model.net.activation=relu2",
        "--model.net.value_embeddings=alternate",
        "--model.net.residual_scalars=true",
    ]
    options = [
        *NET,
        *parts,
        *SHORT,
        *TEXT,
        f"--data.path={dataset}",
        f"--runs={tmp_path}",
        "--name=own",
        "--max_steps=1",
    ]
    assert main(["fit", *options, "--model.net.ffn_width=64"]) == 0
    err = refused(capsys, "export", tmp_path / "own", tmp_path / "out")
    for part in (
        "value_embeddings='alternate'",
        "residual_scalars=True",
        "activation='relu2'",
        "configs/pretrain/llama_adamw.yaml",
    ):
        assert part in err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- import


def test_what_comes_back_is_what_left_and_can_be_trained(
    exported: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(exported), str(tmp_path / "back")]) == 0
    assert "and the run: largest difference" in capsys.readouterr().out
    assert weights_identity(str(tmp_path / "back")) == weights_identity(str(runs / "sft"))
    assert ModelTokenizer.of(tmp_path / "back").record() == ModelTokenizer.of(runs / "sft").record()
    sft = [
        "posttrain",
        f"--config={runs / 'sft.yaml'}",
        *SHORT,
        f"--runs={tmp_path}",
        "--max_steps=1",
    ]
    assert main([*sft, f"--from={tmp_path / 'back'}", "--name=on"]) == 0
    assert main([*sft, f"--from={exported}", "--name=directly"]) == 0
    capsys.readouterr()
    assert main(["inspect", "run", str(tmp_path / "on")]) == 0
    out = capsys.readouterr().out
    for text in (
        "posttrain",
        "import",
        "export",
        "fit",
        "source story: jsonl, licence CC0-1.0",
        "source rows: rows",
    ):
        assert text in out


# ---------------------------------------------------------------------- the contract


@pytest.mark.parametrize("verb", ["export", "merge", "adapter export", "evaluate", "import"])
def test_a_changed_tokenizer_is_seen_at_every_hand_over(
    verb: str, exported: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "artefact"
    shutil.copytree(exported if verb == "import" else runs / "lora", place)
    other_tokenizer(place)
    out = [] if verb == "evaluate" else [tmp_path / "out"]
    err = refused(capsys, *verb.split(), place, *out)
    record = Lineage.read(place)
    assert record is not None
    assert (
        f"tokenizer (sha256 of tokenizer.json): expected {record.language['tokenizer']}, found"
        f" {ModelTokenizer.of(place).tokenizer.hash}" in err
    )
    assert "--accept '[tokenizer]'" in err
    assert not (tmp_path / "out").exists()
    if verb == "merge":
        assert (
            main(
                [
                    verb,
                    str(place),
                    str(tmp_path / "out"),
                    "--accept=[tokenizer]",
                    f"--base={runs / 'sft'}",
                ]
            )
            == 0
        )


def test_other_fields_are_named_too(
    exported: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(runs / "sft", tmp_path / name))

    place = changed("template")
    (place / "chat_template.jinja").write_text(
        (place / "chat_template.jinja").read_text().replace("assistant\\n", "assistant: ")
    )
    assert "template (sha256 of the chat template): expected" in refused(
        capsys, "export", place, tmp_path / "out"
    )
    assert "template (sha256 of the chat template): expected" in refused(
        capsys, "chat", f"--run={place}"
    )
    assert "--accept '[template]'" in refused(capsys, "serve", f"--run={place}", "--port=0")
    place = changed("separators")
    assert main(["generate", f"--run={place}", "--max_new_tokens=1"]) == 0
    edit(place / "tokenizer_config.json", bos_token="<|im_end|>")
    assert "bos_id (id that begins a document): expected" in refused(
        capsys, "export", place, tmp_path / "out"
    )
    assert "bos_id (id that begins a document): expected" in refused(
        capsys, "generate", f"--run={place}"
    )
    assert main(["generate", f"--run={place}", "--max_new_tokens=1", "--accept=[bos_id]"]) == 0
    assert "there is no such field" in refused(
        capsys, "export", place, tmp_path / "out", "--accept=[bos]"
    )
    place = Path(shutil.copytree(exported, tmp_path / "weights"))
    shard = sorted(place.glob("model-*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    assert "weights (sha256 of their content): expected" in refused(
        capsys, "import", place, tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_data_that_does_not_speak_the_parent_s_language(
    runs: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = [
        "posttrain",
        f"--config={runs / 'sft.yaml'}",
        *SHORT,
        f"--runs={tmp_path}",
        "--max_steps=1",
        f"--from={runs / 'sft'}",
    ]
    err = refused(capsys, *sft, "--name=a", "--data.init_args.template=plain")
    assert "template (sha256 of the chat template): expected" in err
    assert "--accept '[template]'" in err
    assert main([*sft, "--name=a", "--data.init_args.template=plain", "--accept=[template]"]) == 0
    place = Path(shutil.copytree(dataset, tmp_path / "tokenizer"))
    other_tokenizer(place)
    err = refused(capsys, *sft, "--name=b", f"--data.init_args.tokenizer={place}")
    assert "tokenizer (sha256 of tokenizer.json): expected" in err
    assert not (tmp_path / "b").exists()


def test_an_adapter_of_peft_brings_its_language(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapter", "export", str(runs / "lora"), str(tmp_path / "peft")]) == 0
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
    lineage = Lineage.read(tmp_path / "back")
    assert lineage is not None
    assert [stage["verb"] for stage in lineage.stages] == [
        "adapter import",
        "adapter export",
        "posttrain",
        "posttrain",
        "fit",
    ]
    assert ModelTokenizer.of(tmp_path / "back").template is not None
    other_tokenizer(tmp_path / "peft")
    (tmp_path / "peft" / "lineage.json").unlink()
    assert "does not fit the base" in refused(
        capsys, "adapter", "import", tmp_path / "peft", tmp_path / "c", runs / "base"
    )
