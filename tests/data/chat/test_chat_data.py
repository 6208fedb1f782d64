"""Packed rows: conversations that share a row learn what each would learn alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.chat.render import Rendered
from lit_pretrain.data.chat.chat_data import pack_rows
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer


def packed_losses(
    attention: str, lengths: list[int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss sum of each conversation in one packed row, the same one by one)."""
    generator = torch.Generator().manual_seed(0)
    config = ModelConfig(
        n_layer=2,
        width=16,
        n_head=2,
        vocab_size=32,
        max_seq_len=64,
        attention=attention,
        init="gpt2",
    )
    net = Transformer(config)
    net.reset_parameters(generator)
    net = net.to(dtype)
    rows = []
    for n in lengths:
        learned = torch.rand(n, generator=generator) < 0.5
        learned[-1] = True
        rows.append(
            Rendered(torch.randint(32, (n,), generator=generator).int().numpy(), learned.numpy())
        )

    def losses(packs: list[list[Rendered]], seq_len: int) -> torch.Tensor:
        tokens, labels, doc = pack_rows(packs, pad_id=0, seq_len=seq_len)
        logp = torch.log_softmax(net.logits(net(tokens, doc)), dim=-1)
        nll = -logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(
            labels == IGNORE_INDEX, 0
        )
        found = torch.zeros(len(rows), dtype=dtype)
        if len(packs) == 1:
            return found.index_add(0, doc[0].long().clamp(max=len(rows) - 1), nll[0])
        return nll.sum(dim=1)

    with torch.no_grad():
        alone = torch.cat(
            [losses([[row], []], len(row.ids) - 1)[:1] for row in rows]
        )  # its own row, without padding
        return losses([rows], sum(lengths) - len(lengths) + 3), alone


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [
        ("tiled", torch.float32, 1e-5),
        ("sdpa", torch.float64, 1e-10),
        ("matmul", torch.float64, 1e-10),
    ],
)
def test_packed_loss_is_the_loss_of_each_conversation_alone(
    attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    @settings(max_examples=12)
    @given(st.lists(st.integers(2, 14), min_size=1, max_size=5))
    def check(lengths: list[int]) -> None:
        packed, alone = packed_losses(attention, lengths, dtype)
        torch.testing.assert_close(packed, alone, rtol=tolerance, atol=tolerance)

    check()


def test_packs_have_no_label_across_an_edge_and_padding_is_a_document_of_its_own() -> None:
    def row(*ids: int) -> Rendered:
        return Rendered(
            torch.tensor(ids).int().numpy(), torch.ones(len(ids), dtype=torch.bool).numpy()
        )

    tokens, labels, doc = pack_rows([[row(5, 6, 7), row(8, 9)], []], pad_id=3, seq_len=5)
    assert tokens.tolist() == [[5, 6, 8, 3, 3], [3] * 5]
    assert labels.tolist() == [[6, 7, 9, IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX] * 5]
    assert doc.tolist() == [[0, 0, 1, 2, 2], [0] * 5]
