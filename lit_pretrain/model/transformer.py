"""Transformer: tokens in, hidden states out, and the head that turns them into logits."""

from typing import Literal, Optional

import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.model.attention import Attention
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.feed_forward import FeedForward
from lit_pretrain.model.init import init_parameter
from lit_pretrain.model.norm import make_norm
from lit_pretrain.model.rotary import Rotary, Rotation

Role = Literal["matrix", "embedding", "value_embedding", "head", "vector", "scalar"]


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added after (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.width)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotation: Optional[Rotation], mask: Optional[Tensor], value_BTC: Optional[Tensor]) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, mask, value_BTC))
        return x_BTD + self.dropout(self.feed_forward(self.ffn_norm(x_BTD)))


class Transformer(nn.Module):
    """A decoder-only transformer of the given shape."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # nothing is allocated or drawn twice: reset_parameters() below is the only initialisation
            self.token_embedding = nn.Embedding(config.vocab_size, config.width)
            self.position_embedding = nn.Embedding(config.max_seq_len, config.width) if config.position == "learned" else None
            self.value_embeddings = nn.ModuleDict(
                {
                    str(layer): nn.Embedding(config.vocab_size, config.kv_heads * config.head_size)
                    for layer in range(config.n_layer)
                    if config.has_value_embedding(layer)
                }
            )
            self.rotary = Rotary(config) if config.position == "rope" else None
            self.embed_norm = make_norm(config, config.width) if config.embed_norm else None
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.residual_scale_L = nn.Parameter(torch.empty(config.n_layer)) if config.residual_scalars else None
            self.embedding_scale_L = nn.Parameter(torch.empty(config.n_layer)) if config.residual_scalars else None
            self.final_norm = make_norm(config, config.width)
            self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters()

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (V, D); the token embedding if tied."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def parameter_roles(self) -> dict[str, Role]:
        """What each parameter is, by name, for optimizers and initialisation."""
        roles: dict[str, Role] = {}
        for name, parameter in self.named_parameters():
            if name.startswith("value_embeddings."):
                roles[name] = "value_embedding"
            elif name.startswith(("token_embedding.", "position_embedding.")):
                roles[name] = "embedding"
            elif name.startswith("head."):
                roles[name] = "head"
            elif name.endswith("scale_L"):
                roles[name] = "scalar"
            else:
                roles[name] = "matrix" if parameter.ndim == 2 else "vector"
        return roles

    @torch.no_grad()
    def reset_parameters(self, generator: Optional[torch.Generator] = None) -> None:
        """Draw all weights anew with the scheme `config.init`, in the order of named_parameters()."""
        roles = self.parameter_roles()
        for name, parameter in self.named_parameters():
            init_parameter(name, roles[name], parameter, self.config, generator)

    def forward(self, tokens_BT: Tensor, doc_BT: Optional[Tensor] = None, *, positions_BT: Optional[Tensor] = None) -> Tensor:
        T = tokens_BT.shape[1]
        if T > self.config.max_seq_len:
            raise UserError(f"a row of {T} tokens is longer than model.max_seq_len={self.config.max_seq_len}")
        mask = None
        if doc_BT is not None:
            mask = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril() & (doc_BT[:, :, None] == doc_BT[:, None, :])
            mask = mask[:, None]
        x_BTD = self.token_embedding(tokens_BT)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = embedding_BTD = self.dropout(x_BTD)
        rotation = None if self.rotary is None else self.rotary(T, positions_BT)
        for layer, block in enumerate(self.blocks):
            if self.residual_scale_L is not None and self.embedding_scale_L is not None:
                x_BTD = self.residual_scale_L[layer] * x_BTD + self.embedding_scale_L[layer] * embedding_BTD
            value_BTC = self.value_embeddings[str(layer)](tokens_BT) if str(layer) in self.value_embeddings else None
            x_BTD = block(x_BTD, rotation, mask, value_BTC)
        return self.final_norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (..., D) into logits (..., V)."""
        logits = nn.functional.linear(hidden, self.head_weight)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
