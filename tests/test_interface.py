"""`lit_pretrain.load` and `lit_pretrain.open_data`, and a stage under Lightning's own Trainer."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import lit_pretrain
from lit_pretrain.__main__ import main
from lit_pretrain.corpus.chunk_reader import token_counts
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data import TextData
from lit_pretrain.data.text.order import Tracer
from lit_pretrain.errors import UserError
from lit_pretrain.interface import LoadedModel, OpenDataset
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.stage.checks import check_trainer
from lit_pretrain.stage.stage import Stage

TINY = [
    "--model.net.n_layer=2", "--model.net.width=32", "--model.net.n_head=2",
    "--model.net.max_seq_len=64", "--model.compile=off", "--sample_prompts=[]",
    "--data.seq_len=32", "--data.global_batch_tokens=128", "--data.val_tokens=128",
    "--max_steps=2", "--checkpoint_every=1", "--trainer.accelerator=cpu",
]  # fmt: skip
TEXT = "The fox sees the hen by the lake."


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that can be exported."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["fit", *TINY, f"--data.path={dataset}", f"--runs={runs}", "--name=run"]) == 0
    return runs / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The run as a Hugging Face folder."""
    assert main(["export", "--to", "hf", str(run), str(run.parent / "hf")]) == 0
    return run.parent / "hf"


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return lit_pretrain.load(run)


@pytest.fixture(scope="module")
def data(dataset: Path) -> OpenDataset:
    return lit_pretrain.open_data(dataset)


# ------------------------------------------------------------------ models


def test_logits_and_losses_are_those_of_transformers(exported: Path, model: LoadedModel) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(TEXT)]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    assert torch.allclose(model.logits(ids), logits, atol=1e-4)
    several = model.logits(torch.tensor([ids, ids[::-1]], dtype=torch.int32))
    assert several.shape == (2, len(ids), model.net.config.vocab_size)
    assert torch.allclose(several[0], logits, atol=1e-4)
    losses = model.loss(TEXT)
    expected = -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    assert losses.shape == (len(model.tokenizer.encode(TEXT)),)
    assert torch.allclose(losses, expected, atol=1e-4)
    assert model.loss("").shape == (0,)
    assert not losses.requires_grad


def test_all_places_give_the_same_model(run: Path, exported: Path, model: LoadedModel) -> None:
    checkpoint = run / "checkpoints" / "step=00000002.ckpt"
    for place in (str(run), checkpoint, exported):
        found = lit_pretrain.load(place)
        assert torch.allclose(found.loss(TEXT), model.loss(TEXT), atol=1e-5)
        assert found.tokenizer.hash == model.tokenizer.hash
        assert repr(str(found.place)) in repr(found)
    earlier = lit_pretrain.load(run / "checkpoints" / "step=00000001.ckpt")
    assert not torch.allclose(earlier.loss(TEXT), model.loss(TEXT), atol=1e-3)
    assert lit_pretrain.load(run, dtype="bfloat16").logits([0, 1]).dtype == torch.float32


def test_an_adapter_is_loaded_on_its_base(
    run: Path, dataset: Path, model: LoadedModel, tmp_path: Path
) -> None:
    options = [option for option in TINY if not option.startswith("--model.net")]
    options += ["--model.adapter.rank=2", "--model.adapter.alpha=4", "--model.optimizer.lr=0.1"]
    options += [f"--data.path={dataset}", f"--runs={tmp_path}", "--name=task"]
    assert main(["finetune", "--from", str(run), *options]) == 0
    merged = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "task"), str(merged)]) == 0
    losses = lit_pretrain.load(tmp_path / "task").loss(TEXT)
    assert torch.allclose(losses, lit_pretrain.load(merged).loss(TEXT), atol=1e-4)
    assert not torch.allclose(losses, model.loss(TEXT), atol=1e-3)


