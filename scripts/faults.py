"""Prove that faults are not silent: damage, fuzz, kill and starve, and look at what is said.

    python scripts/faults.py --quick                     # a minute or two
    python scripts/faults.py                             # the whole campaign
    python scripts/faults.py --kinds damage --count 500  # one kind, with more cases
    python scripts/faults.py --seed 7                    # other faults

Every case ends right or wrong:

- right: the result of an undamaged run; or one of our exit codes with a line "error: ..." and no
  traceback; or exit 0 with a warning that names what was left out.
- wrong: a traceback, another result without a word, more time or memory than the bound.

The exit code is 1 if anything is wrong. The kinds:

- damage: a bit flips in a file of a run or of a prepared dataset, or the file loses its end; then a
  verb reads it.
- fuzz: readers get mutated configs, rows, `config.json`, manifests and templates. An input that is
  read counts as right, because nobody knows what it should have said.
- commands: verbs get mutated configs through the command line.
- options: every verb gets mutated arguments.
- kills: a short `fit` is killed at a random moment and resumed; its losses must be those of a run
  that was left alone.
- resources: small limits of file sizes and descriptors, and a folder that nobody may write to.

Cases run one after the other, each in a fork of one process that has imported Lightning.
"""

import argparse
import ctypes
import gc
import inspect
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from chain_data import WORDS
from fault_readers import HOSTILE, ROOT, change, fuzzed_files, is_refusal

OURS = frozenset({2, 3, 4, 75, 76, 130})
SECONDS, MEMORY_MB = 60.0, 1500
"""Bounds of one command: wall time, and memory beyond that of the process it is forked from."""
READER_SECONDS = 10
TRACEBACK = "Traceback (most recent call last)"
NOT_COMPARED = re.compile(r"[\d.,]+ ?(?:s|ms|min|h|MB|MiB|GB|GiB)\b|[\d.,]+k? tokens/s")
"""Times, sizes and speeds."""

FIT = """
fit --config tree/configs/pretrain/quickstart.yaml --model.net.n_layer 1 --model.net.width 32
--model.net.n_head 2 --model.net.max_seq_len 64 --model.compile off --data.path data/tiny
--data.seq_len 32 --data.micro_batch_size 4 --data.global_batch_tokens 128 --data.val_tokens 256
--max_steps 6 --log_every 1 --validate_every 3 --checkpoint_every 2 --keep_checkpoints 3
--sample_prompts [] --trainer.accelerator cpu
""".split()
SHORT = " ".join([*FIT[1:], "--max_steps", "1"])
ADAPTED = " ".join([*FIT[1:], "--from", "runs/tiny"])
READ = {
    "inspect run": "inspect run runs/tiny --verify".split(),
    "validate": "validate --run runs/tiny --json out.json".split(),
    "generate": "generate --run runs/tiny --prompt The --max_new_tokens 8 --temperature 0".split(),
    "resume": [*FIT, "--name", "tiny", "--resume", "auto"],
    "inspect data": "inspect data data/tiny --verify".split(),
}
PREPARE = """
out: data/tiny
sources:
  prose: {kind: jsonl, path: rows.jsonl, licence: CC0-1.0, origin: made}
  talk: {kind: jsonl, path: talk.jsonl, licence: CC0-1.0, origin: made}
tokenizer: {kind: train, vocab_size: 300}
splits: {validation: 0.2, test: 0.1}
workers: 1
"""


VERBS = (
    "adapter export runs/lora out/a", "adapter import peft out/a runs/llama",
    "average runs/tiny out/a --last 2 --weights equal", "chat --run runs/tiny --seed 2",
    "classifier train --positive rows.jsonl --negative more.jsonl --out a.safetensors",
    "classifier report q.safetensors",
    "compare runs/tiny runs/lora --tokens 2000 --resamples 100 --json", "completion bash",
    "doctor --data data", "evaluate runs/tiny --report out.md --tensorboard false",
    "export --to hf runs/llama out/a", "import hf out/a", "join out/a data/tiny data/more",
    f"finetune {ADAPTED}", f"fit {SHORT}", f"posttrain {ADAPTED}",
    "generate --run runs/tiny --prompt The --max_new_tokens 8 --top_k 5 --seed 3",
    "inspect order runs/tiny --step 2 --steps 2", f"inspect batch {SHORT} --step 1 --rows 1",
    "inspect data data/tiny --documents 1 --seed 3", "inspect run runs/tiny",
    "merge runs/lora out/a --dtype base", "plan --config small.yaml --devices 2 --device H100",
    "mixture optimise small.yaml --target.talk 1 --mixtures 16 --engine list --out out/a",
    "prepare --config prepare.yaml --out data/other", "replay runs/tiny --step 3 --documents 2",
    "runs runs --sort loss", "scaling fit --data runs.csv --bootstrap 20 --seed 1",
    "scaling isoflop --data runs.csv --bootstrap 20 --within 4",
    "scaling forecast --data runs.csv --bootstrap 20 --n 1e7 --d 1e8",
    "serve --run runs/tiny --port 0 --name x --hosts [a]",
    "sweep small.yaml --grid max_steps=1,2 --engine list --out out/a --compare false",
    "test --run runs/tiny", "tokenizer report data/tiny --text rows.jsonl",
    "validate --run runs/tiny --json out.json",
)  # fmt: skip
"""A command line of every verb, which ends well on the material; but for `serve`, which serves."""


