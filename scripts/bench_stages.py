"""Bench of the stages after pretraining: packed SFT and LoRA beside TRL and peft.

Both have the same weights, rows, optimizer and precision.

    python scripts/bench_stages.py           # 6 layers × 384, rows of 512, fp32 and bf16-mixed
    python scripts/bench_stages.py --rows data/chain/instructions.json --steps 10
    python scripts/bench_stages.py --tiny --steps 2    # it only has to run

It needs trl and peft.

Every contestant is a process of its own, and they take turns step by step, so that what disturbs
the machine disturbs all of them; medians over steps are printed. What counts is tokens of
conversations a second, not places: padding earns nothing. Each has eight rows of 512 tokens a step;
TRL packs by best fit too and lays its rows end to end into one long sequence (`bfd`), cuts and
joins conversations without regard to their edges (`wrapped`, which attends across them), or pads
(`no packing`, eight conversations a step). TRL's default of checkpointing activations, which is
slower and smaller, is a line of its own. The learning rate is zero, so that all stay the same
network. Memory is the peak of the whole process after its last step, libraries included.
"""

import argparse
import importlib
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from turns import WARM, Contestant, Turns, take_turns

SHAPE = {"layers": 6, "width": 384, "heads": 6, "hidden": 1024, "seq": 512, "batch": 8}
TINY = {"layers": 1, "width": 32, "heads": 2, "hidden": 64, "seq": 64, "batch": 2}
TEMPLATE = Path(__file__).parents[1] / "lit_pretrain" / "data" / "templates" / "chatml.jinja"
RANK, ALPHA = 16, 32


class Count(L.Callback):
    """Counts tokens that are not padding; `Turns` as in TakeTurns."""

    tokens: list[int] = []  # noqa: RUF012  (read by the process that made the run)

    def __init__(self) -> None:
        self.turns = Turns()

    def on_train_batch_start(
        self, trainer: L.Trainer, stage: L.LightningModule, batch: Any, *args: Any
    ) -> None:
        """Count the tokens that are no padding.

        Padding is a document of its own, the last one of its row; a row that is full has none.
        """
        self.turns.wait()
        count = 0
        for micro in batch:
            padding_BT = (micro.doc_BT == micro.doc_BT[:, -1:]) & (
                (micro.labels_BT >= 0).flip(1).cumsum(1).flip(1) == 0
            )
            count += int((~padding_BT).sum())
        Count.tokens.append(count)


def ours(
    shape: dict[str, int],
    model: str,
    rows: str,
    *,
    precision: str,
    lora: bool,
    compiled: bool,
    steps: int,
) -> dict[str, float]:
    from lit_pretrain.__main__ import main as cli

    adapter = [f"--model.adapter.rank={RANK}", f"--model.adapter.alpha={ALPHA}"] if lora else []
    with tempfile.TemporaryDirectory() as runs:
        code = cli([
            "posttrain", "--from", model, "--data.class_path=lit_pretrain.data.ChatData",
            f"--data.init_args.path={rows}",
            f"--data.init_args.seq_len={shape['seq']}",
            f"--data.init_args.micro_batch_size={shape['batch']}",
            f"--data.init_args.global_batch_rows={shape['batch']}",
            "--data.init_args.validation=0.02", "--data.init_args.val_rows=2",
            "--model.optimizer.init_args.lr=0", f"--trainer.precision={precision}",
            f"--model.compile={'on' if compiled else 'off'}",
            f"--max_steps={steps}", "--log_every=5", "--validate_every=0", "--checkpoint_every=0",
            "--sample_prompts=[]",
            "--trainer.callbacks+=bench_stages.Count", "--trainer.accelerator=cpu", "--runs", runs,
            "--name", "bench", *adapter,
        ])  # fmt: skip
    assert code == 0, code
    # Lightning's parser found the callback in this module, which is not __main__.
    import bench_stages

    return {"tokens": statistics.mean(bench_stages.Count.tokens)}