def test_it_writes_what_the_verb_writes(
    run: Path, model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["generate", "--run", str(run), "--prompt", "The fox", "--seed", "3"]
    for options, settings in (
        ([], {}),
        (["--temperature", "0", "--max_new_tokens", "5"], {"temperature": 0, "max_new_tokens": 5}),
    ):
        assert main([*asked, *options]) == 0
        assert (
            f"The fox{model.generate('The fox', seed=3, **settings)}\n" == capsys.readouterr().out
        )
    full = model.generate("The fox", temperature=0)
    assert model.generate("The fox", temperature=0, stop=full[4:8]) == full[: full.index(full[4:8])]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "one sequence or rows of one length"),
        ([[]], "one sequence or rows of one length"),
        ([[1, 2], [3]], "in rows of one length"),
        ([0.5], "whole numbers, found float32"),
        ([True], "whole numbers, found bool"),
        ("text", "whole numbers"),
        (["text"], "whole numbers"),
        (3, "one sequence or rows"),
        ([[[1]]], "one sequence or rows"),
        ([100_000], "token id 100000 in row 0, column 0"),
        ([1, -1], "token id -1 in row 0, column 1"),
        ([1] * 65, "longer than model.max_seq_len=64"),
    ],
)
def test_what_is_no_sequence_of_ids_is_refused(ids: Any, message: str, model: LoadedModel) -> None:
    with pytest.raises(UserError, match=message):
        model.logits(ids)


def test_a_text_that_is_too_long(model: LoadedModel) -> None:
    with pytest.raises(UserError, match="max_seq_len=64 at most: cut it into parts"):
        model.loss(TEXT * 20)
    with pytest.raises(UserError, match="max_seq_len=64"):
        model.generate(TEXT * 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu9"}, "device='tpu9' cannot be used"),
        ({"device": "cuda:77"}, "device='cuda:77' cannot be used"),
        ({"dtype": "float16"}, "dtype='float16' is unknown"),
        ({"checkpoint": "first"}, "must be last or best"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, str], message: str, run: Path) -> None:
    with pytest.raises(UserError, match=message):
        lit_pretrain.load(run, **options)


