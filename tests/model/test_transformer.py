"""The transformer: construction, roles, refusals, and the parts that no other family has."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.roles import parameter_roles
from lit_pretrain.stage.origin import can_compile

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "n_layer": 3,
    "width": 32,
    "n_head": 4,
    "max_seq_len": 64,
    "init_std": 0.3,
}
ONE_AXIS = ("vector", "scalar", "embedding_scalar")
EXTRAS: dict[str, Any] = {
    "value_embeddings": "alternate",
    "residual_scalars": True,
    "qk_norm": True,
    "embed_norm": True,
}


def small(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, **changes})


def tokens(T: int = 40, B: int = 2) -> Tensor:
    return torch.randint(50, (B, T), generator=torch.Generator().manual_seed(0))


def same_weights(a: Transformer, b: Transformer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# ------------------------------------------------------------------ construction


@pytest.mark.parametrize(
    "changes", [{}, EXTRAS, {"position": "learned", "tie_embeddings": True, "norm": "layernorm"}]
)
def test_construction_on_meta_gives_the_same_network(changes: dict[str, Any]) -> None:
    config = small(**changes)
    torch.manual_seed(3)
    direct = Transformer(config)
    with torch.device("meta"):
        model = Transformer(config)
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.reset_parameters()
    assert same_weights(model, direct)
    assert torch.equal(model(tokens()), direct(tokens()))


def test_a_generator_decides_the_weights_and_leaves_the_default_one_alone() -> None:
    a, b = Transformer(small()), Transformer(small())
    before = torch.get_rng_state()
    a.reset_parameters(torch.Generator().manual_seed(5))
    b.reset_parameters(torch.Generator().manual_seed(5))
    assert same_weights(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    b.reset_parameters(torch.Generator().manual_seed(6))
    assert not same_weights(a, b)


def test_the_default_dtype_is_the_dtype_of_the_weights() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Transformer(small(**EXTRAS))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(tokens()).dtype == torch.bfloat16
    assert {b.dtype for b in model.buffers()} == {torch.float32}


def test_the_state_dict_holds_the_parameters_and_round_trips() -> None:
    model, other = Transformer(small(**EXTRAS)), Transformer(small(**EXTRAS))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens()), other(tokens()))
    assert torch.equal(copy.deepcopy(model)(tokens()), model(tokens()))


def test_every_parameter_has_a_role_and_a_gradient() -> None:
    model = Transformer(small(**EXTRAS, attn_out_bias=True))
    model.logits(model(tokens(50))).square().mean().backward()
    roles = parameter_roles(model)
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert {roles[name] for name in roles} == {
        "matrix",
        "embedding",
        "value_embedding",
        "head",
        "vector",
        "scalar",
        "embedding_scalar",
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.ndim == 2) == (roles[name] not in ONE_AXIS), name


def test_a_tied_head_is_the_embedding() -> None:
    model = Transformer(small(tie_embeddings=True))
    assert model.head_weight is model.token_embedding.weight
    assert parameter_roles(model)["token_embedding.weight"] == "embedding"
    assert "head" not in parameter_roles(model).values()
    assert Transformer(small()).head_weight.shape == (50, 32)


# ------------------------------------------------------------------ mathematics


def test_learned_positions_restart_with_each_document_and_can_be_given() -> None:
    model = Transformer(small(position="learned")).double()
    doc_BT = torch.tensor([[0] * 10 + [1] * 30]).expand(2, 40)
    restarted = torch.cat((torch.arange(10), torch.arange(30))).expand(2, 40)
    torch.testing.assert_close(
        model(tokens(), doc_BT), model(tokens(), doc_BT, positions_BT=restarted)
    )
    assert not torch.allclose(
        model(tokens(), doc_BT),
        model(tokens(), doc_BT, positions_BT=torch.arange(40).expand(2, 40)),
    )


def test_logits_are_capped() -> None:
    model = Transformer(small(logit_softcap=2.0, init_std=1.0))
    plain = model(tokens()) @ model.head_weight.T
    assert plain.abs().max() > 4
    assert model.logits(model(tokens())).abs().max() <= 2
    torch.testing.assert_close(model.logits(model(tokens())), 2 * torch.tanh(plain / 2))


@pytest.mark.parametrize("scalars", [True, False])
def test_pairs_of_tokens_enter_before_every_block(scalars: bool) -> None:
    """Against a network without them, to whose stream they are added from outside."""
    rows, n_layer = 20, 3
    torch.manual_seed(0)
    shape = {"residual_scalars": scalars, "n_layer": n_layer}
    model = Transformer(small(bigram_rows=rows, **shape)).double()
    plain = Transformer(small(**shape)).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    row = tokens(12, 2)
    doc = torch.tensor([[0] * 4 + [1] * 8, [5] * 1 + [6] * 1 + [7] * 10])
    table, scale_L = model.bigram_embedding.weight, model.bigram_scale_L
    assert table.abs().max() == 0
    assert scale_L.tolist() == pytest.approx([0.1] * n_layer)
    torch.testing.assert_close(model(row, doc), plain(row, doc))
    table.data.normal_()
    scale_L.data = torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64)

    added = torch.zeros(2, 12, 32, dtype=torch.float64)
    seen = {}
    for b in range(2):
        for t in range(1, 12):
            if doc[b, t] == doc[b, t - 1]:
                before, now = int(row[b, t - 1]), int(row[b, t])
                place = ((before * 2246822519) ^ (now * 2654435761)) % rows
                seen[before, now] = place
                added[b, t] = table[place]
    assert len(set(seen.values())) > rows / 3  # the pairs spread over the table
    for layer, block in enumerate(plain.blocks):
        own = block.transform
        block.transform = lambda x, *rest, own=own, at=layer: own(x + scale_L[at] * added, *rest)
    torch.testing.assert_close(model(row, doc), plain(row, doc))

    # Alone every document is the same: nothing comes from the one before it.
    alone = model(row[:1, 4:])
    torch.testing.assert_close(model(row, doc)[:1, 4:], alone)


@pytest.mark.parametrize("embed_norm", [True, False])
def test_smear_adds_the_embedding_of_the_token_before(embed_norm: bool) -> None:
    """Against a network without it, whose embeddings are shifted and added from outside."""
    torch.manual_seed(0)
    model = Transformer(small(smear=True, embed_norm=embed_norm, residual_scalars=True)).double()
    plain = Transformer(small(embed_norm=embed_norm, residual_scalars=True)).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    row, doc = tokens(9, 1), torch.tensor([[0] * 4 + [1] * 5])
    torch.testing.assert_close(model(row, doc), plain(row, doc))  # the factors are 0 at first
    model.smear_D.data.normal_()
    own = plain._embed

    def shifted(*given: torch.Tensor | None) -> torch.Tensor:
        x = own(*given)
        earlier = torch.zeros_like(x)
        for t in (1, 2, 3, 5, 6, 7, 8):  # 0 and 4 begin a document
            earlier[:, t] = x[:, t - 1]
        return x + model.smear_D * earlier

    plain._embed = shifted
    torch.testing.assert_close(model(row, doc), plain(row, doc))
    torch.testing.assert_close(model(row, doc)[:, 4:], model(row[:, 4:]))


@pytest.mark.parametrize("norm_weight", [True, False])
@pytest.mark.parametrize("position", ["rope", "none"])
def test_a_scale_of_queries_and_keys_is_one_of_their_gains(
    norm_weight: bool, position: str
) -> None:
    shape = {"qk_norm": True, "position": position}
    torch.manual_seed(0)
    scaled = Transformer(small(qk_scale=1.3, norm_weight=norm_weight, **shape)).double()
    folded = Transformer(small(**shape)).double()
    weights = scaled.state_dict()
    for name, weight in folded.state_dict().items():
        factor = 1.3 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
        weight.copy_(factor * weights.get(name, torch.ones_like(weight)))
    torch.testing.assert_close(scaled(tokens()), folded(tokens()))


@pytest.mark.parametrize(
    ("changes", "channels", "factor"),
    [({}, 32, 2), ({"value_gate_channels": 12, "value_gate_scale": 3.0}, 12, 3)],
)
def test_value_embeddings_enter_gated_by_the_residual_stream(
    changes: dict[str, Any], channels: int, factor: float
) -> None:
    torch.manual_seed(0)
    model = Transformer(
        small(n_layer=1, value_embeddings="alternate", position="none", **changes)
    ).double()
    attention, table = model.blocks[0].attention, model.value_embeddings["0"].weight
    row = tokens(1, 1)  # a single token attends to itself: what attention returns is its value
    x = model.blocks[0].attention_norm(model.token_embedding(row))
    for gate in (0.0, 0.7):
        torch.nn.init.constant_(attention.value_gate.weight, gate)
        scale = factor * torch.sigmoid(gate * x[..., :channels].sum())
        added = model.blocks[0].attention.out_proj(attention.v_proj(x) + scale * table[row])
        block = model.token_embedding(row) + added
        expected = model.final_norm(
            block + model.blocks[0].feed_forward(model.blocks[0].ffn_norm(block))
        )
        torch.testing.assert_close(model(row), expected)


def test_residual_scalars_mix_the_embedding_into_every_layer() -> None:
    model = Transformer(
        small(n_layer=2, residual_scalars=True, init="zero_residual")
    ).double()  # blocks start as the identity
    model.residual_scale_L.data = torch.tensor([2.0, 3.0], dtype=torch.float64)
    model.embedding_scale_L.data = torch.tensor([0.5, 0.25], dtype=torch.float64)
    x0 = model.token_embedding(tokens())
    torch.testing.assert_close(
        model(tokens()), model.final_norm(3.0 * (2.0 * x0 + 0.5 * x0) + 0.25 * x0)
    )


def test_dropout_acts_in_training_only() -> None:
    model = Transformer(small(dropout=0.5))
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


def test_autocast_computes_products_in_half_and_keeps_the_residual_stream() -> None:
    model = Transformer(small(**EXTRAS))
    seen: list[torch.dtype] = []
    model.blocks[1].attention.out_proj.register_forward_hook(
        lambda _, inputs, out: seen.extend((inputs[0].dtype, out.dtype))
    )
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens())
        assert model.compute_dtype() == torch.bfloat16
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, model(tokens()), rtol=0.1, atol=0.1)
    assert model.compute_dtype() == torch.float32


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_row_longer_than_the_positions_is_refused(position: str) -> None:
    with pytest.raises(UserError, match=r"65 tokens.*max_seq_len=64"):
        Transformer(small(position=position))(tokens(65))


@pytest.mark.parametrize("bad", [50, -100])
def test_a_token_outside_the_vocabulary_is_refused_with_its_place(bad: int) -> None:
    row = tokens()
    row[1, 7] = bad
    with pytest.raises(UserError, match=rf"token id {bad} in row 1, column 7.*50 tokens"):
        Transformer(small())(row)


# ------------------------------------------------------------------ compiler


def check_compiled(changes: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    model = Transformer(small(n_layer=2, **changes))
    doc_BT = torch.randint(0, 4, (2, 40)).sort().values
    expected = model(tokens(), doc_BT)
    keys = list(model.state_dict())
    model.compile_blocks(backend, fullgraph=True)
    compiled = model(tokens(), doc_BT)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
    compiled.square().mean().backward()
    assert all(
        p.grad is not None for name, p in model.named_parameters() if not name.startswith("head.")
    )
    assert list(model.state_dict()) == keys


COMPILED = [
    pytest.param({}, id="llama"),
    pytest.param(
        {**EXTRAS, "position": "learned", "sliding_window": 9, "window_pattern": "SL"}, id="extras"
    ),
    pytest.param({"attn_softcap": 5.0}, id="softcap"),
    pytest.param({"attention": "sdpa"}, id="sdpa"),
]


@pytest.mark.parametrize("changes", COMPILED)
def test_a_block_is_one_graph_to_the_compiler(changes: dict[str, Any]) -> None:
    check_compiled(changes, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(
    can_compile(torch.device("cpu")) is not None, reason="no C++ compiler, or no headers of Python"
)
@pytest.mark.timeout(
    1200
)  # most of it is the C++ compiler, which a busy machine runs ten times as long
@pytest.mark.parametrize("changes", COMPILED)
def test_it_is_the_same_compiled(changes: dict[str, Any]) -> None:
    check_compiled(changes, "inductor")


def test_a_long_row_is_refused_by_a_compiled_model_too() -> None:
    model = Transformer(small())
    model.compile_blocks("eager")
    with pytest.raises(UserError, match="65 tokens"):
        model(tokens(65))
