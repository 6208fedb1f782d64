"""Transformer: tokens in, hidden states out, and the head that turns them into logits.

Axes: B rows, T tokens, D width, V vocabulary, L layers, C channels of all value heads.
"""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from lit_pretrain.class_path import check_call, import_class_path
from lit_pretrain.errors import UserError, cause_of
from lit_pretrain.model.attention import Attention, KVCache, Pass, Rotary
from lit_pretrain.model.config import Checkpointing, ModelConfig
from lit_pretrain.model.gather import RowParts
from lit_pretrain.model.kernels import document_starts, make_cached_kernel, make_kernel, softcap
from lit_pretrain.model.layers import FeedForward, Linear, linear, make_norm
from lit_pretrain.model.parameter_scales import RESIDUAL_WRITERS, parameter_scales
from lit_pretrain.model.recompute import Recomputation, checkpoint_options
from lit_pretrain.roles import Role, parameter_roles
from lit_pretrain.transfer import ParameterScale, Transfer

FFN_READERS = ("feed_forward.up_proj", "feed_forward.gate_proj")
"""Modules of a feed-forward that read the residual stream."""


def init_parameter(
    name: str,
    role: Role,
    parameter: Tensor,
    config: ModelConfig,
    generator: torch.Generator | None,
    scale: ParameterScale = ParameterScale(),
    base: tuple[int, int] | None = None,
) -> None:
    """Fill one parameter in place with the scheme `config.init`.

    Args:
        name: Its name in the network.
        role: Its role.
        parameter: What is filled.
        config: Shape of the network.
        generator: Source of randomness.
        scale: What a transfer changes in it.
        base: Width and depth of the transfer's base; by default those of the network.
    """
    width, n_layer = base or (config.width, config.n_layer)
    owner = name.removesuffix(".weight")
    if name == "residual_scale_L" and config.residual_scale_init is not None:
        # The factors of all layers multiply: more layers than the base has are as much together.
        first_L = torch.linspace(*config.residual_scale_init, config.n_layer)
        parameter.copy_(first_L ** (n_layer / config.n_layer))
    elif name == "embedding_scale_L" and config.embedding_scale_init is not None:
        parameter.copy_(torch.linspace(*config.embedding_scale_init, config.n_layer) * scale.init)
    elif name == "smear_D":
        parameter.zero_()
    elif role in ("scalar", "embedding_scalar"):
        parameter.fill_(1.0 if name == "residual_scale_L" else 0.1 * scale.init)
    elif role == "vector":
        parameter.fill_(scale.init if name.endswith("norm.weight") else 0.0)
    elif name.endswith("value_gate.weight"):
        if config.value_gate_init is None:
            parameter.zero_()  # 2 * sigmoid(0) = 1: the value embedding enters as it is
        else:
            parameter.uniform_(0.0, config.value_gate_init, generator=generator)
    elif name == "bigram_embedding.weight":
        parameter.zero_()
    elif name == "token_embedding.weight" and config.embedding_std is not None:
        parameter.normal_(0.0, config.embedding_std * scale.init, generator=generator)
    elif config.init == "zero_residual":
        _zero_residual(name, role, parameter, generator, scale, width)
    else:
        std = config.init_std
        if config.init == "gpt2" and _writes(name):
            std /= math.sqrt(
                2 * n_layer
            )  # Radford et al. 2019, section 2.3: one term per write to the residual stream
        parameter.normal_(0.0, std * scale.init, generator=generator)
    if config.ffn_in_scale is not None and owner.endswith(FFN_READERS):
        parameter.mul_(config.ffn_in_scale)


def _zero_residual(
    name: str,
    role: str,
    parameter: Tensor,
    generator: torch.Generator | None,
    scale: ParameterScale,
    width: int,
) -> None:
    if role == "embedding":
        parameter.normal_(0.0, 1.0, generator=generator)
    elif role == "head":
        parameter.normal_(0.0, 0.001 * scale.init, generator=generator)
    elif _writes(name):
        parameter.zero_()
    else:
        # A value embedding stands beside v_proj's output and gets the deviation of v_proj's
        # weights: small next to the values.
        fan_in = width if role == "value_embedding" else parameter.shape[-1]
        bound = math.sqrt(3 / fan_in)  # a uniform distribution on (-b, b) has deviation b / sqrt(3)
        bound *= scale.fold
        parameter.uniform_(-bound, bound, generator=generator)


def _writes(name: str) -> bool:
    """Tell whether a parameter is a matrix whose output is added to the residual stream."""
    return name.removesuffix(".weight").endswith(RESIDUAL_WRITERS)


