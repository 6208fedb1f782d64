"""Rewards: from names in a config to callables, and from an answer to one number."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import register_type

from lit_pretrain.class_path import check_call, import_class_path
from lit_pretrain.errors import UserError, cause_of, did_you_mean

RewardFunction = Callable[[str, str, Mapping[str, Any]], float]
ASKED = ("prompt", "completion", "row")
"""What a reward is called with."""
REWARDS = ("ExactAnswer", "Format", "LengthPenalty", "Random", "ReasoningGym")
"""Class names of the rewards in `builtin_rewards`."""


@dataclass(kw_only=True)
class Reward:
    """Name one reward, a callable (prompt, completion, row) -> float, and its weight.

    The prompt is what the network read, special tokens spelt; the completion what it wrote, without
    them. The row is the data row, with the right `answer` and, under `rollout`, step, sample,
    answer (its number within the group), tokens and truncated.
    """

    path: str
    """One of ours (ExactAnswer, Format, LengthPenalty, Random, ReasoningGym), or the dotted path of
    a function or of a class whose objects can be called.
    """
    options: dict[str, Any] | None = None
    """Arguments of the class, or further ones of the function, by name."""
    weight: float = 1.0
    """What it is multiplied by in the sum; 0 only reports it."""


def read_reward(value: Any) -> Reward:
    """Read a reward from its mapping in a config.

    Raises:
        UserError: It is none, or a field is unknown or of the wrong type.
    """
    if isinstance(value, Reward):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        raise UserError(
            "model.rollout.rewards: a reward is a mapping with path, options and weight; found"
            f" {value!r}"
        )
    unknown = sorted(value.keys() - {"path", "options", "weight"})
    if unknown:
        raise UserError(
            "model.rollout.rewards: a reward takes path, options and weight; found"
            f" {', '.join(map(repr, unknown))}"
        )
    options, weight = value.get("options"), value.get("weight", 1.0)
    if options is not None and not isinstance(options, Mapping):
        raise UserError(
            f"model.rollout.rewards: options of {value['path']} must map names to values; found"
            f" {options!r}"
        )
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise UserError(
            f"model.rollout.rewards: weight of {value['path']} must be a number; found {weight!r}"
        )
    return Reward(
        path=value["path"], options=None if options is None else dict(options), weight=float(weight)
    )


# Left to itself jsonargparse takes the pattern "[0-9]" among the options for a list.
register_type(
    Reward, serializer=dataclasses.asdict, deserializer=read_reward, fail_already_registered=False
)


class Rewards:
    """Weigh and sum several rewards.

    Args:
        rewards: By the name under which each is reported.

    Raises:
        UserError: There is none, one does not exist or its options are wrong, or all weights are
            zero.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        if not rewards:
            raise UserError(
                "model.rollout.rewards is empty: name at least one, such as {answer: {path:"
                " ExactAnswer}}"
            )
        for name, reward in rewards.items():
            if not math.isfinite(reward.weight):
                raise UserError(
                    f"model.rollout.rewards.{name}.weight={reward.weight} must be finite"
                )
        if not any(reward.weight for reward in rewards.values()):
            raise UserError(
                "model.rollout.rewards: all weights are zero, so that nothing would be learned;"
                " raise one"
            )
        self.names = tuple(rewards)
        self.weights = tuple(reward.weight for reward in rewards.values())
        self._callees = tuple(load_reward(name, reward) for name, reward in rewards.items())

    def __call__(self, prompt: str, completion: str, row: Mapping[str, Any]) -> tuple[float, ...]:
        """Ask every reward for its value of an answer, unweighted.

        Raises:
            UserError: One fails, or returns no finite number; says of which answer.
        """
        return tuple(
            self._ask(name, callee, prompt, completion, row)
            for name, callee in zip(self.names, self._callees, strict=True)
        )

    def total(self, values: tuple[float, ...]) -> float:
        """Sum the weighted values."""
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    @staticmethod
    def _ask(
        name: str, callee: RewardFunction, prompt: str, completion: str, row: Mapping[str, Any]
    ) -> float:
        answer = f"the answer {completion[:200]!r} to {prompt[-200:]!r}"
        try:
            value = callee(prompt, completion, row)
        except UserError as error:
            raise UserError(
                f"model.rollout.rewards.{name}: {error}; it was asked about {answer}"
            ) from None
        except Exception as error:  # a reward is code of the user's
            raise UserError(
                f"model.rollout.rewards.{name} failed on {answer}: {cause_of(error)}"
            ) from error
        # numpy's numbers and torch's scalars will do; a string that reads as one will not.
        if (
            isinstance(value, str)
            or not hasattr(value, "__float__")
            or not math.isfinite(number := float(value))
        ):
            raise UserError(
                f"model.rollout.rewards.{name} returned {value!r} for {answer}; it must return a"
                " finite number"
            )
        return number


def load_reward(name: str, reward: Reward) -> RewardFunction:
    """Load the callable of a reward.

    Raises:
        UserError: It does not exist, cannot be called, or does not take its options.
    """
    where, options = f"model.rollout.rewards.{name}", reward.options or {}
    target = _find(where, reward.path)
    signature = inspect.signature(target)
    skipped = 0 if inspect.isclass(target) else 3  # prompt, completion and row of a function
    parameters = list(signature.parameters.values())
    named = {
        each.name: each
        for each in parameters[skipped:]
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
    }
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for option in options:
            if option not in named:
                raise UserError(
                    f"{where}: {reward.path} has no argument {option!r}; it takes"
                    f" {', '.join(named) or 'none'}"
                )
    missing = [
        each.name
        for each in named.values()
        if each.default is each.empty and each.name not in options
    ]
    if missing:
        raise UserError(f"{where}: {reward.path} needs options: {', '.join(missing)}")
    if not inspect.isclass(target):
        check_call(f"{where}: {reward.path}", functools.partial(target, **options), *ASKED)
        return functools.partial(target, **options) if options else target
    try:
        made = target(**options)
    except UserError:
        raise
    except Exception as error:  # a reward is code of the user's
        raise UserError(
            f"{where}: {reward.path} could not be made of {options}: {cause_of(error)}"
        ) from error
    if not callable(made):
        raise UserError(
            f"{where}: objects of {reward.path} cannot be called; give the class a __call__(self,"
            " prompt, completion, row)"
        )
    check_call(f"{where}: {reward.path}.__call__", made, *ASKED)
    callee: RewardFunction = made
    return callee


def _find(where: str, path: str) -> Any:
    if path in REWARDS:
        path = f"lit_pretrain.reward.builtin_rewards.{path}"
    if "." not in path:
        raise UserError(
            f"{where}.path={path!r} is unknown.{did_you_mean(path, REWARDS)} Ours:"
            f" {', '.join(REWARDS)}; others need a dotted path, such as my_rewards.right"
        )
    target = import_class_path(path, f"{where}.path")
    if not callable(target):
        raise UserError(f"{where}.path={path!r} must name a function or a class; found {target!r}")
    return target