def test_a_place_without_a_model(run: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    for place in ("nowhere", "empty", "text.txt"):
        with pytest.raises(UserError):
            lit_pretrain.load(tmp_path / place)
    with pytest.raises(UserError):
        lit_pretrain.load(dataset)


def test_a_changed_tokenizer_is_refused(exported: Path, model: LoadedModel) -> None:
    file = exported / "tokenizer_config.json"
    before = file.read_text()
    config = json.loads(before)
    (other,) = {"<|pad|>"} & set(model.tokenizer.special_tokens) or {None}
    if other is None:
        other = sorted(set(model.tokenizer.special_tokens) - {model.tokenizer.eos})[0]
    file.write_text(json.dumps(config | {"bos_token": other, "eos_token": other}))
    try:
        with pytest.raises(UserError, match="eos_id"):
            lit_pretrain.load(exported)
        accepted = lit_pretrain.load(exported, accept=["bos_id", "eos_id", "stop_ids"])
        assert accepted.tokenizer.eos == other
    finally:
        file.write_text(before)


# ------------------------------------------------------------------ data


def raw_text(manifest: Manifest, source: str, origin: str) -> str:
    """The text at an origin, `FILE:ROW` of a JSON Lines file."""
    file, _, row = origin.rpartition(":")
    return str(json.loads(Path(file).read_text().splitlines()[int(row) - 1])["text"])


def test_documents_are_the_raw_text(data: OpenDataset) -> None:
    assert data.splits == ("train", "validation", "test")
    assert data.sources == ("story", "sums", "code")
    for split in data.splits:
        counts: Counter[str] = Counter()
        ids = np.zeros(data.manifest.tokenizer.vocab_size, dtype=np.int64)
        for document in data.documents(split):
            counts[document.source] += 1
            ids += np.bincount(document.ids, minlength=len(ids))
            assert document.split == split
            raw = raw_text(data.manifest, document.source, document.origin)
            assert document.text in raw  # the end of one may be held out
        assert (ids == token_counts(Path(data.path), data.manifest, split)).all()
        for name, source in data.manifest.sources.items():
            whole = sum(chunk.documents for chunk in source.splits[split].chunks)
            assert 0 < counts[name] <= whole
    (code,) = {document.source for document in data.documents("train", source="code")}
    assert code == "code"


def test_pieces_of_a_long_document_are_joined(tmp_path: Path) -> None:
    text = " ".join(f"word{n}" for n in range(3000))
    (tmp_path / "one.txt").write_text(text)
    (tmp_path / "two.txt").write_text("A short one. " * 40)
    assert (
        main([
            "prepare", f"--sources={{mine: {{kind: text, path: {tmp_path}}}}}",
            f"--out={tmp_path / 'data'}", "--chunk_tokens=1024", "--workers=1",
            "--tokenizer.vocab_size=300", "--splits.validation=0", "--splits.test=0",
        ])
        == 0
    )  # fmt: skip
    found = lit_pretrain.open_data(tmp_path / "data")
    assert len(found.manifest.sources["mine"].splits["train"].chunks) > 3
    assert {document.text for document in found.documents()} == {text, "A short one. " * 40}
    assert found.splits == ("train",)


def test_batches_are_those_of_training(dataset: Path, data: OpenDataset) -> None:
    module = TextData(
        str(dataset), seq_len=64, global_batch_tokens=256, micro_batch_size=4, max_epochs=1
    )
    tracer = Tracer(dataset, data.manifest, module.order(), seq_len=64)
    for step, batch in enumerate(islice(data.batches(seq_len=64, batch_size=4), 3)):
        (expected,) = module.step_batches(step, 4)
        assert torch.equal(batch.ids_BT, expected.tokens_BT)
        assert torch.equal(batch.labels_BT, expected.labels_BT)
        assert torch.equal(batch.doc_BT, expected.doc_BT)
        traced = list(tracer.rows(range(4 * step, 4 * step + 4)))
        assert batch.sources == tuple(row.source for row in traced)
        for row, origins, text, ids, doc in zip(
            traced, batch.origins, batch.texts, batch.ids_BT, batch.doc_BT, strict=True
        ):
            named = [document.origin for document in row.documents]
            # The tracer also names the document of the last label.
            assert [origin.rpartition("/")[2] for origin in origins] == named[: len(origins)]
            assert len(origins) == doc.max() + 1
            assert text == data.tokenizer.decode(ids.tolist(), skip_special=False)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_pass_reads_every_row_once(split: str, dataset: Path, data: OpenDataset) -> None:
    batches = list(data.batches(split, seq_len=64, batch_size=5))
    rows = [tuple(ids.tolist()) for batch in batches for ids in batch.ids_BT]
    expected = [
        chunk.tokens // 64 - (chunk.tokens % 64 == 0)
        for source in data.manifest.sources.values()
        for chunk in source.splits[split].chunks
    ]
    assert len(rows) >= sum(expected)
    assert len({(source, origins, row) for batch in batches for source, origins, row in zip(
        batch.sources, batch.origins, map(tuple, batch.ids_BT.tolist()), strict=True
    )}) >= 0.99 * len(rows)  # sums recur  # fmt: skip
    assert sum(len(batch.ids_BT) for batch in batches[:-1]) == 5 * (len(batches) - 1)
    for batch in batches:
        same = batch.doc_BT[:, 1:] == batch.doc_BT[:, :-1]
        follows = batch.labels_BT[:, :-1] == batch.ids_BT[:, 1:]
        assert follows[same & (batch.labels_BT[:, :-1] >= 0)].all()


def test_weights_and_epochs(data: OpenDataset) -> None:
    batches = data.batches(seq_len=64, batch_size=4, weights={"code": 1}, epochs=None, seed=1)
    once = sum(1 for _ in data.batches(seq_len=64, batch_size=4, weights={"code": 1}))
    many = list(islice(batches, 2 * once + 1))
    assert len(many) == 2 * once + 1
    assert {source for batch in many for source in batch.sources} == {"code"}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda data: data.documents("valid"), "Did you mean 'validation'"),
        (lambda data: data.documents("train", source="stroy"), "Did you mean 'story'"),
        (lambda data: data.batches("held_out"), "no text in a split 'held_out'"),
        (lambda data: data.batches(batch_size=0), "batch_size=0 must be at least 1"),
        (lambda data: data.batches(seq_len=0), "seq_len=0 must be at least 1"),
        (lambda data: data.batches(weights={"x": 1}), "x"),
    ],
)
def test_mistakes_are_said_at_once(ask: Any, message: str, data: OpenDataset) -> None:
    with pytest.raises(UserError, match=message):
        ask(data)


