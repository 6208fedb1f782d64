"""Does choosing text by a classifier pay? Train on what it keeps, and on a random choice.

    python scripts/quality_pays.py WORK [--keep 0.1] [--seeds 3] [--steps 100] [OPTION OF fit ...]

The pool is the Python standard library (its modules and tests) with the prose of the installed
packages (.md, .rst and .txt) among it. That prose is the wanted domain: by a hash, a fifth of its
documents are the positive examples, a fifth are what the runs are measured on and in no pool, and
the rest lies in the pool. The negative examples are a sample of the pool. `prepare` keeps the best
share of the pool by the filter Classifier, and the same number of bytes drawn at random; both use
one tokenizer, that of the whole pool. For each seed a small network reads as many tokens of the one
and of the other. The table shows bits per byte on the wanted domain and the paired difference.

WORK keeps everything; what is there already is not made again.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml
from bench_prepare import texts
from scipy import stats

PIECE = 3_000
"""Characters of a document, about: files are cut at blank lines."""
CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "quickstart.yaml"
NETWORK = [
    "--model.net.n_layer=2", "--model.net.width=128", "--model.net.n_head=2",
    "--model.net.max_seq_len=512", "--model.compile=off", "--data.seq_len=256",
    "--data.micro_batch_size=16", "--data.global_batch_tokens=4096", "--sample_prompts=[]",
    "--validate_every=0", "--checkpoint_every=0", "--trainer.accelerator=cpu",
]  # fmt: skip


def pieces(text: str) -> list[str]:
    """Cut a text at blank lines into documents."""
    found, lines = [], ""
    for paragraph in text.split("\n\n"):
        lines += f"{paragraph}\n\n"
        if len(lines) >= PIECE:
            found.append(lines)
            lines = ""
    return [*found, lines] if lines.strip() else found


def fifth(text: str) -> int:
    """Choose one of five parts by a hash of the text."""
    return xxhash.xxh3_64_intdigest(text.encode()) % 5


def write(path: Path, documents: Iterable[str]) -> int:
    """Write documents as JSON Lines and count their bytes."""
    lines = list(documents)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    return sum(len(text.encode()) for text in lines)


def run(*arguments: object) -> str:
    """Run the command line."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "lit_pretrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def lay_out(work: Path, megabytes: float) -> None:
    """Write examples, pool and the text to measure on."""
    prose = sorted(
        {p for d in texts(megabytes / 4, (".md", ".rst", ".txt")) for p in pieces(d.text)}
    )
    code = sorted({p for d in texts(megabytes, (".py",)) for p in pieces(d.text)})
    pool = [*(text for text in prose if fifth(text) > 1), *code]
    order = np.random.default_rng(0).permutation(len(pool))
    pool = [pool[number] for number in order]
    sizes = {
        "positive": write(work / "positive.jsonl", (t for t in prose if fifth(t) == 0)),
        "wanted": write(work / "wanted.jsonl", (t for t in prose if fifth(t) == 1)),
        "negative": write(work / "negative.jsonl", pool[: len(pool) // 10]),
        "pool": write(work / "pool.jsonl", pool),
    }
    print(", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()), flush=True)


def prepare(work: Path, name: str, file: str, **more: Any) -> Path:
    """Prepare a dataset, with the tokenizer of the pool once there is one."""
    out = work / "data" / name
    if not (out / "manifest.json").exists():
        pool = work / "data" / "pool"
        config = {
            "out": str(out),
            "sources": {"text": {"kind": "jsonl", "path": str(work / file)}},
            "tokenizer": (
                {"vocab_size": 2048} if name == "pool" else {"kind": "file", "path": str(pool)}
            ),
            **more,
        }
        place = work / f"{name}.yaml"
        place.write_text(yaml.safe_dump(config))
        run("prepare", "--config", place)
    return out


def random_choice(work: Path, size: int) -> None:
    """Write as many bytes of the pool, drawn at random."""
    documents = [json.loads(line)["text"] for line in (work / "pool.jsonl").open()]
    chosen, total = [], 0
    for number in np.random.default_rng(1).permutation(len(documents)):
        if total >= size:
            break
        chosen.append(documents[number])
        total += len(chosen[-1].encode())
    write(work / "random.jsonl", chosen)


def bits_per_byte(work: Path, name: str, seed: int, steps: int, extra: Sequence[str]) -> float:
    """Train one network, and measure it on the wanted domain."""
    runs, place = work / "runs", work / "runs" / f"{name}-{seed}"
    measured = runs / f"{name}-{seed}.json"
    if not measured.exists():
        if not (place / "summary.md").exists():
            run(
                "fit", "--config", CONFIG, *NETWORK, "--data.path", work / "data" / name,
                "--runs", runs, "--name", place.name, "--model.seed", seed, "--data.seed", seed,
                "--max_steps", steps, "--resume", "auto", *extra,
            )  # fmt: skip
        run(
            "validate", place, "--data.path", work / "data" / "wanted", "--json", measured,
            "--data.val_tokens", "null", "--trainer.accelerator", "cpu",
        )  # fmt: skip
    return float(json.loads(measured.read_text())["val/bits_per_byte"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--keep", type=float, default=0.1, help="share of the pool that is kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="steps of 4,096 tokens")
    parser.add_argument("--mb", type=float, default=16, help="MB of code in the pool")
    options, extra = parser.parse_known_args()
    work: Path = options.work.absolute()
    (work / "runs").mkdir(parents=True, exist_ok=True)
    if not (work / "pool.jsonl").exists():
        lay_out(work, options.mb)
    model = work / "quality.safetensors"
    if not model.exists():
        found = run(
            "classifier", "train", "--positive", work / "positive.jsonl", "--negative",
            work / "negative.jsonl", "--out", model,
        )  # fmt: skip
        print(found, flush=True)
    prepare(work, "pool", "pool.jsonl")
    best = {"class_path": "Classifier", "init_args": {"path": str(model), "keep": options.keep}}
    chosen = prepare(work, "chosen", "pool.jsonl", filters=[best])
    manifest = json.loads((chosen / "manifest.json").read_text())
    if not (work / "random.jsonl").exists():
        random_choice(work, manifest["sources"]["text"]["funnel"][-1]["bytes"])
    prepare(work, "random", "random.jsonl")
    prepare(work, "wanted", "wanted.jsonl", splits={"validation": 0.9, "test": 0.0})
    measured = {
        name: [
            bits_per_byte(work, name, seed, options.steps, extra) for seed in range(options.seeds)
        ]
        for name in ("chosen", "random")
    }
    for seed, pair in enumerate(zip(measured["chosen"], measured["random"], strict=True)):
        print(f"seed {seed}: chosen {pair[0]:.4f}, random {pair[1]:.4f} bits per byte")
    gain = np.array(measured["random"]) - np.array(measured["chosen"])
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    half = stats.t.ppf(0.975, len(gain) - 1) * error
    print(
        f"chosen is better by {gain.mean():.4f} ± {half:.4f} bits per byte (95 %, paired over"
        f" {len(gain)} seeds), {options.steps * 4096:,} tokens each"
    )


if __name__ == "__main__":
    main()
