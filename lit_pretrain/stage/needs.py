"""Needs: whether the data holds what an objective computes from, checked before anything is computed."""

from lit_pretrain.errors import UserError
from lit_pretrain.objective import Objective

KINDS = frozenset({"pairs", "verdicts", "rollout", "prompts"})
"""Data whose rows are not simply to be learned; an objective that knows nothing of their kind would learn the wrong ones too."""
COMPUTED = frozenset({"ref_logp", "score"})
"""What the stage adds to every batch."""


def check_needs(objective: Objective, data: object, provides: frozenset[str], *, teacher: bool, rollout: bool = False) -> None:
    """Refuse data that an objective cannot learn from.

    Args:
        objective: What is minimised.
        data: The data module, for its name.
        provides: `DataContract.provides`.
        teacher: Whether the stage has a teacher network.
        rollout: Whether the stage answers prompts by itself.

    Raises:
        UserError: Names both sides, what is missing or unused, and what would help.
    """
    computed = COMPUTED | ({"teacher"} if teacher else set()) | ({"rollout"} if rollout and "prompts" in provides else set())
    missing = objective.needs - provides - computed
    answered = {"prompts"} if "rollout" in objective.needs else set()
    unused = (provides & KINDS) - objective.needs - answered
    if not missing and not unused:
        return
    sides = (
        f"model.objective {type(objective).__name__} needs {_listed(objective.needs)}, and data {type(data).__name__} provides "
        f"{_listed(provides)}"
    )
    if missing:
        raise UserError(f"{sides}: {_listed(missing)} is missing; {_advice(missing)}")
    raise UserError(f"{sides}: it would learn all rows alike, and knows nothing of {_listed(unused)}; {_advice(unused)}")


_ADVICE = {
    "pairs": "pairs go with DPO, SimPO, ORPO, CPO and RewardModel",
    "verdicts": "verdicts go with KTO",
    "rollout": "sampled answers go with GRPO and data of prompts",
    "prompts": "prompts go with GRPO",
    "teacher": "set model.teacher to a run or a Hugging Face folder of the same vocabulary, or give data with teacher columns",
    "labels": "rows to learn go with CrossEntropy and Distillation",
}


def _advice(names: frozenset[str]) -> str:
    return "; ".join(_ADVICE[name] for name in sorted(names) if name in _ADVICE)


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"
