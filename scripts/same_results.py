"""Prove that a refactoring changed no numbers: run two revisions on the same input and compare.

    python scripts/same_results.py main~3             # that revision against the working tree
    python scripts/same_results.py main~3 main        # two revisions
    python scripts/same_results.py main~3 --out kept  # keep what both wrote

Both revisions make the same things, each by its own code and configs: two prepared datasets, and 20
steps of pretraining, SFT, DPO, LoRA and GRPO. Then both read what BEFORE made (AFTER in a copy):
validate, generate, resume, go on with another stage, inspect, merge and export. It compares

- every byte of prepared datasets, manifests included, and of exports but for the time in them,
- every value of `metrics.jsonl` and `validate --json`, to the last bit; it leaves out times,
  throughput and memory,
- every character of generated text, and of `inspect` the words that have a digit in them, so that
  a better sentence is no difference.

The exit code is 1 if anything differs or fails. Everything runs on one CPU thread, uncompiled, as
`python -m lit_pretrain`. Importing Lightning takes longer than most of the commands, so that one
process for each revision imports it and forks for every command, which imports the package anew.
"""

import argparse
import gc
import inspect
import json
import os
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from subprocess import PIPE
from typing import Any

from chain_data import WORDS, preferences

ROOT = Path(__file__).resolve().parents[1]
NOT_COMPARED = re.compile(r"time/|throughput/|memory|seconds")
WITH_A_DIGIT = re.compile(r"[\w.,:/+-]*\d[\w.,:/+-]*\w|\d")
TIME = re.compile(rb'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d|"digest": "[0-9a-f]+"')
"""Of an export: when it was made, and the digest of a record that says so."""
SIDES = ("BEFORE", "AFTER")
LINKS = "of the, with the, and that, to be near the, to have the, and the, that the".split(", ")

