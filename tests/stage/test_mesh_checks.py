"""What cannot be computed on parts of matrices or of rows is refused by name."""

import pytest

import lit_pretrain.objective
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.objective import CrossEntropy, Objective
from lit_pretrain.stage.checks import check_mesh
from lit_pretrain.step_size import MeshSizes

NET = ModelConfig(vocab_size=64, n_layer=1, width=32, n_head=2, ffn_width=64)
OTHERS = [
    found
    for found in vars(lit_pretrain.objective).values()
    if isinstance(found, type)
    and issubclass(found, Objective)
    and found not in (Objective, CrossEntropy)
]


def check(sizes: MeshSizes, objective: Objective, *, adapter: bool = False) -> None:
    check_mesh(sizes, objective, net=NET, seq_len=32, adapter=adapter)


@pytest.mark.parametrize("cls", OTHERS)
def test_objectives_that_need_whole_rows_or_vocabularies(cls: type[Objective]) -> None:
    objective = cls()
    check(MeshSizes(2, 2), objective, adapter=True)
    with pytest.raises(UserError, match=rf"parallel\.tp=2: model\.objective {cls.__name__} "):
        check(MeshSizes(tp=2), objective)
    with pytest.raises(UserError, match=rf"parallel\.cp=2: model\.objective {cls.__name__} "):
        check(MeshSizes(cp=2), objective)


def test_adapters_go_with_split_rows_alone() -> None:
    check(MeshSizes(cp=2), CrossEntropy(), adapter=True)
    with pytest.raises(UserError, match=r"parallel\.tp=2: model\.adapter cannot be split"):
        check(MeshSizes(tp=2), CrossEntropy(), adapter=True)


def test_kernels_that_read_whole_rows() -> None:
    net = ModelConfig(**{**NET.__dict__, "attention": "varlen"})
    with pytest.raises(UserError, match=r"parallel\.cp=2: model\.net\.attention='varlen'"):
        check_mesh(MeshSizes(cp=2), CrossEntropy(), net=net, seq_len=32, adapter=False)