class Tally:
    """Count the cases of one kind and keep what went wrong."""

    def __init__(self) -> None:
        self.tried = 0
        self.wrong: list[str] = []

    def add(self, case: str, wrong: str | None) -> None:
        """Count a case; `wrong` says what is wrong with it."""
        self.tried += 1
        if wrong is not None:
            self.wrong.append(f"{case}: {wrong}")
            print(f"  wrong: {case}: {wrong}", file=sys.stderr, flush=True)


class Outcome(NamedTuple):
    """What a command left behind; `code` is negative for a signal, None past the time bound."""

    code: int | None
    out: str
    err: str
    memory_mb: float


# ------------------------------------------------------------------ running
def load_everything() -> None:
    """Import what the verbs need, so that a fork starts at once."""
    for module in ("lightning.pytorch.cli", "litdata", "omegaconf", "torch.utils.tensorboard"):
        import_module(module)
    for verb in ("fit", "validate", "generate", "inspect", "plan", "posttrain", "prepare"):
        import_module(f"lit_pretrain.cli.{verb}")
    import_module("torch").set_num_threads(1)
    inspect.stack()  # fills caches that jsonargparse asks for in each fork
    gc.freeze()  # a collection in a fork would copy all memory


def run(
    folder: Path,
    command: list[str],
    *,
    prepare: Callable[[], object] = lambda: None,
    kill_after: float | None = None,
) -> Outcome:
    """Run one command in a fork.

    Args:
        folder: Where it runs.
        command: The arguments of `lit_pretrain`.
        prepare: Called in the fork first, such as to set a limit.
        kill_after: Seconds after which the fork gets SIGKILL; None for the time bound.
    """
    logs = [folder.parent / f"log.{number}" for number in (1, 2)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(folder, command, logs, prepare)
    end = time.monotonic() + (SECONDS if kill_after is None else kill_after)
    late = False
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            late = True
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.005)
    out, err = (log.read_text(errors="replace") for log in logs)
    code = None if late else os.waitstatus_to_exitcode(status)
    return Outcome(code, out, err, (used.ru_maxrss - before) / 1024)


