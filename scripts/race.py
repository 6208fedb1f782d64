"""Race: several recipes train for the same wall time and are judged on the same held-out bytes.

All read the same text in the same order.

    python scripts/race.py --entrants configs/race/shapes.yaml --seconds 240 --runs runs/race
    python scripts/race.py --entrants configs/race/shapes.yaml --only 6x384 3x192 --seeds 0 1 2

A file of entrants is a mapping: name -> options of `lit_pretrain fit`, or a script with its options
that trains something else on the same rows (scripts/race_nanochat.py: nanochat's own code). First
all of them are timed, taking steps in turn (A B C A B C ...): the median step decides how many
steps fit into the time, and schedules need to know their end. Then each trains in full, one after
the other, so that a busy machine costs patience and changes no figure. The first entrant is timed
with every group of others, and the others count by their ratio to it. Timings and finished runs
stay in --runs: a race that was stopped, or has got more entrants, goes on. Options that are not
named here go to every `fit`.

A script is given --steps, --seed, --runs and --name, and leaves RUNS/NAME/result.json with
`parameters`, `tokens` and `bits_per_byte`; with --take_turns it waits for `turns.Turns` before each
step.

The table shows parameters, seconds a step, steps, tokens, and for each seed bits per byte over all
held-out text; the last column is the mean as a ratio to the first entrant.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from turns import Contestant, take_turns


def is_script(given: Sequence[str]) -> bool:
    """Tell whether an entrant is a script of its own, and not options of `lit_pretrain fit`."""
    return given[0].endswith(".py")


def command(given: Sequence[str], runs: Path, name: str, *, steps: int, seed: int) -> list[str]:
    """Write the command that trains one entrant for some steps."""
    where = ["--runs", str(runs), "--name", name]
    if is_script(given):
        return [
            sys.executable, "-W", "ignore", *given, *where,
            "--steps", str(steps), "--seed", str(seed),
        ]  # fmt: skip
    return [
        sys.executable, "-W", "ignore", "-m", "lit_pretrain", "fit", *given, *where,
        "--model.seed", str(seed), "--data.seed", str(seed),
        "--max_tokens", "null", "--max_flops", "null", "--max_steps", str(steps),
        "--data.val_tokens", "null", "--validate_every", "0", "--checkpoint_every", "0",
        "--sample_prompts", "[]", "--log_every", "5",
    ]  # fmt: skip


def groups(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """Divide the entrants into groups of so many, each with the first of all as its reference."""
    reference, *others = names
    for start in range(0, max(1, len(others)), size - 1):
        yield [reference, *others[start : start + size - 1]]


def time_steps(
    entrants: Mapping[str, Sequence[str]], runs: Path, *, steps: int, together: int
) -> dict[str, float]:
    """Return the median seconds of a step of each entrant, in those of the first one's first turn.

    What an earlier race has timed is not timed again.
    """
    file = runs / "timing.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    reference = next(iter(entrants))
    new = [reference, *(name for name in entrants if name not in known and name != reference)]
    if len(new) == 1 and reference in known:
        return known
    shutil.rmtree(runs / "timing", ignore_errors=True)  # of a timing that was stopped
    for names in groups(new, together):
        contestants = {
            name: Contestant([
                *command(
                    entrants[name], runs / "timing", f"{name}-{len(known)}", steps=10_000, seed=0
                ),
                "--take_turns" if is_script(entrants[name])
                else "--trainer.callbacks+=turns.TakeTurns",
            ])
            for name in names
        }  # fmt: skip
        take_turns(contestants.values(), steps)
        for contestant in contestants.values():
            contestant.kill()
        medians = {name: statistics.median(each.seconds) for name, each in contestants.items()}
        unit = known.get(reference, medians[reference]) / medians[reference]
        known |= {name: unit * seconds for name, seconds in medians.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, indent=2) + "\n")
    return known


def result_of(folder: Path) -> dict[str, Any] | None:
    """Read size, tokens and bits per byte of a finished entrant; None if it is not finished."""
    if (folder / "result.json").is_file():
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found
    if not (folder / "metrics.jsonl").is_file():
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bits = [line["val/bits_per_byte"] for line in lines if "val/bits_per_byte" in line]
    if not bits:  # it validates at the end only
        return None
    return {
        "parameters": json.loads((folder / "provenance.json").read_text())["parameters"]["total"],
        "tokens": max(line.get("progress/tokens", 0) for line in lines),
        "bits_per_byte": bits[-1],
    }


def train(given: Sequence[str], runs: Path, name: str, *, steps: int, seed: int) -> dict[str, Any]:
    """Train one entrant, unless it has been; return its size, tokens and bits per byte."""
    if (found := result_of(runs / name)) is not None:
        return found
    done = subprocess.run(
        [
            *command(given, runs, name, steps=steps, seed=seed),
            *([] if is_script(given) else ["--resume", "auto"]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = result_of(runs / name)
    if done.returncode or found is None:
        sys.exit(f"{name} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entrants", default="configs/race/shapes.yaml")
    parser.add_argument("--only", nargs="+", help="names of the entrants that run; the first too")
    parser.add_argument("--seconds", type=float, default=240.0, help="training time of each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--timing_steps", type=int, default=15)
    parser.add_argument("--together", type=int, default=9, help="entrants timed in one group")
    parser.add_argument("--runs", type=Path, default=Path("runs/race"))
    options, extra = parser.parse_known_args()
    listed: dict[str, str] = yaml.safe_load(Path(options.entrants).read_text())
    first = next(iter(listed))
    entrants = {
        name: given.split() if is_script(given.split()) else [*given.split(), *extra]
        for name, given in listed.items()
        if name == first or not options.only or name in options.only
    }
    seconds = time_steps(
        entrants, options.runs, steps=options.timing_steps, together=options.together
    )
    print(
        f"{'entrant':28} {'params':>7} {'s/step':>6} {'steps':>6} {'tokens':>7}"
        f" {'bits per byte':>{8 * len(options.seeds)}} {'ratio':>7}"
    )
    means: list[float] = []
    for name, given in entrants.items():
        steps = max(1, round(options.seconds / seconds[name]))
        found = [
            train(
                given, options.runs, f"{name}-{options.seconds:g}s-{seed}", steps=steps, seed=seed
            )
            for seed in options.seeds
        ]
        means.append(statistics.mean(each["bits_per_byte"] for each in found))
        print(
            f"{name:28} {found[0]['parameters'] / 1e6:6.1f}M {seconds[name]:6.3f} {steps:6d}"
            f" {found[0]['tokens'] / 1e6:6.2f}M"
            f" {' '.join(format(each['bits_per_byte'], '.4f') for each in found):>{8 * len(found)}}"
            f" {means[-1] / means[0]:7.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
