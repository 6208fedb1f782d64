"""A small run that can be talked with."""

from pathlib import Path

import pytest

from lit_pretrain.__main__ import main


@pytest.fixture(scope="session")
def chat_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, of a run over conversations in ChatML that learned next to nothing; not to be
    changed.
    """
    runs = tmp_path_factory.mktemp("runs")
    code = main([
        "fit", "--model.net.n_layer=1", "--model.net.width=32", "--model.net.n_head=2",
        "--model.net.max_seq_len=128",
        "--model.compile=off", "--data.class_path=lit_pretrain.data.ChatData",
        "--data.init_args.sources={sums: {task: {name: addition, digits: 1, rows: 40}}}",
        f"--data.init_args.tokenizer={dataset}", "--data.init_args.seq_len=64",
        "--data.init_args.global_batch_rows=4",
        "--data.init_args.validation=0.2", "--max_steps=1", "--sample_prompts=[]",
        "--trainer.accelerator=cpu", f"--runs={runs}",
        "--name=talker",
    ])  # fmt: skip
    assert code == 0
    return runs / "talker"
