"""A trained network, its export, and tasks of every kind on local rows."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.__main__ import main

OPTIONS = [
    "--model.net.n_layer=2", "--model.net.width=64", "--model.net.n_head=4",
    "--model.net.n_kv_head=2", "--model.net.max_seq_len=96",
    "--model.net.dropout=0.1", "--data.seq_len=64", "--data.micro_batch_size=8",
    "--data.global_batch_tokens=1024",
    "--data.val_tokens=1024", "--log_every=10", "--validate_every=0", "--checkpoint_every=0",
    "--sample_prompts=[]",
    "--model.compile=off", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
    "--model.optimizer.class_path=lit_pretrain.optim.AdamW", "--model.optimizer.init_args.lr=0.01",
]  # fmt: skip
BEGINNINGS = ("The", "def ", "7 + 8 =", "The hen", "    return x", "The cat finds the fox by")
KINDS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "num_fewshot": 2,
        "fewshot_split": "test",
    },
    "word": {
        "output_type": "loglikelihood", "doc_to_text": "{{question}}",
        "doc_to_target": "{{' ' + word}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc"},
        ],
    },
    "text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    "answer": {
        "output_type": "generate_until", "doc_to_text": "{{begin}}", "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files on rows about the animals of the dataset `story`; some questions
    are longer than the network.
    """
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    rows = []
    for n in range(24):
        animals = rng.sample(["fox", "owl", "hen", "cat"], 3)
        before = " ".join(
            f"The {animals[0]} sees the {animals[1]} by the {place}."
            for place in ["hill", "lake", "barn"][: n % 4] * 3
        )
        question = f"{before} The {animals[0]} {rng.choice(['sees', 'hears', 'finds'])} the".strip()
        rows.append(
            {
                "begin": BEGINNINGS[n % len(BEGINNINGS)],
                "question": question,
                "choices": [f"{animal} by the road." for animal in animals],
                "gold": n % 3,
                "word": animals[n % 3],
                "text": f"{question} {animals[1]} by the hill. " * (1 + n % 3) + "é𝔘",
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in KINDS.items():
        head = {
            "task": f"fox_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        }
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({**head, "test_split": "test", **settings})
        )
    return folder


@pytest.fixture(scope="session")
def trained(dataset: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a little, with tasks measured at step 40 and at the end; not to be
    changed.
    """
    pytest.importorskip("lm_eval", reason="needs the eval extra (lm-eval)")
    runs = tmp_path_factory.mktemp("trained")
    light = [
        "--evaluate_every=40",
        f"--evaluate_tasks=[fox_choice, {tasks / 'answer.yaml'}]",
        f"--evaluate_include={tasks}",
    ]
    options = [
        *OPTIONS,
        f"--data.path={dataset}",
        f"--runs={runs}",
        "--name=run",
        "--max_steps=60",
        *light,
    ]
    assert main(["fit", *options, "--evaluate_limit=8"]) == 0
    return runs / "run"