def test_a_place_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared dataset"):
        lit_pretrain.open_data(tmp_path)


# ------------------------------------------------------------------ scripts


def trained(dataset: Path, **options: Any) -> L.Trainer:
    data = TextData(str(dataset), seq_len=32, global_batch_tokens=128, val_tokens=128)
    net = ModelConfig(vocab_size=data.vocab_size, n_layer=1, width=32, n_head=2, max_seq_len=64)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_steps": 3, "enable_checkpointing": False, **options},
    )  # fmt: skip
    trainer.fit(Stage(net, compile="off"), datamodule=data)
    return trainer


def test_a_stage_under_lightning_s_own_trainer(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(dataset)
    whole.save_checkpoint(tmp_path / "whole.ckpt")
    whole.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    model = lit_pretrain.load(tmp_path / "whole.ckpt")
    assert all(
        torch.equal(value, whole.lightning_module.net.state_dict()[name])
        for name, value in model.net.state_dict().items()
    )
    assert model.tokenizer.hash == lit_pretrain.open_data(dataset).tokenizer.hash
    losses = lit_pretrain.load(tmp_path / "weights.ckpt").loss(TEXT)
    assert torch.equal(losses, model.loss(TEXT))
    # The same numbers as `fit`.
    options = [
        f"--data.path={dataset}", "--data.seq_len=32", "--data.global_batch_tokens=128",
        "--data.val_tokens=128", "--model.net.n_layer=1", "--model.net.width=32",
        "--model.net.n_head=2", "--model.net.max_seq_len=64", "--model.compile=off",
        f"--model.net.vocab_size={model.net.config.vocab_size}",
        "--max_steps=3", "--sample_prompts=[]", "--trainer.accelerator=cpu",
        "--trainer.precision=32-true", f"--runs={tmp_path}", "--name=fit",
    ]  # fmt: skip
    assert main(["fit", *options]) == 0
    assert f"val loss {whole.callback_metrics['val/loss']:.4f}" in capsys.readouterr().out
    # And others can start from it.
    tune = ["finetune", "--from", str(tmp_path / "whole.ckpt"), f"--data.path={dataset}"]
    tune += ["--data.seq_len=32", "--data.global_batch_tokens=128", "--data.val_tokens=128"]
    tune += ["--max_steps=1", "--model.compile=off", "--sample_prompts=[]"]
    assert main([*tune, "--trainer.accelerator=cpu", f"--runs={tmp_path}", "--name=tuned"]) == 0
    assert len(lit_pretrain.load(tmp_path / "tuned").loss(TEXT)) == len(losses)


def test_a_checkpoint_of_lightning_s_callback_is_loaded(dataset: Path, tmp_path: Path) -> None:
    trained(dataset, enable_checkpointing=True, default_root_dir=tmp_path)
    (file,) = tmp_path.rglob("*.ckpt")
    assert math.isfinite(lit_pretrain.load(file).loss(TEXT).sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "a batch of Lightning is a whole optimizer step"),
        ({"gradient_clip_val": 1.0}, r"set Stage\(clip_norm="),
        ({"precision": "16-true"}, "fp16 is not supported"),
        ({"max_steps": -1, "max_epochs": 1}, r"give Trainer\(max_steps=\.\.\.\)"),
        ({"devices": 2, "strategy": "ddp"}, "use_distributed_sampler=False"),
    ],
)
def test_settings_of_a_trainer_that_would_mislead(
    options: Mapping[str, Any], message: str, dataset: Path
) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, **{"max_steps": 2, **options}
    )
    trainer.datamodule = TextData(str(dataset))  # as `fit` does
    with pytest.raises(UserError, match=message):
        check_trainer(trainer)


def test_data_must_be_a_module(dataset: Path) -> None:
    data = TextData(str(dataset))
    net = ModelConfig(vocab_size=data.vocab_size, n_layer=1, width=32, n_head=2)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)

    def loader() -> Iterator[int]:
        yield 1

    with pytest.raises(UserError, match="datamodule=data"):
        trainer.fit(Stage(net, compile="off"), train_dataloaders=list(loader()))