# ------------------------------------------------------------------ what is run; tree: a checkout
PROSE = """
out: data/prose
sources:
  prose: {kind: embedded, part: prose, licence: PSF-2.0, origin: Python standard library}
tokenizer: {kind: train, vocab_size: 1024, sample_bytes: 2_000_000}
splits: {validation: 0.04, test: 0.02}
workers: 1
"""
MIXED = """
out: data/mixed
sources:
  web: {kind: jsonl, path: made/web.jsonl, fields: {text: text, id: id}}
  books: {kind: jsonl, path: made/books.jsonl, fields: {text: text, id: id}, filters: []}
filters: [{class_path: Language, init_args: {keep: [en]}}, gopher, c4]
pii: {}
dedup: {near: {threshold: 0.7}, containment: {min_words: 50}, lines: {}}
decontaminate: {against: {exam: {path: made/exam.jsonl, fields: [question]}}}
tokenizer: {kind: train, vocab_size: 512}
splits: {validation: 0.2, test: 0.1}
max_bad_fraction: 0.2
workers: 1
"""
SUMS = """'{sums: {task: {name: addition, digits: 1, rows: 100, prompt: "{a} {op} {b} ="}}}'"""
DIGIT = """'{digit: {path: Format, options: {pattern: ".*[1-4]"}}}'"""  # about every second answer
EVERY_RUN = """
--max_steps 20 --max_epochs null --log_every 1 --validate_every 10 --checkpoint_every 10
--sample_prompts '[]' --model.compile off --trainer.accelerator cpu --trainer.precision 32-true
"""
TEXT = """
--data.path data/prose --data.seq_len 64 --data.micro_batch_size 2 --data.global_batch_tokens 256
--data.val_tokens 2048
"""
NET = "--model.net.n_layer 2 --model.net.width 64 --model.net.n_head 2 --model.net.max_seq_len 160"
ROWS = "--data.init_args.seq_len 128 --data.init_args.micro_batch_size 2"
RUNS = {
    "quickstart": f"fit --config tree/configs/pretrain/quickstart.yaml {NET} {TEXT}",
    "llama": f"fit --config tree/configs/pretrain/llama_adamw.yaml {NET} {TEXT}",
    "sft": f"""posttrain --from runs/llama --config tree/configs/posttrain/sft.yaml {ROWS}
        --data.init_args.sources.instructions.path made/instructions.json
        --data.init_args.global_batch_tokens 512 --data.init_args.validation 0.2""",
    "dpo": f"""posttrain --from runs/sft --config tree/configs/posttrain/dpo.yaml {ROWS}
        --data.init_args.sources.pairs.path made/pairs.json
        --data.init_args.global_batch_rows 4 --data.init_args.validation 0.2""",
    "lora": f"finetune --from runs/llama --config tree/configs/finetune/lora.yaml {TEXT}",
    "sums": f"""fit --config tree/configs/posttrain/addition_sft.yaml
        --data.init_args.sources {SUMS} --data.init_args.tokenizer data/prose
        --data.init_args.global_batch_tokens 512 --data.init_args.micro_batch_size 4""",
    "grpo": f"""posttrain --from runs/sums --config tree/configs/posttrain/grpo.yaml
        --data.init_args.sources {SUMS} --model.rollout.rewards {DIGIT}
        --data.init_args.global_batch_rows 4 --data.init_args.micro_batch_size 2
        --model.optimizer.init_args.lr 1e-2""",
}
MAKE = {
    "prepare prose": "prepare --config made/prose.yaml",
    "prepare mixed": "prepare --config made/mixed.yaml",
    **{f"run {name}": f"{run} {EVERY_RUN} --name {name}" for name, run in RUNS.items()},
}
KINDS = ("quickstart", "sft", "dpo", "lora", "grpo")
RESUME = f"{EVERY_RUN} --runs resumed --resume auto --name"
GENERATE = "generate --prompt The --max_new_tokens 48 --device cpu --seed 1 --run"
READ = {
    **{f"validate {each}": f"validate --run runs/{each} --json read/{each}.json" for each in KINDS},
    "generate greedy": f"{GENERATE} runs/sft --temperature 0",
    "generate sampled": f"{GENERATE} runs/quickstart",
    "generate adapted": f"{GENERATE} runs/lora",
    **{f"inspect run {each}": f"inspect run runs/{each}" for each in RUNS},
    **{f"inspect data {each}": f"inspect data data/{each} --verify" for each in ("prose", "mixed")},
    "inspect order": "inspect order runs/quickstart --step 3",
    **{f"resume {each}": f"{RUNS[each]} {RESUME} {each}" for each in KINDS},
    "stage sft": f"{RUNS['sft']} {EVERY_RUN} --runs next --name sft",
    "merge lora": "merge runs/lora read/merged",
    "export merged": "export --to hf read/merged read/hf-merged",
    "export sft": "export --to hf runs/sft read/hf-sft",
}
Verdict = tuple[str, str | None]
"""What was compared, and the first difference if there is one."""


# ------------------------------------------------------------------ input
def sentence(rng: random.Random) -> str:
    middle = " ".join(f"{rng.choice(WORDS)} {rng.choice(LINKS)}" for _ in range(5))
    return f"The {middle} {rng.choice(WORDS)} {rng.randint(1, 999)}."


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_input(folder: Path, tree: Path) -> None:
    """Write what commands read, with something in it for every step of `prepare` to find."""
    rng = random.Random(0)
    made = folder / "made"
    made.mkdir(parents=True)
    (folder / "tree").symlink_to(tree)
    (made / "prose.yaml").write_text(PROSE)
    (made / "mixed.yaml").write_text(MIXED)
    pages = ["\n".join(sentence(rng) for _ in range(rng.randint(8, 30))) for _ in range(60)]
    exam = [sentence(rng) for _ in range(5)]
    pages += [pages[0], pages[1].replace("The", "Thus the", 1)]  # exact and near duplicates
    pages += ["\n".join(pages[2].splitlines()[1:-1])]  # contained in another
    pages += [f"{page}\nWrite to ada@lovelace.org or +44 20 7946 0958." for page in pages[3:6]]
    pages += [f"{pages[6]}\n{exam[0]}", "Too short.", "x " * 300]
    pages += ["Das ist ein Text in einer anderen Sprache, und er bleibt nicht. " * 8]
    write_jsonl(made / "web.jsonl", [{"text": text, "id": f"{n}"} for n, text in enumerate(pages)])
    with (made / "web.jsonl").open("a") as file:
        file.write("no JSON\n")
    books = [{"text": " ".join(sentence(rng) for _ in range(200)), "id": f"{n}"} for n in range(12)]
    write_jsonl(made / "books.jsonl", books)
    write_jsonl(made / "exam.jsonl", [{"question": question} for question in exam])
    pairs = list(preferences(rng, 120))
    (made / "pairs.json").write_text(json.dumps(pairs))
    # A field that nobody reads is refused since, and rejected answers are not for SFT.
    plain = [{k: v for k, v in row.items() if k not in ("chosen", "rejected")} for row in pairs]
    (made / "instructions.json").write_text(json.dumps(plain))


