"""Rows to try post-training with, and for scripts/chain.sh.

They are made, or public ones of the same shape where a second argument names a folder that holds
them.

    python scripts/chain_data.py data

Writes instructions.json (Alpaca's format), preferences.json (with `chosen` and `rejected`),
problems.jsonl (GSM8K's), choices.jsonl (questions with two answers), sums.jsonl (text, for a
tokenizer) and origin.txt.
"""

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PUBLIC = {
    "instructions.json": "instruction/alpaca_1100.json",
    "preferences.json": "preference/alpaca_preference_1100.json",
    "problems.jsonl": "gsm8k/test.jsonl",
    "choices.jsonl": "eval/piqa.jsonl",
}
WORDS = """
house river letter engine garden window teacher market story winter music answer question signal
number bridge forest village mountain kitchen painter captain library mirror pocket summer station
theatre valley harbour journey planet shadow table
""".split()
NAMES = "Ada Ben Clara David Emma Felix Grace Henry Ida Jonas".split()


def instructions(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Make small tasks over words and numbers; no two alike."""
    for n in range(count):
        a, b, words = rng.randint(1, 99), rng.randint(1, 99), rng.sample(WORDS, 3)
        yield [
            {
                "instruction": "Add the two numbers.",
                "input": f"{a} and {b}",
                "output": f"The sum of {a} and {b} is {a + b}.",
            },
            {
                "instruction": "Sort the words by the alphabet.",
                "input": ", ".join(words),
                "output": f"In order, they are {', '.join(sorted(words))}.",
            },
            {
                "instruction": "Write the word in capital letters.",
                "input": f"{words[0]} {a}",
                "output": f"In capital letters it is {words[0].upper()} {a}.",
            },
            {
                "instruction": f"Which is greater, {a} or {b + 100}?",
                "input": "",
                "output": f"The greater one is {b + 100}.",
            },
        ][n % 4]


def preferences(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Make the same tasks, with a rude answer beside the polite one."""
    for row in instructions(rng, count):
        rude = rng.choice(
            ["Obviously, ", "Do your homework yourself. ", "What a silly thing to ask. "]
        )
        yield {**row, "chosen": row["output"], "rejected": rude + row["output"]}


def problems(rng: random.Random, count: int) -> Iterator[dict[str, str]]:
    """Make word problems of two steps, solved as GSM8K solves them."""
    for _ in range(count):
        name, thing = rng.choice(NAMES), rng.choice(WORDS)
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 30)
        yield {
            "question": (
                f"{name} sees {a} boxes with {b} {thing} cards each, and finds {c} more. How many"
                f" {thing} cards are there?"
            ),
            "answer": (
                f"In the boxes there are {a} * {b} = {a * b} cards.\nWith the others there are"
                f" {a * b} + {c} = {a * b + c}.\n#### {a * b + c}"
            ),
        }


def choices(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Make the same tasks again, with the answer of another row beside the right one."""
    rows = [row for row in instructions(rng, 5 * count) if row["instruction"].startswith("Write")]
    for n, row in enumerate(rows[:count]):
        gold = rng.randrange(2)
        answers = [row["output"], rows[(n + 1) % len(rows)]["output"]]
        yield {
            "query": f"{row['instruction']} {row['input']}\n",
            "choices": answers[:: 1 - 2 * gold],
            "gold": gold,
        }


def main(out: Path, public: Path | None = None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if public is not None and all((public / path).is_file() for path in PUBLIC.values()):
        for name, path in PUBLIC.items():
            shutil.copyfile(public / path, out / name)
        origin = (
            "public rows: 1,100 instructions and preferences of rasbt/LLMs-from-scratch"
            " (Apache-2.0), 1,319 problems of GSM8K (MIT), questions of PIQA from llm-foundry"
            " (Apache-2.0)"
        )
    else:
        (out / "instructions.json").write_text(
            json.dumps(list(instructions(random.Random(0), 1000)), indent=1)
        )
        (out / "preferences.json").write_text(
            json.dumps(list(preferences(random.Random(1), 1000)), indent=1)
        )
        (out / "problems.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in problems(random.Random(2), 1000))
        )
        (out / "choices.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in choices(random.Random(3), 200))
        )
        origin = "made rows: 1,000 tasks, 1,000 pairs, 1,000 problems and 200 questions"
    sums = ({"text": f"{a} + {b} = {a + b}"} for a in range(100) for b in range(0, 100, 7))
    (out / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (out / "origin.txt").write_text(origin + "\n")
    print(origin)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3] or ["data"]))
