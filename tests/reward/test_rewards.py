"""Rewards: what each says of an answer, and how a config that names them wrongly is refused."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.reward import ExactAnswer, Format, LengthPenalty, Random, Reward, Rewards

GSM8K = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72"
)


@pytest.mark.parametrize(
    ("options", "completion", "answer", "right"),
    [
        ({}, "46", "46", True),
        ({}, " 46\n", "46", True),
        ({}, "46.", "46", True),
        ({}, "46.0", "46", True),
        ({}, "1,046", "1046", True),
        ({}, "$46", "46", True),
        ({}, "046", "46", True),
        ({}, "-46", "46", False),
        ({}, "4 6", "46", False),
        ({}, "the answer is 46", "46", False),
        ({}, "", "46", False),
        ({}, "Paris", "Paris", True),
        ({}, "paris", "Paris", False),
        ({}, "nan", "nan", True),  # a word, not a number
        ({}, "infinity", "inf", False),
        ({"after": "####"}, GSM8K, "72", True),
        ({"after": "####"}, GSM8K, "24", False),
        ({"after": "####"}, "72", "72", False),
        ({"after": "####"}, "#### 71\n#### 72\nso 71", "72", True),
        ({"after": "####"}, "####", "72", False),
        ({"last_number": True}, "first 12, so it is 1,046 apples.", "1046", True),
        ({"last_number": True}, "1046 is what I get from 12", "1046", False),
        ({"last_number": True}, "no idea", "1046", False),
        ({"after": "####", "last_number": True}, "#### about $72.50 each", "72.5", True),
    ],
)
def test_exact_answer(options: dict[str, Any], completion: str, answer: str, right: bool) -> None:
    assert ExactAnswer(**options)("", completion, {"answer": answer}) == float(right)


def test_the_right_answer_may_stand_in_another_field() -> None:
    assert ExactAnswer(field="solution")("", "46", {"solution": 46}) == 1.0
    with pytest.raises(UserError, match=r"no field 'solution'; it has 'answer'"):
        ExactAnswer(field="solution")("", "46", {"answer": "46"})


def test_format() -> None:
    wanted = Format(r"<think>.*</think>\s*<answer>.*</answer>")
    assert wanted("", "<think>a\nb</think>\n<answer>46</answer>\n", {}) == 1.0
    assert wanted("", "so: <think></think><answer>46</answer>", {}) == 0.0
    assert Format(r"\d+", whole=False)("", "so 46", {}) == 1.0
    with pytest.raises(UserError, match=r"pattern='\(' is no regular expression"):
        Format("(")


@pytest.mark.parametrize(
    ("tokens", "value"), [(1, 0.0), (10, 0.0), (15, -0.5), (20, -1.0), (40, -1.0)]
)
def test_length_penalty(tokens: int, value: float) -> None:
    assert (
        LengthPenalty(free_tokens=10, max_tokens=20)("", "", {"rollout": {"tokens": tokens}})
        == value
    )


def test_random_knows_the_place_and_not_the_answer() -> None:
    def at(step: int, answer: int, completion: str, seed: int = 0) -> float:
        return Random(0.3, seed)(
            "", completion, {"rollout": {"step": step, "sample": 5, "answer": answer}}
        )

    places = [(step, answer) for step in range(100) for answer in range(10)]
    values = [at(*place, "right") for place in places]
    assert values == [at(*place, "wrong") for place in places]
    assert values != [at(*place, "right", seed=1) for place in places]
    assert sum(values) / len(values) == pytest.approx(0.3, abs=0.05)


def test_the_scorer_of_reasoning_gym() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="needs the reasoning extra")
    from lit_pretrain.data.chat.row_source import Task, task_rows

    (row,) = task_rows(Task(name="reasoning_gym/chain_sum", rows=1), "data.sources.x.task")
    (name, loaded) = "gym", Rewards({"gym": Reward(path="ReasoningGym")})
    assert gym is not None
    assert name in loaded.names
    assert loaded("", f" {row['answer']}\n", row) == (1.0,)
    assert loaded("", "no", row)[0] < 0.1


# ---------------------------------------------------------------------- several, and others' own


MINE = """
import numpy, torch
def longer(prompt, completion, row, by=1):
    return len(completion) * by
class Says:
    def __init__(self, word): self.word = word
    def __call__(self, prompt, completion, row): return numpy.float32(self.word in completion)
class Mute:
    pass
def nothing(prompt, completion, row): return None
def text(prompt, completion, row): return "1.0"
def endless(prompt, completion, row): return torch.tensor(float("inf"))
def broken(prompt, completion, row): return row["missing"]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_for_tests.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards_for_tests", raising=False)


def rewards(**specs: Mapping[str, Any]) -> Rewards:
    return Rewards({name: Reward(**spec) for name, spec in specs.items()})


@pytest.mark.usefixtures("mine")
def test_functions_and_classes_by_path_are_summed_with_their_weights() -> None:
    found = rewards(
        right={"path": "ExactAnswer"},
        longer={"path": "my_rewards_for_tests.longer", "options": {"by": 2}, "weight": 0.1},
        says={"path": "my_rewards_for_tests.Says", "options": {"word": "4"}, "weight": 0.0},
    )
    values = found("1 + 45 =", "46", {"answer": "46"})
    assert values == (1.0, 4.0, 1.0)
    assert found.total(values) == pytest.approx(1.4)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"path": "ExactAnwser"}, "'ExactAnwser' is unknown. Did you mean 'ExactAnswer'?"),
        ({"path": "no_such_module.f"}, "there is no module 'no_such_module'"),
        (
            {"path": "my_rewards_for_tests.shorter"},
            "has no 'shorter'. It has Mute, Says",
        ),
        (
            {"path": "ExactAnswer", "options": {"befor": "#"}},
            "no argument 'befor'; it takes after, last_number, field",
        ),
        (
            {"path": "my_rewards_for_tests.longer", "options": {"by_": 2}},
            "no argument 'by_'; it takes by",
        ),
        ({"path": "my_rewards_for_tests.Says"}, "needs options: word"),
        ({"path": "my_rewards_for_tests.Mute"}, "cannot be called; give the class a __call__"),
        (
            {"path": "LengthPenalty", "options": {"free_tokens": 9, "max_tokens": 3}},
            "free_tokens=9 must be below max_tokens=3",
        ),
        ({"path": "ExactAnswer", "weight": 0.0}, "all weights are zero"),
        ({"path": "ExactAnswer", "weight": float("nan")}, "right.weight=nan must be finite"),
    ],
)
def test_mistakes_in_a_config(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        rewards(right=spec)
    assert message in str(caught.value)


def test_no_reward_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"model\.rollout\.rewards is empty"):
        Rewards({})


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nothing",
            "x returned None for the answer '46' to '1 + 45 ='; it must return a finite number",
        ),
        ("text", "x returned '1.0' for"),
        ("endless", "x returned tensor(inf) for"),
        ("broken", "x failed on the answer '46' to '1 + 45 =': KeyError: 'missing' ("),
    ],
)
def test_a_reward_that_fails_says_on_which_answer(name: str, message: str) -> None:
    found = rewards(x={"path": f"my_rewards_for_tests.{name}"})
    with pytest.raises(UserError) as caught:
        found("1 + 45 =", "46", {"answer": "46"})
    assert message in str(caught.value)
