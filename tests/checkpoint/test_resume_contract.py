"""Which fields must be the same to go on from a checkpoint, and which a fork may change."""

import json

import pytest

from lit_pretrain.checkpoint.resume_contract import (
    check_fork,
    check_resume,
    contract_of,
    data_of,
    differences,
    flatten,
)
from lit_pretrain.errors import UserError

CONFIG = {
    "model": {
        "net": {"width": 8, "attention": "auto"},
        "schedule": {"kind": "wsd"},
        "compile": "auto",
    },
    "data": {
        "path": "here",
        "seed": 0,
        "weights": None,
        "global_batch_tokens": 64,
        "micro_batch_size": 1,
    },
    "max_steps": 10,
    "trainer": {"precision": "32-true", "devices": 1},
}


def contract(**changes: object) -> dict[str, object]:
    changed = json.loads(json.dumps(CONFIG))
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        part = changed
        for name in path:
            part = part[name]
        part[last] = value
    return contract_of(changed, manifest_hash="m", tokenizer_hash="t")


def test_what_does_not_change_the_numbers_may_differ() -> None:
    check_resume(
        contract(),
        contract(
            data__path="there", data__micro_batch_size=2, model__compile="off", trainer__devices=2
        ),
        "x",
    )


@pytest.mark.parametrize(
    ("field", "value", "message", "forks"),
    [
        ("model__net__width", 16, "model.net.width: the checkpoint has 8, this run 16", False),
        ("data__seed", 1, "data.seed: the checkpoint has 0, this run 1", False),
        (
            "data__global_batch_tokens",
            128,
            "data.global_batch_tokens: the checkpoint has 64, this run 128",
            False,
        ),
        (
            "trainer__precision",
            "bf16-mixed",
            "trainer.precision: the checkpoint has '32-true', this run 'bf16-mixed'",
            False,
        ),
        (
            "model__schedule__kind",
            "cosine",
            "model.schedule.kind: the checkpoint has 'wsd', this run 'cosine'",
            True,
        ),
        ("max_steps", 20, "max_steps: the checkpoint has 10, this run 20", True),
        (
            "data__weights",
            {"code": 1.0},
            "data.weights.code: the checkpoint has None, this run 1.0",
            True,
        ),
        ("data__temperature", 2.0, "data.temperature: the checkpoint has None, this run 2.0", True),
        (
            "data__max_epochs",
            {"code": 2.0},
            "data.max_epochs.code: the checkpoint has None, this run 2.0",
            True,
        ),
        (
            "data__phases",
            [{"from_tokens": 0.0}],
            "data.phases: the checkpoint has None, this run [{'from_tokens': 0.0}]",
            True,
        ),
    ],
)
def test_what_changes_them_is_named(field: str, value: object, message: str, forks: bool) -> None:
    with pytest.raises(UserError, match="cannot resume from x") as caught:
        check_resume(contract(), contract(**{field: value}), "x")
    assert message in str(caught.value)
    if forks:
        check_fork(contract(), contract(**{field: value}), "x")
    else:
        with pytest.raises(UserError, match="cannot fork x") as caught:
            check_fork(contract(), contract(**{field: value}), "x")
        assert message in str(caught.value)


def with_optimizer(**settings: object) -> dict[str, object]:
    return contract(model__optimizer={"class_path": "A", "init_args": settings})


def test_a_fork_keeps_the_groups_of_the_optimizer() -> None:
    """Moments lie in the order of the groups: those of one group are not those of two."""
    one = with_optimizer(lr_scale={"scalar": 2.0})
    for apart in (
        with_optimizer(embedding_scalar_lr=0.5),
        with_optimizer(lr_scale={"embedding_scalar": 2.0}),
        with_optimizer(role_betas={"embedding_scalar": (0.9, 0.99)}),
    ):
        with pytest.raises(UserError, match=r"this run sets \S*embedding_scalar"):
            check_fork(one, apart, "x")
        with pytest.raises(UserError, match="cannot fork x: the checkpoint sets"):
            check_fork(apart, one, "x")
    check_fork(
        with_optimizer(embedding_scalar_lr=0.5), with_optimizer(embedding_scalar_lr=0.1), "x"
    )


def test_the_data_of_a_contract_is_that_of_the_config() -> None:
    phases = [{"from_tokens": 0.0, "weights": {"code": 1.0}}]
    data = data_of(contract(data__weights={"code": 1.0, "a.b": 2.0}, data__phases=phases))
    assert data["weights"] == {"code": 1.0, "a.b": 2.0}
    assert data["phases"] == phases
    assert (data["seed"], data["global_batch_tokens"]) == (0, 64)
    assert data_of(contract())["weights"] is None


def test_flatten_keeps_lists_and_empties() -> None:
    assert flatten({"a": {"b": (1, 2), "c": {}}, "d": None}) == {"a.b": [1, 2], "d": None}


def test_a_switch_that_is_newer_than_the_checkpoint_and_off_is_no_difference() -> None:
    assert differences({"a": 1}, {"a": 1, "data.learn_after_stop": False}) == []
    assert differences({"a": 1}, {"a": 1, "data.learn_after_stop": True}) != []