def trl(
    shape: dict[str, int],
    model: str,
    rows: str,
    *,
    precision: str,
    lora: bool,
    packing: str,
    checkpointing: bool,
    steps: int,
) -> dict[str, float]:
    datasets, transformers, library = (
        importlib.import_module(name) for name in ("datasets", "transformers", "trl")
    )
    data = datasets.Dataset.from_list(
        [json.loads(line) for line in Path(rows).read_text().splitlines()]
    )
    tokens: list[int] = []
    turns = Turns()
    wait = type(
        "Wait",
        (transformers.TrainerCallback,),
        {"on_step_begin": lambda *args, **options: turns.wait()},
    )

    with tempfile.TemporaryDirectory() as out:
        packed: dict[str, Any] = {"packing": packing != "none"} | (
            {} if packing == "none" else {"packing_strategy": packing}
        )
        arguments = library.SFTConfig(
            output_dir=out, per_device_train_batch_size=shape["batch"], max_length=shape["seq"],
            assistant_only_loss=packing != "wrapped",
            learning_rate=0.0, max_steps=steps, use_cpu=True, bf16=precision == "bf16-mixed",
            fp16=False, optim="adamw_torch_fused",
            gradient_checkpointing=checkpointing, logging_steps=5, save_strategy="no",
            report_to="none", disable_tqdm=True, **packed,
        )  # fmt: skip
        config = None
        if lora:
            config = importlib.import_module("peft").LoraConfig(
                r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
            )
        net = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        trainer = library.SFTTrainer(
            net,
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=config,
            callbacks=[wait()],
        )
        step = trainer.training_step

        def counted(net: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens.append(
                int(inputs["input_ids"].numel() if mask is None or mask.ndim != 2 else mask.sum())
            )
            return step(net, inputs, *rest, **options)

        trainer.training_step = counted
        trainer.train()
    return {"tokens": statistics.mean(tokens)}


def make_model(shape: dict[str, int], tokenizer: Path, folder: Path) -> None:
    """Write a Llama of seeded weights with a tokenizer and ChatML, as a Hugging Face folder."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), **names)
    fast.chat_template = TEMPLATE.read_text()
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(fast), hidden_size=shape["width"], intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], max_position_embeddings=2 * shape["seq"],
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def make_rows(source: Path | None, file: Path) -> None:
    """Make conversations of one question and one answer."""
    if source is None:
        import random

        from chain_data import instructions

        found = list(instructions(random.Random(0), 1000))
    else:
        found = json.loads(source.read_text())
    lines = []
    for row in found:
        question = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["output"] or "-"},
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    file.write_text("".join(lines))


def compete(jobs: dict[str, dict[str, Any]], steps: int) -> dict[str, dict[str, float]]:
    """Run all contestants, taking steps in turn."""
    program = [sys.executable, "-W", "ignore", __file__, "--job"]
    contestants = {
        name: Contestant([*program, json.dumps(job | {"steps": steps + WARM})])
        for name, job in jobs.items()
    }
    take_turns(contestants.values(), steps)
    results = {}
    for name, contestant in contestants.items():
        found = json.loads(contestant.finish().splitlines()[-1])
        results[name] = found | {
            "seconds": statistics.median(contestant.seconds),
            "start": contestant.start_seconds,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, default=Path("data/embedded/tokenizer.json"))
    parser.add_argument(
        "--rows", type=Path, help="instructions in Alpaca's format; made ones without it"
    )
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--stages", nargs="+", default=["sft", "lora"])
    parser.add_argument(
        "--steps", type=int, default=10, help="steps of each contestant that count, and one more"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="toy shapes, nothing compiled: to see that it runs"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        contestants: dict[str, Callable[..., dict[str, float]]] = {"ours": ours, "trl": trl}
        found = contestants[job.pop("kind")](**job)
        print(
            json.dumps(
                found | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
            )
        )
        return
    shape = TINY if options.tiny else SHAPE
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = Path(scratch) / "model", Path(scratch) / "rows.jsonl"
        make_model(shape, options.tokenizer, model)
        make_rows(options.rows, rows)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {shape}")
        for stage in options.stages:
            for precision in options.precision:
                common = {
                    "shape": shape,
                    "model": str(model),
                    "rows": str(rows),
                    "precision": precision,
                    "lora": stage == "lora",
                }
                jobs: dict[str, dict[str, Any]] = {
                    "lit_pretrain": {"kind": "ours", "compiled": not options.tiny, **common},
                    "lit_pretrain, eager": {"kind": "ours", "compiled": False, **common},
                    "TRL bfd": {"kind": "trl", "packing": "bfd", "checkpointing": False, **common},
                    "TRL bfd, checkpointed": {
                        "kind": "trl",
                        "packing": "bfd",
                        "checkpointing": True,
                        **common,
                    },
                    "TRL wrapped": {
                        "kind": "trl",
                        "packing": "wrapped",
                        "checkpointing": False,
                        **common,
                    },
                    "TRL no packing": {
                        "kind": "trl",
                        "packing": "none",
                        "checkpointing": False,
                        **common,
                    },
                }
                if options.tiny:
                    del jobs["lit_pretrain, eager"]
                results = compete(jobs, options.steps)
                rate = {
                    name: result["tokens"] / result["seconds"] for name, result in results.items()
                }
                best = max(value for name, value in rate.items() if name.startswith("TRL"))
                title = f"{stage}, {precision}"
                print(
                    f"\n{title:24} {'tokens/s':>9} {'of best TRL':>12} {'step s':>8}"
                    f" {'tokens a step':>14} {'peak MiB':>9}"
                )
                for name, result in results.items():
                    print(
                        f"{name:24} {rate[name]:9,.0f} {rate[name] / best:12.2f}"
                        f" {result['seconds']:8.3f} {result['tokens']:14,.0f}"
                        f" {result['peak_mib']:9,.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
