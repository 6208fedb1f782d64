"""What cannot be computed on parts of matrices or of rows is refused by name."""

import pytest

import lit_pretrain.objective
from lit_pretrain.adapter import LoRA
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.objective import (
    DPO,
    GRPO,
    KTO,
    CrossEntropy,
    Distillation,
    Objective,
    ProcessRewardModel,
    RewardModel,
)
from lit_pretrain.stage.checks import check_mesh
from lit_pretrain.step_size import MeshSizes

NET = ModelConfig(vocab_size=64, n_layer=1, width=32, n_head=2, ffn_width=64)
OBJECTIVES = [
    found
    for found in vars(lit_pretrain.objective).values()
    if isinstance(found, type) and issubclass(found, Objective) and found is not Objective
]
WHOLE_ROWS = [found for found in OBJECTIVES if found is not CrossEntropy]
WHOLE_VOCABULARY = [Distillation, ProcessRewardModel, RewardModel]


def check(
    sizes: MeshSizes, objective: Objective, *, adapter: LoRA | None = None, net: ModelConfig = NET
) -> None:
    check_mesh(sizes, objective, net=net, seq_len=48, adapter=adapter)


@pytest.mark.parametrize("cls", WHOLE_ROWS)
def test_objectives_that_need_whole_rows(cls: type[Objective]) -> None:
    check(MeshSizes(2, 2), cls(), adapter=LoRA(dora=True))
    with pytest.raises(UserError, match=rf"parallel\.cp=2: model\.objective {cls.__name__} "):
        check(MeshSizes(cp=2), cls())


@pytest.mark.parametrize("cls", OBJECTIVES)
def test_objectives_that_need_whole_vocabularies(cls: type[Objective]) -> None:
    """The others: tests/objective/test_split_vocabulary.py."""
    assert cls.splits_vocabulary == (cls not in WHOLE_VOCABULARY)
    if cls.splits_vocabulary:
        check(MeshSizes(tp=2), cls(), adapter=LoRA(rslora=True))
        return
    with pytest.raises(UserError, match=rf"parallel\.tp=2: model\.objective {cls.__name__} "):
        check(MeshSizes(tp=2), cls())


def test_padded_rows_are_divided_evenly() -> None:
    net = ModelConfig(vocab_size=96, n_layer=1, width=48, n_head=3, ffn_width=96)
    check(MeshSizes(tp=3), CrossEntropy(), net=net)
    for cls in (DPO, KTO, GRPO):
        with pytest.raises(
            UserError, match=r"parallel\.tp=3 must divide 64, .* set parallel.tp: 1"
        ):
            check(MeshSizes(tp=3), cls(), net=net)


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (LoRA(dropout=0.1), "dropout=0.1"),
        (LoRA(init="pissa"), "init=pissa"),
        (LoRA(dora=True), "dora=True"),
        (LoRA(quantize="nf4"), "quantize=nf4"),
    ],
)
def test_adapters_that_need_whole_matrices(adapter: LoRA, says: str) -> None:
    check(MeshSizes(cp=2), CrossEntropy(), adapter=adapter)
    with pytest.raises(UserError, match=rf"parallel\.tp=2: model\.adapter\.{says} needs whole"):
        check(MeshSizes(tp=2), CrossEntropy(), adapter=adapter)


def test_kernels_that_read_whole_rows() -> None:
    net = ModelConfig(**{**NET.__dict__, "attention": "varlen"})
    with pytest.raises(UserError, match=r"parallel\.cp=2: model\.net\.attention='varlen'"):
        check_mesh(MeshSizes(cp=2), CrossEntropy(), net=net, seq_len=32, adapter=None)
