"""New tokens on a trained base: `--tokenizer.add`, or a tokenizer that extends the parent's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.checkpoint.layout import resolve
from lit_pretrain.checkpoint.network import load_network, logits_of
from lit_pretrain.checkpoint.weights import read_stored, read_weights
from lit_pretrain.tokenizer.tokenizer import Tokenizer

NEW = ["<|tool|>", "<|think|>", "<|/think|>"]
ROWS = [
    {"messages": [
        {"role": "user", "content": f"<|think|>{n} + {n}<|/think|>"},
        {"role": "assistant", "content": f"It is {2 * n}."},
    ]}
    for n in range(40)
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|think|>{% generation %}"
    "{{ message.content }}<|tool|>{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ message.content }}\n{% endif %}{% endfor %}"
)
SMALL = [
    "--log_every=1", "--validate_every=0", "--checkpoint_every=0", "--sample_prompts=[]",
    "--model.compile=off", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
]  # fmt: skip
Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def base(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """(name, options) -> a small base, trained for two steps, once for each name."""
    runs = tmp_path_factory.mktemp("bases")

    def fit(name: str, *options: str) -> Path:
        if not (runs / name).exists():
            command = [
                "fit", f"--data.path={dataset}", f"--runs={runs}", f"--name={name}",
                "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
                "--model.net.ffn_width=64", "--model.net.max_seq_len=64", "--data.seq_len=32",
                "--data.micro_batch_size=4", "--data.global_batch_tokens=256",
                "--data.val_tokens=512", "--max_steps=2", *SMALL, *options,
            ]  # fmt: skip
            assert main(command) == 0
        return runs / name

    return fit


def sft(parent: Path, folder: Path, name: str, *options: str, verb: str = "posttrain") -> list[str]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "template.jinja").write_text(TEMPLATE)
    return [
        verb, f"--from={parent}", "--data=lit_pretrain.data.ChatData",
        f"--data.sources={json.dumps({'sums': {'path': str(rows), 'format': 'messages'}})}",
        f"--data.template={folder / 'template.jinja'}", "--data.seq_len=64",
        "--data.micro_batch_size=4", "--data.global_batch_rows=8", "--data.validation=0.1",
        f"--runs={folder}", f"--name={name}", "--max_steps=2",
        "--model.optimizer=lit_pretrain.optim.AdamW", "--model.optimizer.lr=0.01",
        "--model.optimizer.weight_decay=0.0", *SMALL, *options,
    ]  # fmt: skip


SHAPES = {
    "grown": [],
    "padded": ["--model.net.vocab_size=576"],
    "tied": ["--model.net.tie_embeddings=true"],
    "value embeddings": ["--model.net.value_embeddings=alternate"],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_old_logits_stay_and_new_rows_are_means(shape: str, base: Fit, tmp_path: Path) -> None:
    parent = base(shape.replace(" ", "_"), *SHAPES[shape])
    # A step of no length: the checkpoint holds the weights that training starts from.
    command = sft(
        parent, tmp_path, "tuned", f"--tokenizer.add={json.dumps(NEW)}", "--model.optimizer.lr=0.0"
    )
    assert main(command) == 0
    run = tmp_path / "tuned"
    old, new = load_network(resolve(str(parent))), load_network(resolve(str(run)))
    before, after = Tokenizer.load(parent), Tokenizer.load(run)
    assert after.tokens_beyond(before) == NEW
    assert after.encode("<|tool|> is text") == before.encode("<|tool|> is text")
    tokens = torch.randint(before.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    expected, found = logits_of(old.eval(), tokens), logits_of(new.eval(), tokens)
    known = before.vocab_size
    assert (expected[..., :known] - found[..., :known]).abs().max() <= 1e-6
    weights, parents = read_weights(str(run)), read_weights(str(parent))
    tables = [name for name in weights if weights[name].shape != parents[name].shape] or [
        "token_embedding.weight"
    ]
    if shape == "padded":
        assert new.config.vocab_size == old.config.vocab_size == 576
    else:
        assert {"token_embedding.weight"} < {*tables, "head.weight"}
        assert new.config.vocab_size > old.config.vocab_size
    for name in tables:
        for number, token in enumerate(NEW):
            mean = parents[name][before.encode(token)].mean(0)
            assert torch.allclose(weights[name][known + number], mean, atol=1e-6)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["add_tokens"] == NEW
    assert config["model"]["new_tokens"]["first"] == known
    assert config["model"]["new_tokens"]["spelt"] == [before.encode(token) for token in NEW]


def test_the_run_resumes_goes_on_and_is_read_by_transformers(base: Fit, tmp_path: Path) -> None:
    parent = base("grown")
    options = [f"--tokenizer.add={json.dumps(NEW)}", "--checkpoint_every=1"]
    command = sft(parent, tmp_path, "tuned", *options)
    assert main(command) == 0
    assert main([*command, "--resume=auto"]) == 0
    run = tmp_path / "tuned"
    # Its own tokenizer is the parent's of the next stage, and nothing is added twice.
    assert main(sft(run, tmp_path, "again", options[0], verb="finetune")) == 0
    assert Tokenizer.load(tmp_path / "again").hash == Tokenizer.load(run).hash
    assert (tmp_path / "again" / "config.yaml").read_text().count("new_tokens: null") == 1
    pytest.importorskip("transformers", reason="needs the dev extra")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(run), str(tmp_path / "hf")]) == 0
    ours, theirs = Tokenizer.load(run), AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "a<|think|>12 + 12<|/think|>"
    assert theirs.convert_tokens_to_ids(NEW) == [ours.special_tokens[token] for token in NEW]
    assert theirs.tokenize(text)[-1] == NEW[2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.tensor([theirs(text).input_ids])
    assert torch.allclose(
        model(ids).logits, logits_of(load_network(resolve(str(run))).eval(), ids), atol=1e-4
    )


@pytest.mark.parametrize("shape", ["tied", "padded"])
def test_an_adapter_trains_and_stores_the_new_rows(shape: str, base: Fit, tmp_path: Path) -> None:
    parent = base(shape, *SHAPES[shape])
    adapter = ["--model.adapter.rank=2", f"--tokenizer.add={json.dumps(NEW)}"]
    command = sft(parent, tmp_path, "lora", *adapter, "--checkpoint_every=1", verb="finetune")
    assert main(command) == 0
    run = tmp_path / "lora"
    stored = read_stored(resolve(str(run)))
    known = Tokenizer.load(parent).vocab_size
    rows = {name: tensor for name, tensor in stored.items() if name.endswith("lora_rows")}
    assert "token_embedding.lora_rows" in rows
    assert ("head.lora_rows" in rows) == (shape != "tied")
    assert all(len(tensor) == len(NEW) for tensor in rows.values())
    parents, merged = read_weights(str(parent)), read_weights(str(run))
    encode = Tokenizer.load(parent).encode
    for name, tensor in rows.items():
        table = name.replace("lora_rows", "weight")
        assert torch.equal(merged[table][:known], parents[table][:known]), "old rows are frozen"
        assert torch.equal(merged[table][known : known + len(NEW)], tensor)
        means = torch.stack([parents[table][encode(token)].mean(0) for token in NEW])
        assert not torch.allclose(tensor, means, atol=1e-4), "new rows are trained"
    # Resumed after its first step, it ends in the same bits.
    again = sft(parent, tmp_path, "half", *adapter, "--checkpoint_every=1", verb="finetune")
    assert main(again) == 0
    resolve(str(tmp_path / "half")).unlink()
    assert main([*again, "--resume=auto"]) == 0
    halves = read_stored(resolve(str(tmp_path / "half")))
    assert halves.keys() == stored.keys()
    assert all(torch.equal(halves[name], tensor) for name, tensor in stored.items())
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    net = load_network(resolve(str(tmp_path / "merged"))).eval()
    tokens = torch.arange(known + len(NEW))[None, :60]
    composed = load_network(resolve(str(run))).eval()
    assert torch.allclose(logits_of(net, tokens), logits_of(composed, tokens), atol=1e-5)
    assert main(["generate", f"--run={run}", "--prompt=It is", "--max_new_tokens=3"]) == 0
    # peft gives the base the same rows.
    peft = pytest.importorskip("peft", reason="reads the export: pip install peft accelerate")
    from transformers import AutoModelForCausalLM

    assert main(["export", str(parent), str(tmp_path / "hf")]) == 0
    assert main(["adapter", "export", str(run), str(tmp_path / "peft")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    if shape == "tied":
        theirs.resize_token_embeddings(known + len(NEW))
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "peft")).eval()
    last = torch.arange(known + len(NEW) - 60, known + len(NEW))[None]
    found, ours = (
        logits[..., : known + len(NEW)]
        for logits in (theirs(last).logits, logits_of(composed, last))
    )
    assert torch.allclose(found, ours, atol=1e-5)


def test_another_vocabulary_is_still_refused(
    base: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer_folder: Path
) -> None:
    parent = base("grown")
    command = sft(parent, tmp_path, "other", f"--data.tokenizer={tokenizer_folder}")
    assert main(command) == 2
    assert "does not fit the parent" in capsys.readouterr().err
    taken = next(token for token in Tokenizer.load(parent).spellings().values() if token.isalpha())
    for token, message in ((taken, "is an ordinary token already"), (" ", "is blank")):
        add = f"--tokenizer.add={json.dumps([token])}"
        assert main(sft(parent, tmp_path, "bad", add)) == 2
        assert message in capsys.readouterr().err


def test_a_tokenizer_that_extends_the_parents_is_taken(base: Fit, tmp_path: Path) -> None:
    parent = base("grown")
    extended = Tokenizer.load(parent).extended(NEW)
    (tmp_path / "tokenizer").mkdir()
    extended.save(tmp_path / "tokenizer")
    command = sft(parent, tmp_path, "tuned", f"--data.tokenizer={tmp_path / 'tokenizer'}")
    assert main(command) == 0
    assert Tokenizer.load(tmp_path / "tuned").hash == extended.hash