def _become(folder: Path, command: list[str], logs: list[Path], prepare: Any) -> None:
    """Turn a fork into the command; never returns."""
    code = 1
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, log in enumerate(logs, start=1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        from lit_pretrain.__main__ import main

        prepare()
        code = main(command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # the fork must end here, whatever happened
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fault_of(seen: Outcome) -> str | None:
    """Say what is wrong with how a command ended, whatever its result; None if nothing is."""
    last = (seen.err.strip().splitlines() or [""])[-1]
    if seen.code is None:
        return f"still running after {SECONDS:.0f} s"
    if TRACEBACK in seen.err:
        return f"a traceback: {last}"
    if seen.memory_mb > MEMORY_MB:
        return f"{seen.memory_mb:.0f} MB of memory"
    if seen.code == 0:
        return None
    if seen.code not in OURS:
        return f"exit code {seen.code}: {last}"
    return None if "error:" in seen.err else f"exit code {seen.code} without a line 'error:'"


def judge(seen: Outcome, sound: Outcome, named: str) -> str | None:
    """Say what is wrong with a command that read a damaged file.

    Args:
        seen: What it did.
        sound: What it does with undamaged files.
        named: What a warning must name if the result differs.
    """
    if (fault := fault_of(seen)) is not None or seen.code != 0:
        return fault
    if comparable(seen.out) == comparable(sound.out):
        return None
    warnings = [line for line in seen.err.splitlines() if "warning:" in line]
    if any(named in line for line in warnings):
        return None
    return "another result without a word"


def comparable(text: str) -> str:
    """Leave out of a text what differs between two runs that do the same."""
    return NOT_COMPARED.sub("", text)


# ------------------------------------------------------------------ material
def make_material(folder: Path) -> Path:
    """Prepare a tiny dataset and train a tiny run on it."""
    work = folder / "sound"
    work.mkdir()
    (work / "tree").symlink_to(ROOT)
    rng = random.Random(0)
    for name in ("rows", "more", "talk"):
        texts = (" ".join(rng.choices(WORDS, k=rng.randint(20, 200))) for _ in range(150))
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (work / f"{name}.jsonl").write_text(rows)
    (work / "prepare.yaml").write_text(PREPARE)
    same = PREPARE.replace("{kind: train, vocab_size: 300}", "{kind: file, path: data/tiny}")
    (work / "more.yaml").write_text(same.replace("rows.jsonl", "more.jsonl"))
    config = yaml.safe_load((ROOT / "configs/pretrain/quickstart.yaml").read_text())
    config["data"] |= {"path": "data/tiny", "seq_len": 32, "global_batch_tokens": 128}
    config["model"]["net"] |= {"n_layer": 1, "width": 32, "n_head": 2, "max_seq_len": 64}
    (work / "small.yaml").write_text(yaml.safe_dump(config | {"max_steps": 6}))
    (work / "runs.csv").write_text(table_of_runs())
    adapted = "--from runs/llama --model.adapter lit_pretrain.adapter.LoRA --name lora"
    llama = [word.replace("quickstart", "llama_adamw") for word in SHORT.split()]
    for command in (
        ["prepare", "--config", "prepare.yaml"],
        ["prepare", "--config", "more.yaml", "--out", "data/more"],
        [*FIT, "--name", "tiny"],
        ["fit", *llama, "--name", "llama"],
        ["fit", *llama, *adapted.split()],
        ["export", "--to", "hf", "runs/llama", "hf"],
        ["adapter", "export", "runs/lora", "peft"],
        "classifier train --positive rows.jsonl --negative more.jsonl --out q.safetensors".split(),
    ):
        seen = run(work, command)
        if seen.code != 0:
            raise RuntimeError(f"{command[0]} of the undamaged failed: {seen.err[-2000:]}")
    return work


def table_of_runs() -> str:
    """Write runs at three budgets that follow a law, as a table."""
    rows = [
        (n, c / (6 * n), 1.7 + 400 / n**0.34 + 410 / (c / (6 * n)) ** 0.28)
        for c in (1e15, 1e16, 1e17)
        for n in (c**0.5 / 40 * 2**k for k in range(6))
    ]
    return "n,d,loss\n" + "".join(f"{n:.0f},{d:.0f},{loss}\n" for n, d, loss in rows)


def fresh(sound: Path) -> Path:
    """Copy the material to where cases run, in place of what the case before left."""
    work = sound.parent / "work"
    if work.exists():
        shutil.rmtree(work)
    return Path(shutil.copytree(sound, work, symlinks=True))


# ------------------------------------------------------------------ kinds
def damage(sound: Path, rng: random.Random, count: int, tally: Tally) -> None:
    """Flip a bit of a file, or cut its end off, and read it with every verb in turn."""
    files = [
        path.relative_to(sound)
        for top in ("runs/tiny", "data/tiny")
        for path in sorted((sound / top).rglob("*"))
        if path.is_file() and path.stat().st_size and not path.is_symlink()
    ]
    undamaged: dict[str, Outcome] = {}
    for verb, command in READ.items():
        work = fresh(sound)
        undamaged[verb] = _with_figures(work, run(work, command))
        if undamaged[verb].code != 0:
            raise RuntimeError(f"{verb} of the undamaged failed: {undamaged[verb].err[-2000:]}")
    cases = [(file, verb) for file in files for verb in READ if _may_read(verb, file)]
    rng.shuffle(cases)
    for n in range(count):
        file, verb = cases[n % len(cases)]
        work = fresh(sound)
        content = bytearray((work / file).read_bytes())
        if rng.random() < 0.3:
            what = f"cut at {(at := rng.randrange(len(content)))}"
            del content[at:]
        else:
            what = f"bit {(bit := rng.randrange(8))} of byte {(at := rng.randrange(len(content)))}"
            content[at] ^= 1 << bit
        (work / file).write_bytes(content)
        seen = _with_figures(work, run(work, READ[verb]))
        tally.add(f"{verb}, {file}, {what}", judge(seen, undamaged[verb], file.name))


def _may_read(verb: str, file: Path) -> bool:
    return verb != "inspect data" or file.parts[0] == "data"


def _with_figures(work: Path, seen: Outcome) -> Outcome:
    """Add what `validate --json` wrote to what it printed."""
    if not (figures := work / "out.json").is_file():
        return seen
    values = json.loads(figures.read_text())
    kept = {key: value for key, value in values.items() if not re.search("second|time", key)}
    return seen._replace(out=f"{seen.out}\n{kept}")


class TooLong(BaseException):
    """End a reader at its time bound; no `except Exception` catches it."""


def _too_long(number: int, frame: object) -> None:
    raise TooLong


def fuzz(sound: Path, rng: random.Random, count: int, tally: Tally) -> None:
    """Give the reader of every format mutated inputs, within bounds of time and memory."""
    folder = sound.parent / "fuzz"
    folder.mkdir(exist_ok=True)
    before = signal.signal(signal.SIGALRM, _too_long)
    every = fuzzed_files(sound)
    each = count / sum(file.share for file in every)
    try:
        for number, file in enumerate(every):
            path = folder / str(number) / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for n in range(math.ceil(each * file.share)):
                path.write_bytes(file.change(rng.choice(file.contents), rng))
                wrong = _read_once(file.read, path)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if (more := (peak - memory) / 1024) > MEMORY_MB:
                    wrong, memory = f"{more:.0f} MB of memory", peak
                if wrong is not None and len(tally.wrong) < 40:
                    shutil.copy(path, folder / f"wrong-{len(tally.wrong)}-{path.name}")
                tally.add(f"{file.name}, input {n}", wrong)
    finally:
        signal.signal(signal.SIGALRM, before)


def _read_once(read: Callable[[Path], object], path: Path) -> str | None:
    signal.alarm(READER_SECONDS)
    try:
        read(path)
    except TooLong:
        return f"still running after {READER_SECONDS} s"
    except Exception as error:  # any but a refusal is a fault
        if not is_refusal(error):
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:100]
            return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"
    finally:
        signal.alarm(0)
    return None


COMMANDS = {
    "pretrain": ("plan --config a.yaml", "fit --config a.yaml --data.path nowhere"),
    "posttrain": ("posttrain --config a.yaml --from nowhere",),
    "prepare": ("prepare --config a.yaml --out tree/README.md/x",),
}
"""Folder of configs -> what reads one; whatever it holds, no command gets as far as its work."""


def commands(sound: Path, rng: random.Random, count: int, tally: Tally) -> None:
    """Give verbs mutated configs through the command line."""
    work = fresh(sound)
    cases = [
        (config, words)
        for folder, each in COMMANDS.items()
        for config in sorted((ROOT / "configs" / folder).glob("*.yaml"))
        for words in each
    ]
    for n in range(count):
        config, words = cases[rng.randrange(len(cases))]
        (work / "a.yaml").write_bytes(change(config.read_bytes(), rng))
        seen = run(work, words.split())
        if (wrong := fault_of(seen)) is not None:
            shutil.copy(work / "a.yaml", sound.parent / f"wrong-{n}.yaml")
        tally.add(f"{words.split()[0]}, {config.name}, input {n}", wrong)


def options(sound: Path, rng: random.Random, count: int, tally: Tally) -> None:
    """Give every verb command lines in which an argument is lost, doubled, misspelt or hostile.

    The first command line of each verb is sound, and must end well.
    """
    for n in range(count):
        verb, *arguments = (VERBS[n] if n < len(VERBS) else rng.choice(VERBS)).split()
        if n >= len(VERBS):
            arguments = change_arguments(arguments, rng)
        seen = run(fresh(sound), [verb, *arguments])
        wrong = None if verb == "serve" and seen.code is None else fault_of(seen)
        if wrong is None and n < len(VERBS) and seen.code not in (0, None):
            wrong = f"the sound command ended with {seen.code}: {seen.err.strip()[-300:]}"
        tally.add(" ".join([verb, *map(repr, arguments)]), wrong)


def change_arguments(arguments: list[str], rng: random.Random) -> list[str]:
    """Change one argument of a command line."""
    changed = list(arguments)
    at = rng.randrange(len(changed))
    match rng.randrange(6):
        case 0:
            del changed[at]
        case 1:
            changed.insert(at, changed[at])
        case 2:
            changed[at] = changed[at][: rng.randrange(len(changed[at]) + 1)] + "x"
        case _:
            value = rng.choice(HOSTILE)
            text = value if isinstance(value, str) else json.dumps(value)
            # What a shell cannot hand over, Python's own start has already replaced.
            changed[at] = text.replace("\0", "").encode("utf-8", "replace").decode()
    return changed


def kills(sound: Path, rng: random.Random, count: int, tally: Tally) -> None:
    """Kill `fit` at a random moment, resume it, and compare the losses with those of `tiny`."""
    wanted = losses(sound / "runs" / "tiny")
    begun = time.monotonic()
    run(fresh(sound), [*FIT, "--name", "whole"])
    whole = time.monotonic() - begun
    for _ in range(count):
        work = fresh(sound)
        after = rng.uniform(0.05, whole)
        run(work, [*FIT, "--name", "killed"], kill_after=after)
        seen = run(work, [*FIT, "--name", "killed", "--resume", "auto"])
        wrong = fault_of(seen)
        if wrong is None and seen.code != 0:
            wrong = f"not resumed: {seen.err.strip().splitlines()[-1]}"
        if wrong is None and losses(work / "runs" / "killed") != wanted:
            wrong = "other losses than those of a run that nobody killed"
        tally.add(f"killed after {after:.2f} s", wrong)


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """Return the losses of a run by step."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        kept = {key: value for key, value in values.items() if "loss" in key}
        if kept:
            found.setdefault(values["step"], {}).update(kept)
    return found


def resources(sound: Path, rng: random.Random, count: int, tally: Tally) -> None:
    """Starve verbs of file size and descriptors, and take their folder's permission away."""
    verbs = {"fit": [*FIT, "--name", "other"], **READ}
    del verbs["inspect run"], verbs["inspect data"]
    for n in range(count):
        work = fresh(sound)
        verb = list(verbs)[n % len(verbs)]
        what, prepare = _lack(rng, n // len(verbs) % 3, work)
        seen = run(work, verbs[verb], prepare=prepare)
        tally.add(f"{verb}, {what}", fault_of(seen))


def _lack(rng: random.Random, which: int, work: Path) -> tuple[str, Callable[[], object]]:
    if which == 0:
        size = int(10 ** rng.uniform(3, 5.5))  # the log of the case itself stays below 1 kB
        limits = (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        return f"files of {size} bytes", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if which == 1:
        files = rng.randint(12, 40)
        allowed = (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        return f"{files} descriptors", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, allowed)

    def read_only() -> None:
        for path in [work, *work.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            give_up_overriding()

    return "a read-only folder", read_only


def give_up_overriding() -> None:
    """Let permissions stop root as well from writing (man 2 capset; CAP_DAC_OVERRIDE is bit 1)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    for call in (libc.capget, libc.capset):
        if call(header, data):
            raise OSError(ctypes.get_errno(), "the permission to override cannot be given up")
        data[0] &= ~2
        data[1] &= ~2


# ------------------------------------------------------------------ the campaign
KINDS: dict[str, tuple[Callable[[Path, random.Random, int, Tally], None], int, int]] = {
    "damage": (damage, 400, 20),
    "fuzz": (fuzz, 12_000, 1_800),
    "commands": (commands, 200, 10),
    "options": (options, 200, 8),
    "kills": (kills, 20, 2),
    "resources": (resources, 48, 9),
}
"""Kind -> function, cases of a campaign, cases of `--quick`."""


def table(tallies: dict[str, Tally]) -> str:
    """Lay out tried, right and wrong, one line a kind."""
    lines = [f"{'kind':<12}{'tried':>8}{'right':>8}{'wrong':>8}"]
    for name, tally in tallies.items():
        wrong = len(tally.wrong)
        lines.append(f"{name:<12}{tally.tried:>8}{tally.tried - wrong:>8}{wrong:>8}")
    return "\n".join(lines)


def campaign(kinds: list[str], *, seed: int, count: int | None, quick: bool) -> dict[str, Tally]:
    """Run the kinds one after the other, each with random numbers of its own.

    What was wrong stays in the temporary folder, which is named; otherwise it is removed.
    """
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)  # a case without root's rights reads it
    tallies = {name: Tally() for name in kinds}
    load_everything()
    sound = make_material(folder)
    for name, tally in tallies.items():
        function, whole, few = KINDS[name]
        cases = count or (few if quick else whole)
        begun = time.monotonic()
        function(sound, random.Random(f"{seed} {name}"), cases, tally)
        print(f"{name}: {tally.tried} in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if any(tally.wrong for tally in tallies.values()):
        print(f"what was wrong is kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return tallies


def main(argv: list[str] | None = None) -> int:
    """Run the campaign and print its table; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each kind, in place of its own number")
    parser.add_argument("--quick", action="store_true", help="a minute or two")
    args = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.path.insert(0, str(ROOT))
    tallies = campaign(args.kinds, seed=args.seed, count=args.count, quick=args.quick)
    print(table(tallies))
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