def make_stopped_runs(folder: Path) -> None:
    """Copy the runs without their last checkpoints, for `--resume auto` to go on from step 10."""
    shutil.copytree(folder / "runs", folder / "resumed", symlinks=True)
    for last in (folder / "resumed").glob("*/checkpoints/step=00000020.ckpt"):
        last.unlink()
    (folder / "read").mkdir()


# ------------------------------------------------------------------ running
def serve(tree: str) -> None:
    """Run each command that arrives on standard input in a fork, and print its exit code."""
    for module in ("lightning.pytorch.cli", "litdata", "omegaconf", "torch.utils.tensorboard"):
        import_module(module)
    spec = find_spec("lit_pretrain")
    assert spec is not None
    assert str(spec.origin).startswith(tree), f"{spec.origin} is not of {tree}"
    inspect.stack()  # fills caches; jsonargparse asks for it, which takes a second in each fork
    gc.freeze()  # a collection in a fork would copy all memory
    for line in sys.stdin:
        cwd, command, log = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(cwd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number in (1, 2):
                os.dup2(os.open(f"{log}.{number}", os.O_WRONLY | os.O_CREAT), number)
            sys.path[0] = cwd  # as with `python -m`
            sys.argv = ["lit_pretrain", *shlex.split(command)]
            try:
                runpy.run_module("lit_pretrain", run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(stop.code or 0))  # tearing the interpreter down takes two seconds
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_all(tree: Path, folder: Path, commands: Mapping[str, str]) -> dict[str, str]:
    """Run commands in a folder by the code of a tree; returns those that failed, with a reason."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    ours = ("PYTHON", "LIT_PRETRAIN_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    env |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    failed: dict[str, str] = {}
    server = [sys.executable, "-B", __file__, "--serve", str(tree)]
    with subprocess.Popen(server, env=env, text=True, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for name, command in commands.items():
            log = logs / name.replace(" ", "-")
            process.stdin.write(json.dumps([str(folder), command, str(log)]) + "\n")
            process.stdin.flush()
            code = process.stdout.readline().strip()
            if not code:
                raise RuntimeError(f"the process that runs the commands of {tree} has ended")
            if code != "0":
                said = Path(f"{log}.2").read_text().strip().splitlines()[-1:]
                failed[name] = f"exit code {code}: {' '.join(said)}"
            print(f"  {folder.name}: {name}", file=sys.stderr)
    return failed


@contextmanager
def checkout(revision: str | None, place: Path) -> Iterator[Path]:
    """Give the tree of a revision for as long as it is needed; of None, the working tree."""
    if revision is None:
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), revision], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


# ------------------------------------------------------------------ comparing
def compare_files(a: Path, b: Path, mask: re.Pattern[bytes] = re.compile(b"(?!)")) -> Verdict:
    """Compare all files of two folders byte by byte, without what `mask` finds in them."""
    files = [[path for path in sorted(top.rglob("*")) if path.is_file()] for top in (a, b)]
    left = {str(path.relative_to(a)): mask.sub(b"", path.read_bytes()) for path in files[0]}
    right = {str(path.relative_to(b)): mask.sub(b"", path.read_bytes()) for path in files[1]}
    wrong = [name for name in sorted(left | right) if left.get(name) != right.get(name)]
    if len(wrong) > 3:
        wrong[3:] = [f"and {len(wrong) - 3} more"]
    return f"{len(left)} files", ", ".join(wrong) or (None if left else "there are none")


def compare_values(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Verdict:
    """Compare figures line by line and to the last bit, without times, throughput and memory."""
    compared = 0
    nothing: dict[str, Any] = {}
    for one, other in zip_longest(a, b, fillvalue=nothing):
        for key in sorted(one.keys() | other.keys()):
            if not NOT_COMPARED.search(key):
                compared += 1
                was, now = repr(one.get(key)), repr(other.get(key))  # a NaN equals a NaN
                if was != now:
                    return f"{compared} values", f"step {one.get('step')}, {key}: {was}, then {now}"
    return f"{compared} values", None if compared else "there are none"


def compare_numbers(a: str, b: str) -> Verdict:
    """Compare the words of two texts that have a digit in them."""
    left, right = WITH_A_DIGIT.findall(a), WITH_A_DIGIT.findall(b)
    pairs = [f"{x}, then {y}" for x, y in zip_longest(left, right) if x != y]
    pairs += [] if left else ["there are none"]
    return f"{len(left)} numbers{'' if a == b else ' (other words)'}", pairs[0] if pairs else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def compare(command: str, a: Path, b: Path) -> Verdict:
    """Compare what one command left in two folders."""
    verb, *_, name = command.split(" ")
    if verb in (folders := {"run": "runs", "resume": "resumed", "stage": "next"}):
        return compare_values(*(read_metrics(top / folders[verb] / name) for top in (a, b)))
    if verb == "validate":
        figures = ((top / "read" / f"{name}.json").read_text() for top in (a, b))
        return compare_values(*([json.loads(each)] for each in figures))
    if verb == "prepare":
        return compare_files(a / "data" / name, b / "data" / name)
    if verb == "export":
        return compare_files(a / "read" / f"hf-{name}", b / "read" / f"hf-{name}", TIME)
    said = [(top / "logs" / f"{command.replace(' ', '-')}.1").read_text() for top in (a, b)]
    if verb == "generate":
        return compare_values(*([{"text": text}] for text in said))
    return compare_numbers(*said)


def report(title: str, commands: Mapping[str, str], sides: list[tuple[Path, Path]]) -> int:
    """Run commands in two trees and folders at once and print what differs; returns how many do."""
    with ThreadPoolExecutor(2) as pool:
        failed = list(pool.map(run_all, *zip(*sides, strict=True), [commands] * 2))
    print(f"{title}\n" + "─" * len(title))
    different = 0
    for name in commands:
        wrong = [f"{who}: {f[name]}" for who, f in zip(SIDES, failed, strict=True) if name in f]
        compared, difference = "", "; ".join(wrong) or None
        if not wrong:
            compared, difference = compare(name, sides[0][1], sides[1][1])
        different += difference is not None
        print(f"{name:24}{compared:26}{f'DIFFERENT: {difference}' if difference else 'equal'}")
    return different


def main(before: str, after: str | None, out: Path) -> int:
    """Make, read and compare; returns the exit code."""
    old, new, crossed = (out / name for name in ("before", "after", "crossed"))
    with checkout(before, out / "old") as old_tree, checkout(after, out / "new") as new_tree:
        make_input(old, old_tree)
        make_input(new, new_tree)
        different = report("Made by both", MAKE, [(old_tree, old), (new_tree, new)])
        make_stopped_runs(old)
        shutil.copytree(old, crossed, symlinks=True)
        (crossed / "tree").unlink()
        (crossed / "tree").symlink_to(new_tree)
        title = "\nMade by BEFORE, read by both"
        different += report(title, READ, [(old_tree, old), (new_tree, crossed)])
    print(f"\n{different} of {len(MAKE) + len(READ)} differ")
    return int(different > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        sys.exit()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("before", help="a revision of git")
    parser.add_argument("after", nargs="?", help="another one; default: the working tree")
    parser.add_argument("--out", type=Path, help="a new folder, to keep what both wrote")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = options.out.resolve() if options.out else Path(scratch).resolve()
        place.mkdir(parents=True, exist_ok=options.out is None)
        sys.exit(main(options.before, options.after, place))