class Mix(NamedTuple):
    """What is added to the stream before a block, and by what the stream is multiplied."""

    stream: Tensor | None = None
    """With residual scalars the block reads `stream * x_BTD + embedding * embedding_BTD`."""
    embedding: Tensor | None = None
    embedding_BTD: Tensor | None = None
    bigram: Tensor | None = None
    """With a table of pairs of tokens `bigram * bigram_BTD` is added to that."""
    bigram_BTD: Tensor | None = None

    def of(self, x_BTD: Tensor) -> Tensor:
        """Return what the block reads."""
        if self.stream is not None and self.embedding is not None:
            assert self.embedding_BTD is not None
            x_BTD = self.stream * x_BTD + self.embedding * self.embedding_BTD
        if self.bigram is not None:
            assert self.bigram_BTD is not None
            x_BTD = x_BTD + self.bigram * self.bigram_BTD
        return x_BTD


class Block(nn.Module):
    """A pre-norm layer: attention, then feed-forward, each normalised before and added after.

    A block of the user's (`ModelConfig.block`) is a subclass with another `transform`, and with
    further modules if its constructor makes some.

    Args:
        config: Shape of the network.
        layer: Number of the block, from 0.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.width)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpointing: Checkpointing = False
        """Keep only the input for the backward pass, or little more; it then runs the block again.
        """
        self.kept: Recomputation | None = None
        """What that is, beside the input."""
        self.compiled: Callable[..., Any] | None = None
        """`_compute` compiled; training uses it. Where more than the input is kept, `_recompute`:
        the policy only sees the products of what it stands around within one compiled function.
        """

    def forward(
        self,
        x_BTD: Tensor,
        shared: Pass,
        value_BTC: Tensor | None = None,
        mix: Mix | None = None,
    ) -> Tensor:
        """Map the residual stream (B, T, D) to the next one."""
        # Evaluation and generation run in shapes of their own, each of which would be compiled.
        training = torch.is_grad_enabled() and shared.cache is None
        compute = type(self)._compute if self.compiled is None or not training else self.compiled
        if training and self.checkpointing and (self.compiled is None or self.keeps_input_alone):
            # Here and not around the module: FSDP's hooks, which gather the weights, stay outside
            # of what is run twice.
            # What the recomputed part saves has hooks of its own: of the tensors here the block's
            # inputs alone are moved.
            inputs_wait = (
                save_on_cpu(pin_memory=x_BTD.is_cuda)
                if self.checkpointing == "offload"
                else nullcontext()
            )
            with inputs_wait:
                again: Tensor = checkpoint(
                    compute, self, x_BTD, shared, value_BTC, mix, use_reentrant=False,
                    **checkpoint_options(self.kept),
                )  # fmt: skip
            return again
        out: Tensor = compute(self, x_BTD, shared, value_BTC, mix)
        return out

    @property
    def keeps_input_alone(self) -> bool:
        """Tell whether the backward pass computes everything again."""
        return self.checkpointing is True or self.checkpointing == "offload"

    def _recompute(self, *inputs: Any) -> Tensor:
        """Compute what `_compute` does, and keep part of it."""
        found: Tensor = checkpoint(
            type(self)._compute, self, *inputs, use_reentrant=False,
            **checkpoint_options(self.kept),
        )  # fmt: skip
        return found

    def _compute(
        self, x_BTD: Tensor, shared: Pass, value_BTC: Tensor | None, mix: Mix | None
    ) -> Tensor:
        if mix is not None:
            x_BTD = mix.of(x_BTD)
        return self.transform(x_BTD, shared, value_BTC)

    def transform(self, x_BTD: Tensor, shared: Pass, value_BTC: Tensor | None) -> Tensor:
        """Map the residual stream to the next one: what a block of the user's defines.

        Args:
            x_BTD: The residual stream.
            shared: What attention needs beside its input; pass it on.
            value_BTC: A value embedding, where the layer has one; pass it on.
        """
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), shared, value_BTC))
        out: Tensor = x_BTD + self.dropout(self.feed_forward(self.ffn_norm(x_BTD)))
        return out


def block_class(config: ModelConfig) -> type[Block]:
    """Return the class of a network's blocks: ours, or the user's that the shape names.

    Raises:
        UserError: There is no such class, or it is no block.
    """
    if config.block is None:
        return Block
    found = import_class_path(config.block, "model.net.block")
    where = f"model.net.block={config.block!r}"
    if not (isinstance(found, type) and issubclass(found, Block)):
        raise UserError(
            f"{where} is not a subclass of lit_pretrain.model.Block: derive the class from it."
        )
    check_call(where, found, "config", "layer")
    check_call(f"{where}: transform", found.transform, "self", "x_BTD", "shared", "value_BTC")
    return found


def _make_block(cls: type[Block], config: ModelConfig, layer: int) -> Block:
    """Make one block; the values of buffers would be lost, because all weights are drawn later.

    Raises:
        UserError: A constructor of the user's raises, or registers a buffer.
    """
    if cls is Block:
        return Block(config, layer)
    where = f"model.net.block={config.block!r}"
    try:
        block = cls(config, layer)
    except UserError:
        raise
    except Exception as error:  # whatever a block of the user's raises
        raise UserError(f"{where} could not be made: {cause_of(error)}") from error
    if buffers := [name for name, _ in block.named_buffers()]:
        raise UserError(
            f"{where} has the buffer {buffers[0]!r}, which would stay empty: compute it in"
            " transform, or make it a parameter."
        )
    return block


class Transformer(nn.Module):
    """A decoder-only transformer of the given shape.

    The weights are drawn at construction from torch's default generator, on the default device. On
    the meta device nothing is drawn: `to_empty(device=...)` and `reset_parameters()` follow, and
    give what direct construction with the same seed gives.

    Args:
        config: Shape and mathematics.
    """

    roles: ClassVar[dict[str, Role]] = {
        "token_embedding": "embedding",
        "position_embedding": "embedding",
        "value_embeddings": "value_embedding",
        "residual_scale_L": "scalar",
        "embedding_scale_L": "embedding_scalar",
        "bigram_embedding": "embedding",
        "bigram_scale_L": "embedding_scalar",
        "smear_D": "embedding_scalar",
        "head": "head",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.parts: RowParts | None = None
        """Which tokens of a row this device computes, where devices share rows."""
        device = torch.get_default_device()
        value_layers = [
            layer for layer in range(config.n_layer) if config.has_value_embedding(layer)
        ]
        with torch.device(
            "meta"
        ):  # torch's own initialisation would cost time and random numbers, to be overwritten
            self.token_embedding = nn.Embedding(config.vocab_size, config.width)
            self.position_embedding = (
                nn.Embedding(config.max_seq_len, config.width)
                if config.position == "learned"
                else None
            )
            self.value_embeddings = nn.ModuleDict(
                {
                    str(layer): nn.Embedding(config.vocab_size, config.kv_heads * config.head_size)
                    for layer in value_layers
                }
            )
            self.bigram_embedding = (
                None
                if config.bigram_rows is None
                else nn.Embedding(config.bigram_rows, config.width)
            )
            self.bigram_scale_L = (
                None if config.bigram_rows is None else nn.Parameter(torch.empty(config.n_layer))
            )
            self.smear_D = nn.Parameter(torch.empty(config.width)) if config.smear else None
            self.rotary = Rotary(config) if config.position == "rope" else None
            self.embed_norm = make_norm(config, config.width) if config.embed_norm else None
            self.dropout = nn.Dropout(config.dropout)
            self.residual_scale_L = (
                nn.Parameter(torch.empty(config.n_layer)) if config.residual_scalars else None
            )
            self.embedding_scale_L = (
                nn.Parameter(torch.empty(config.n_layer)) if config.residual_scalars else None
            )
            kind = block_class(config)
            self.blocks = nn.ModuleList(
                _make_block(kind, config, layer) for layer in range(config.n_layer)
            )
            self.final_norm = make_norm(config, config.width)
            self.head = (
                None
                if config.tie_embeddings
                else Linear(config.width, config.vocab_size, bias=False)
            )
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters()

    @property
    def head_weight(self) -> Tensor:
        """Return the head's matrix, (V, D): the token embedding if tied.

        A module that trains some rows alone puts them into it.
        """
        module = self.token_embedding if self.head is None else self.head
        with_rows = getattr(module, "weight_with_rows", None)
        weight: Tensor = module.weight if with_rows is None else with_rows()
        return weight

    def checkpoint_activations(self, checkpointing: Checkpointing) -> None:
        """Keep only the input of every block, or little more; the rest is computed again.

        Before `compile_blocks`, which compiles what is to be kept.
        """
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.checkpointing = checkpointing
            block.kept = Recomputation.of(
                checkpointing, self.config, value_gate=self.config.has_value_embedding(layer)
            )

    @property
    def is_compiled(self) -> bool:
        """Tell whether the blocks are compiled, or will be at their first use."""
        return any(getattr(block, "compiled", None) is not None for block in self.blocks)

    def compile_blocks(self, backend: str = "inductor", *, fullgraph: bool = False) -> None:
        """Compile what a block computes in training, once for all blocks of a kind.

        The whole network would be one large graph.

        The first step of the quickstart's network is there in half the time, and the second is no
        slower. Gradients of a block are complete when its backward pass is, so that DDP and FSDP
        send them while the next one computes.
        """
        # Kinds of blocks times lengths of rows; past torch's 8, what remains would run uncompiled.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        cls, first = block_class(self.config), self.blocks[0]
        assert isinstance(first, Block)
        within = first.checkpointing and not first.keeps_input_alone
        if within:
            # torch warns of blocks that write in place, which would keep what they overwrite.
            logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
        compiled = torch.compile(
            cls._recompute if within else cls._compute,
            dynamic=False,
            backend=backend,
            fullgraph=fullgraph,
        )
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compiled = compiled

    @torch.no_grad()
    def reset_parameters(
        self, generator: torch.Generator | None = None, transfer: Transfer | None = None
    ) -> None:
        """Draw all weights anew by the scheme `config.init`, in the order of named_parameters().

        Args:
            generator: Source of randomness, on the device of the parameters; torch's default one if
                None.
            transfer: The base that the first weights follow from, if any.
        """
        roles = parameter_roles(self)
        scales, base = dict[str, ParameterScale](), None
        if transfer is not None:
            scales = parameter_scales(self.config, transfer, roles)
            base = (transfer.base_width, transfer.base_depth)
        for name, parameter in self.named_parameters():
            scale = scales.get(name, ParameterScale())
            init_parameter(name, roles[name], parameter, self.config, generator, scale, base)

    def forward(
        self,
        tokens_BT: Tensor,
        doc_BT: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute the hidden states that the head reads.

        Args:
            tokens_BT: Token ids, an integer type.
            doc_BT: Number of the document of each position; a position sees only its own document.
                None: every row is one document. Learned positions restart with each document.
                Rotary positions need not: scores depend on differences of positions.
            cache: Keys and values of earlier tokens; these tokens follow them, in the same
                document, and are added.
            positions_BT: Position of each token, in place of those that follow from the row, its
                documents or the cache.

        Returns:
            Hidden states after the final norm, (B, T, D), of this device's tokens, scaled so that
            the head's product with them is the logits.

        Raises:
            UserError: If the row is longer than the model has positions, or, on CPU, if a token id
                is not in the vocabulary.
        """
        length = tokens_BT.shape[1]
        if length > self.config.max_seq_len:
            raise UserError(
                f"a row of {length} tokens is longer than"
                f" model.max_seq_len={self.config.max_seq_len}: shorten it, or raise that"
            )
        if tokens_BT.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_tokens(tokens_BT)
        slots_BT = None
        if cache is not None:
            assert doc_BT is None, "a cached sequence is one document"
            slots_BT = cache.extend(length)
            positions_BT = slots_BT if positions_BT is None else positions_BT
            kernel = make_cached_kernel(self.config, slots_BT, cache.used, even=cache.even)
        else:
            dtype = self.compute_dtype()
            kernel = make_kernel(self.config, tokens_BT, doc_BT, dtype, self.parts)
        columns_BT = positions_BT
        before_BT = self.previous(tokens_BT, doc_BT, cache, slots_BT)
        if self.parts is not None and cache is None:
            column_BT = torch.arange(length, device=tokens_BT.device)[None]
            place_BT = column_BT if doc_BT is None else column_BT - document_starts(doc_BT)
            columns_BT, positions_BT = self.parts.take(column_BT), self.parts.take(place_BT)
            tokens_BT = self.parts.take(tokens_BT)
            before_BT = None if before_BT is None else self.parts.take(before_BT)
        rotation = None if self.rotary is None else self.rotary(length, columns_BT)
        shared = Pass(kernel, rotation, cache, slots_BT, doc_BT)

        x_BTD = embedding_BTD = self._embed(tokens_BT, before_BT, doc_BT, positions_BT)
        mixes = self._mixes(embedding_BTD, self.pairs(tokens_BT, before_BT))
        for layer, block in enumerate(self.blocks):
            value_BTC = (
                self.value_embeddings[str(layer)](tokens_BT)
                if self.config.has_value_embedding(layer)
                else None
            )
            x_BTD = block(x_BTD, shared, value_BTC, mixes[layer])
        hidden_BTD: Tensor = self.final_norm(x_BTD)
        if self.config.logit_scale is not None:
            hidden_BTD = hidden_BTD * self.config.logit_scale
        return hidden_BTD

    def _mixes(self, embedding_BTD: Tensor, pairs_BT: Tensor | None) -> list[Mix | None]:
        """Return what is mixed into the stream before each block."""
        mixes: list[Mix | None] = [None] * self.config.n_layer
        if self.residual_scale_L is not None and self.embedding_scale_L is not None:
            stream_L, embedding_L = _plain(self.residual_scale_L), _plain(self.embedding_scale_L)
            mixes = [
                Mix(stream_L[layer], embedding_L[layer], embedding_BTD)
                for layer in range(self.config.n_layer)
            ]
        if pairs_BT is not None:
            assert self.bigram_embedding is not None
            assert self.bigram_scale_L is not None
            bigram_BTD = self.bigram_embedding(pairs_BT.clamp(min=0)) * (pairs_BT >= 0)[..., None]
            bigram_BTD, bigram_L = self.dropout(bigram_BTD), _plain(self.bigram_scale_L)
            mixes = [
                (mix or Mix())._replace(bigram=bigram_L[layer], bigram_BTD=bigram_BTD)
                for layer, mix in enumerate(mixes)
            ]
        return mixes

    def previous(
        self,
        tokens_BT: Tensor,
        doc_BT: Tensor | None,
        cache: KVCache | None,
        slots_BT: Tensor | None,
    ) -> Tensor | None:
        """Return the token before each in its document, (B, T) int64; -1 for none.

        None where no part of the network reads it.
        """
        if not self.config.reads_previous:
            return None
        if cache is not None:
            assert slots_BT is not None
            return cache.previous(tokens_BT, slots_BT)
        before_BT = F.pad(tokens_BT[:, :-1].long(), (1, 0), value=-1)
        if doc_BT is None:
            return before_BT
        same_BT = F.pad(doc_BT[:, 1:] == doc_BT[:, :-1], (1, 0), value=False)
        return torch.where(same_BT, before_BT, -1)

    def pairs(self, tokens_BT: Tensor, before_BT: Tensor | None) -> Tensor | None:
        """Hash each token and the one before it to a row of the table, (B, T); -1 for no pair."""
        if self.config.bigram_rows is None:
            return None
        assert before_BT is not None
        # Two primes of xxHash. Ids have at most 31 bits, so that no product leaves 64.
        mixed_BT = (before_BT * 2_246_822_519) ^ (tokens_BT.long() * 2_654_435_761)
        return torch.where(before_BT >= 0, mixed_BT % self.config.bigram_rows, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (..., D) into logits (..., V), capped if the config says so."""
        logits = linear(hidden, self.head_weight)
        return (
            logits
            if self.config.logit_softcap is None
            else softcap(logits, self.config.logit_softcap)
        )

    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of attention: autocast's where it is on, else the weights'."""
        weight = self.token_embedding.weight
        device = weight.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(
            device
        )  # meta has none, and would raise
        return torch.get_autocast_dtype(device) if autocast else weight.dtype

    def check_tokens(self, tokens_BT: Tensor) -> None:
        """Make sure that all token ids are in the vocabulary.

        On an accelerator this waits for the device.

        Raises:
            UserError: If one is not, with its place.
        """
        outside = (tokens_BT < 0) | (tokens_BT >= self.config.vocab_size)
        if outside.any():
            row, column = outside.nonzero()[0].tolist()
            raise UserError(
                f"token id {int(tokens_BT[row, column])} in row {row}, column {column} is not in"
                f" the vocabulary of {self.config.vocab_size} tokens: model.vocab_size must be the"
                " tokenizer's"
            )

    def _embed(
        self,
        tokens_BT: Tensor,
        before_BT: Tensor | None,
        doc_BT: Tensor | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        x_BTD: Tensor = self.token_embedding(tokens_BT)
        if self.position_embedding is not None:
            if positions_BT is None:
                position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
                positions_BT = (
                    position_T[None] if doc_BT is None else position_T - document_starts(doc_BT)
                )
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        if self.smear_D is not None:
            assert before_BT is not None
            earlier_BTD: Tensor = self.token_embedding(before_BT.clamp(min=0))
            if self.embed_norm is not None:
                earlier_BTD = self.embed_norm(earlier_BTD)
            x_BTD = x_BTD + self.smear_D * earlier_BTD * (before_BT >= 0)[..., None]
        dropped: Tensor = self.dropout(x_BTD)
        return dropped


def _plain(scale_L: Tensor) -> Tensor:
    """Return a parameter as a plain tensor, also where tensor parallelism has made a DTensor of it.

    Each device then multiplies its own tokens with it, so that its gradients are parts of a sum.
    """
    if not hasattr(scale_L, "device_mesh"):
        return scale_L
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(scale_L, DTensor)
    return scale_L.to_local(grad_placements=[Partial()])
