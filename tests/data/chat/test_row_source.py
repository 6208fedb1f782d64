"""Tasks: made problems are different, right, and the same every time."""

import pytest

from lit_pretrain.data.chat.row_source import Task, task_rows
from lit_pretrain.errors import UserError


def test_tasks_are_different_problems_and_the_same_every_time() -> None:
    task = Task(name="multiplication", rows=90, digits=1, prompt="{a}{op}{b}=")
    rows = task_rows(task, "data.sources.x.task")
    assert len({row["prompt"] for row in rows}) == 90
    assert all(str(int(row["prompt"][0]) * int(row["prompt"][2])) == row["answer"] for row in rows)
    assert rows == task_rows(task, "data")
    assert rows != task_rows(
        Task(name="multiplication", rows=90, digits=1, prompt="{a}{op}{b}=", seed=1), "data"
    )
    for bad, message in (
        (Task(name="division"), "is unknown"),
        (Task(rows=101, digits=1), "only 100 problems"),
        (Task(rows=0), "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            task_rows(bad, "data.sources.x.task")


def test_reasoning_gym_is_optional() -> None:
    task = Task(name="reasoning_gym/chain_sum", rows=5, options={"min_terms": 2})
    try:
        import reasoning_gym
    except ImportError:
        with pytest.raises(
            UserError,
            match=r"data.x.task.name='reasoning_gym/chain_sum' needs reasoning-gym: pip install",
        ):
            task_rows(task, "data.x.task")
        return
    rows = task_rows(task, "data.x.task")
    score = reasoning_gym.get_score_answer_fn("chain_sum")
    assert [score(row["answer"], row["entry"]) for row in rows] == [1.0] * 5
    with pytest.raises(UserError, match="cannot generate 'nothing'"):
        task_rows(Task(name="reasoning_gym/nothing"), "data.x.task")
