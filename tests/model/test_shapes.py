"""The shape files under configs/model: their arithmetic, the published sizes, and that they
define the whole shape.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_pretrain.model.config import ModelConfig, RopeScaling, count_parameters
from lit_pretrain.model.transformer import Transformer

FILES = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))

PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_1.5b": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "mistral_7b": 7_241_732_096,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_8b": 8_190_735_360,
    "qwen3_32b": 32_762_123_264,
    "smollm2_135m": 134_515_008,
}

NOT_SHAPE = {"attention", "block", "dropout", "init_std", "logit_scale"}


def comment(file: Path) -> str:
    """The comment lines of a file as one line."""
    return " ".join(
        line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#")
    )


def load(file: Path) -> ModelConfig:
    """The shape of a file; without a vocab_size, that of the comment's figures."""
    content = yaml.safe_load(file.read_text())
    assert set(content) == {"model"}
    assert set(content["model"]) == {"net"}
    fields: dict[str, Any] = dict(content["model"]["net"])
    if fields["rope_scaling"]:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    if "vocab_size" not in fields:
        found = re.search(r"the figures are for (\d+)", comment(file))
        assert found, "a file without vocab_size says for which one its figures are"
        fields["vocab_size"] = int(found[1])
    return ModelConfig(**fields)


def test_there_are_shapes_from_a_million_to_seventy_billion() -> None:
    assert PUBLISHED.keys() <= {file.stem for file in FILES}
    sizes = [count_parameters(load(file)).total for file in FILES]
    assert min(sizes) < 2e6
    assert max(sizes) > 70e9


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_arithmetic_in_the_comment_is_the_size_of_the_built_network(file: Path) -> None:
    config = load(file)
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in Transformer(config).parameters())
    left, right = comment(file).split(" = ")
    stated = int(right.removesuffix(" parameters").replace(",", ""))
    terms = left[left.index(f"{config.n_layer} layers") :].replace(",", "").replace("×", "*")
    terms = re.sub(r"\(tied head\)|[a-z-]+", "", terms)
    assert eval(terms) == stated == built == count_parameters(config).total
    assert built == PUBLISHED.get(file.stem, built)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shape_laid_over_another_leaves_nothing_of_it(file: Path) -> None:
    fields = set(yaml.safe_load(file.read_text())["model"]["net"])
    missing = {field.name for field in dataclasses.fields(ModelConfig)} - NOT_SHAPE - fields
    assert missing == set() if file.stem in PUBLISHED else missing == {"vocab_size"}
    assert not fields & NOT_SHAPE
