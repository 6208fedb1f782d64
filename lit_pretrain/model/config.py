"""ModelConfig: the shape of a decoder-only transformer, and how many parameters that shape has."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, TypeAlias, get_args, get_origin

from lit_pretrain.errors import UserError

Checkpointing: TypeAlias = bool | Literal["attention", "products", "offload"] | float
"""What a block keeps beside its input for the backward pass. False: everything. True: nothing.
attention: what attention puts out, so that scores are not computed again. products: that, and every
second matrix product. offload: nothing, and the input itself waits in the memory of the host. A
number between 0 and 1: what `kept_within` chooses for that budget.
"""
CHECKPOINTING: tuple[Checkpointing, ...] = (False, "products", "attention", True)
"""Those without a number and on one device, in the order of what is kept."""
Float8Recipe: TypeAlias = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
"""How operands of products in fp8 are scaled, by torchao's names. tensorwise: one factor for a
tensor. rowwise: one for a row. rowwise_with_gw_hp: one for a row, and the gradients of weights are
computed without fp8.
"""


def multiples_of_16(*sizes: int) -> bool:
    """Tell whether a product of these sizes can be computed in fp8."""
    return all(size % 16 == 0 for size in sizes)


def faster_in_float8(recipe: Float8Recipe, inputs: int, outputs: int) -> bool:
    """Tell whether a matrix is large enough for fp8 to save more than rounding costs.

    The sizes are those of torchao's tables, measured on H100 (`auto_filter_small_kn`).
    """
    if recipe == "tensorwise":
        return inputs > 4096 or outputs > 1024
    return outputs > 2048 and inputs > 1024 and (outputs > 4096 or inputs > 2048)


_FIRST_AND_LAST = ("residual_scale_init", "embedding_scale_init")
"""Fields with a value for the first layer and one for the last."""

VOCAB_MULTIPLE = 64
"""Matrix kernels are fastest on such sizes."""


def padded_vocab_size(vocab_size: int) -> int:
    """Round a tokenizer's vocabulary up to the rows of the embedding."""
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 stretching of rotary wavelengths, for contexts longer than those first trained on.

    Wavelengths below `original_max_seq_len / high_freq_factor` keep their frequency, those above
    `original_max_seq_len / low_freq_factor` are slowed down by `factor`, and those between are
    interpolated (Llama Team 2024, "The Llama 3 Herd of Models", and its released code).
    """

    factor: float = 8.0
    """How many times the longest wavelengths are stretched; 32 in Llama 3.2."""
    low_freq_factor: float = 1.0
    """Wavelengths longer than `original_max_seq_len / low_freq_factor` are stretched fully."""
    high_freq_factor: float = 4.0
    """Wavelengths shorter than `original_max_seq_len / high_freq_factor` are left alone."""
    original_max_seq_len: int = 8192
    """Sequence length in tokens before the stretch."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"rope_scaling: factor={self.factor} must be at least 1")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"rope_scaling: low_freq_factor={self.low_freq_factor} must be positive and below"
                f" high_freq_factor={self.high_freq_factor}"
            )
        if self.original_max_seq_len < 1:
            raise UserError(
                f"rope_scaling: original_max_seq_len={self.original_max_seq_len} must be positive"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Shape and mathematics of a decoder-only transformer.

    With the right values it is a Llama, a Qwen3 or a GPT-2.

    A field left at None is derived from the others: read `kv_heads`, `head_size` and `ffn_size` for
    the number that is used.
    """

    vocab_size: int = 8192
    """Number of token ids. Filled from the tokenizer where the command has one."""
    n_layer: int = 3
    """Number of blocks, each one attention and one feed-forward."""
    width: int = 192
    """Size of the residual stream."""
    n_head: int = 3
    """Number of query heads."""
    n_kv_head: int | None = None
    """Number of key and value heads (grouped-query attention); must divide n_head. Default:
    n_head.
    """
    head_dim: int | None = None
    """Size of one head. Default: width / n_head."""
    ffn_width: int | None = None
    """Hidden size of the feed-forward. Default: with a gate 8/3 of the width, rounded up to a
    multiple of 64; without 4 times the width.
    """
    max_seq_len: int = 2048
    """Longest sequence in tokens; the length of the table of positions, learned or rotary."""

    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, before the feed-forward and before the head."""
    norm_weight: bool = True
    """Give every norm a learned gain per channel."""
    norm_bias: bool = False
    """Give every norm a learned bias; layernorm only."""
    norm_eps: float = 1e-5
    """Added to the variance inside the square root of every norm."""
    embed_norm: bool = False
    """Normalise the embedding before the first block."""

    position: Literal["rope", "learned", "none"] = "rope"
    """Rotary angles on queries and keys, a learned table added to the embedding (it restarts at
    every document), or nothing.
    """
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths; larger for longer contexts (Llama 3: 500000, Qwen3:
    1000000).
    """
    rope_scaling: RopeScaling | None = None
    """Llama-3 stretching of the rotary wavelengths. Default: none."""

    qk_norm: bool = False
    """RMSNorm over each head of queries and keys, before the rotation (Qwen3); its gain is
    learned if norm_weight is.
    """
    qk_scale: float | None = None
    """Multiplies queries and keys each after qk_norm, so that attention is sharper from the start
    (nanochat: 1.2). Exports put it into the gains. Default: 1.
    """
    qkv_bias: bool = False
    """Bias on the query, key and value projections."""
    attn_out_bias: bool = False
    """Bias on the output projection of attention."""
    sliding_window: int | None = None
    """Keys that a position sees in a sliding-window layer, itself included. Needs an S in
    window_pattern.
    """
    window_pattern: str = "L"
    """Kinds of attention, repeated over the layers: S sees sliding_window keys, L sees all.
    Gemma 2 is "SL".
    """
    attn_softcap: float | None = None
    """Caps attention scores smoothly: c * tanh(score / c) (Gemma 2: 50). Only the kernels flex
    and matmul do. Default: none.
    """
    logit_softcap: float | None = None
    """Caps logits smoothly: c * tanh(logit / c) (Gemma 2: 30). Default: none."""
    attention: Literal["auto", "sdpa", "matmul", "tiled", "flex", "varlen"] = "auto"
    """Kernel; all give the same result. auto: tiled on CPU, flex on CUDA, sdpa elsewhere. tiled is
    our own for CPUs; sdpa is torch's with a dense mask; matmul is the plain formula, slow; flex and
    tiled skip what documents and windows hide; varlen is the flash kernel over documents laid end
    to end (CUDA, half precision; reads the number of documents back once per forward pass).
    """

    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"] = "swiglu"
    """Feed-forward: swiglu and geglu multiply by a gate (three matrices), the others have two.
    relu2 is the square of relu.
    """
    ffn_bias: bool = False
    """Bias on the projections of the feed-forward."""
    dropout: float = 0.0
    """Probability of dropping a channel of the embedding and of what each attention and
    feed-forward adds. Attention weights are never dropped: not every kernel can, and all must
    agree.
    """

    tie_embeddings: bool = False
    """Use the token embedding as the head."""
    logit_scale: float | None = None
    """Multiplies the logits, before they are capped. Default: 1; model.transfer sets it where the
    head is tied.
    """
    value_embeddings: Literal["none", "alternate"] = "none"
    """alternate: every other layer, the last included, adds a gated embedding of the input token to
    its values. Costs vocab_size times n_kv_head times head_dim parameters per such layer and almost
    no FLOPs; does not survive export to a Hugging Face architecture.
    """
    value_gate_channels: int | None = None
    """Leading channels of the normalised residual stream that the gate of a value embedding reads.
    Default: 32.
    """
    value_gate_scale: float | None = None
    """The gate of a value embedding is a sigmoid times this. Default: 2, so that a gate of zeros
    lets the embedding through as it is.
    """
    value_gate_init: float | None = None
    """First weights of the gates, uniform between 0 and this (nanochat: 0.02). Default: zeros."""
    bigram_rows: int | None = None
    """Rows of a table of pairs of tokens. The pair of the previous token and this one is hashed to
    a row, which is added to the stream at every layer, times a learned scalar, 0.1 at first. The
    table is zero at first, and the first token of a document has no pair. Costs bigram_rows times
    width parameters and almost no FLOPs; does not survive export. Default: none.
    """
    smear: bool = False
    """Add the embedding of the previous token to that of this one, times a learned factor for each
    channel, 0 at first. The first token of a document has none before it. Costs width parameters
    and almost no FLOPs; does not survive export.
    """
    residual_scalars: bool = False
    """Layer l reads a_l * x + b_l * x0, x0 being the embedding; a_l and b_l are learned, 1 and
    0.1 at first. Does not survive export.
    """
    residual_scale_init: tuple[float, float] | None = None
    """First values of a_l at the first layer and at the last, and on a line between them (nanochat:
    [1.15, 1.05]). Default: 1.
    """
    embedding_scale_init: tuple[float, float] | None = None
    """The same of b_l (nanochat: [0.2, 0.05]). Default: 0.1."""

    block: str | None = None
    """Class path of a block of your own, a subclass of lit_pretrain.model.Block. Does not survive
    export. Default: attention and feed-forward, one after the other.
    """

    init: Literal["normal", "gpt2", "zero_residual"] = "normal"
    """normal: every matrix and embedding has standard deviation init_std. gpt2: the same, and what
    writes to the residual stream is divided by sqrt(2 * n_layer). zero_residual: matrices uniform
    with deviation 1/sqrt(fan-in), what writes to the residual stream zero, embedding deviation 1,
    head 0.001; for embed_norm, qk_norm and Muon; init_std unused.
    """
    init_std: float = 0.02
    """Standard deviation of the initial weights under normal and gpt2."""
    embedding_std: float | None = None
    """Standard deviation of the token embedding's first weights (nanochat: 0.8). Default: that of
    init.
    """
    ffn_in_scale: float | None = None
    """Multiplies the first weights of what reads the stream in a feed-forward: up_proj, gate_proj
    (nanochat: 0.4). Default: 1.
    """

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.n_kv_head is not None and self.n_head % self.n_kv_head:
            raise UserError(f"model: n_kv_head={self.n_kv_head} must divide n_head={self.n_head}")
        if self.head_dim is None and self.width % self.n_head:
            raise UserError(
                f"model: width={self.width} must be a multiple of n_head={self.n_head}, or set"
                " head_dim"
            )
        if self.norm_bias and self.norm == "rmsnorm":
            raise UserError("model: norm_bias=True needs norm='layernorm'; an RMSNorm has no bias")
        if self.position == "rope" and self.head_size % 2:
            raise UserError(
                "model: rotary positions turn pairs of channels, but the head size is"
                f" {self.head_size}: make it even"
            )
        if self.rope_scaling is not None and self.position != "rope":
            raise UserError(
                f"model: rope_scaling has no effect with position={self.position!r}: remove it or"
                " use position='rope'"
            )
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise UserError(
                f"model: window_pattern={self.window_pattern!r} must be made of the letters S"
                " (sliding) and L (full)"
            )
        if ("S" in self.window_pattern) != (self.sliding_window is not None):
            raise UserError(
                f"model: sliding_window={self.sliding_window} and"
                f" window_pattern={self.window_pattern!r} do not fit: a window needs an S in the"
                " pattern, and an S needs a window"
            )
        if self.attention in ("sdpa", "tiled", "varlen") and self.attn_softcap is not None:
            raise UserError(
                f"model: attention={self.attention!r} cannot cap scores"
                f" (attn_softcap={self.attn_softcap}): use 'auto'"
            )
        if self.smear and self.position == "learned":
            raise UserError(
                "model: smear adds embeddings without positions; position='learned' puts them into"
                " the embedding: use position='rope', or smear=False"
            )
        if self.value_embeddings != "none" and self.width < self.gate_channels:
            raise UserError(
                f"model: value_embeddings need width={self.width} to be at least"
                f" {self.gate_channels}; value_gate_channels may be fewer"
            )
        self._check_parts_of_parts()

    def _check_parts_of_parts(self) -> None:
        """Refuse what has no effect, because it belongs to a part that the network lacks."""
        for name, lacks, switch in (
            ("qk_scale", not self.qk_norm, "qk_norm: true"),
            *(
                (name, self.value_embeddings == "none", "value_embeddings: alternate")
                for name in ("value_gate_channels", "value_gate_scale", "value_gate_init")
            ),
            *(
                (name, not self.residual_scalars, "residual_scalars: true")
                for name in _FIRST_AND_LAST
            ),
        ):
            if lacks and getattr(self, name) is not None:
                raise UserError(
                    f"model: {name}={getattr(self, name)} has no effect without {switch}: set that,"
                    f" or {name}: null"
                )

    def _check_ranges(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            choices = get_args(field.type) if get_origin(field.type) is Literal else None
            if choices is not None and value not in choices:
                raise UserError(
                    f"model: {field.name}={value!r} must be one of {', '.join(map(str, choices))}"
                )
            if isinstance(value, bool) or value is None:
                continue
            if isinstance(value, int) and field.name != "dropout" and value < 1:
                raise UserError(f"model: {field.name}={value} must be positive")
            if isinstance(value, float) and field.name != "dropout" and not (0 < value < math.inf):
                raise UserError(f"model: {field.name}={value} must be positive and finite")
        for name in _FIRST_AND_LAST:
            ends = getattr(self, name)
            if ends is None:
                continue
            if len(ends) != 2 or not all(0 <= value < math.inf for value in ends):
                raise UserError(
                    f"model: {name}={ends} must be two numbers, not negative and finite: at the"
                    " first layer and at the last"
                )
            object.__setattr__(self, name, tuple(ends))  # a saved config has a list
        if not 0 <= self.dropout < 1:
            raise UserError(f"model: dropout={self.dropout} must lie in [0, 1)")

    @property
    def kv_heads(self) -> int:
        """Return the number of key and value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def tp_sizes(self) -> dict[str, int]:
        """Return the sizes that tensor parallelism divides, by the names of their fields."""
        split = {
            "model.net.n_head": self.n_head, "model.net.n_kv_head": self.kv_heads,
            "model.net.ffn_width": self.ffn_size, "model.net.vocab_size": self.vocab_size,
        }  # fmt: skip
        if self.position == "learned":
            split["model.net.max_seq_len"] = self.max_seq_len
        return split

    @property
    def head_size(self) -> int:
        """Return the channels of one head."""
        return self.width // self.n_head if self.head_dim is None else self.head_dim

    @property
    def reads_previous(self) -> bool:
        """Tell whether the network reads the token before each, beside attention."""
        return self.smear or self.bigram_rows is not None

    @property
    def gate_channels(self) -> int:
        """Return how many channels the gate of a value embedding reads."""
        return 32 if self.value_gate_channels is None else self.value_gate_channels

    @property
    def gated(self) -> bool:
        """Tell whether the feed-forward multiplies by a gate."""
        return self.activation in ("swiglu", "geglu")

    @property
    def ffn_size(self) -> int:
        """Return the hidden channels of the feed-forward."""
        if self.ffn_width is not None:
            return self.ffn_width
        return 64 * math.ceil(8 * self.width / (3 * 64)) if self.gated else 4 * self.width

    def window(self, layer: int) -> int | None:
        """Return how many keys a position of this layer sees, itself included; None for all."""
        return (
            self.sliding_window
            if self.window_pattern[layer % len(self.window_pattern)] == "S"
            else None
        )

    def has_value_embedding(self, layer: int) -> bool:
        """Tell whether this layer adds a value embedding: every other one, from the last, does."""
        return self.value_embeddings == "alternate" and (self.n_layer - 1 - layer) % 2 == 0


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, by the uses that laws and prices make of them."""

    total: int
    """All parameters, a tied embedding once."""
    matmul: int
    """Weights that multiply activations, the head included, tied or not: 6 FLOPs each per
    trained token.
    """
    embedding: int
    """Tables that are looked up: tokens (also when tied to the head), learned positions, value
    embeddings, pairs of tokens.
    """
    non_embedding: int
    """total - embedding; an untied head is part of it."""

    def counted(self, which: Literal["total", "matmul", "nonembed"]) -> int:
        """Return N as a law counts it."""
        return {"total": self.total, "matmul": self.matmul, "nonembed": self.non_embedding}[which]


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of a shape without building it.

    With a block of the user's, count those of its network on the meta device.
    """
    if config.block is not None:
        return _count_built(config)
    c = config
    q_size, kv_size = c.n_head * c.head_size, c.kv_heads * c.head_size
    norm_size = c.norm_weight + c.norm_bias

    attention = c.width * (2 * q_size + 2 * kv_size)
    feed_forward = (3 if c.gated else 2) * c.width * c.ffn_size
    block_vectors = (
        2 * norm_size * c.width
        + c.qkv_bias * (q_size + 2 * kv_size)
        + c.attn_out_bias * c.width
        + c.ffn_bias * ((2 if c.gated else 1) * c.ffn_size + c.width)
        + (2 * c.head_size if c.qk_norm and c.norm_weight else 0)
    )
    value_layers = sum(c.has_value_embedding(layer) for layer in range(c.n_layer))

    head = c.vocab_size * c.width
    matmul = (
        c.n_layer * (attention + feed_forward) + value_layers * c.gate_channels * c.kv_heads + head
    )
    embedding = (
        c.vocab_size * c.width
        + (c.max_seq_len * c.width if c.position == "learned" else 0)
        + value_layers * c.vocab_size * kv_size
        + (c.bigram_rows or 0) * c.width
    )
    vectors = (
        c.n_layer * block_vectors
        + (1 + c.embed_norm) * norm_size * c.width
        + (2 * c.n_layer if c.residual_scalars else 0)
        + (0 if c.bigram_rows is None else c.n_layer)
        + c.width * c.smear
    )
    total = matmul + embedding + vectors - (head if c.tie_embeddings else 0)
    return ParameterCounts(
        total=total, matmul=matmul, embedding=embedding, non_embedding=total - embedding
    )


@functools.cache
def _count_built(config: ModelConfig) -> ParameterCounts:
    import torch

    from lit_pretrain.model.transformer import Transformer
    from lit_pretrain.roles import parameter_roles

    with torch.device("meta"):
        net = Transformer(config)
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    roles = parameter_roles(net)
    total = sum(sizes.values())
    embedding = sum(
        size for name, size in sizes.items() if roles[name] in ("embedding", "value_embedding")
    )
    return ParameterCounts(
        total=total,
        matmul=sum(size for name, size in sizes.items() if roles[name] == "matrix")
        + config.vocab_size * config.width,
        embedding=embedding,
        non_embedding=total - embedding,
    )


class Kept(NamedTuple):
    """What a block keeps of the results of its operations, to compute the others again."""

    attention: bool
    """What attention puts out."""
    products: tuple[str, ...]
    """The matrices whose products it keeps, by name and in the order of computation."""
    elements: int
    """Numbers kept for each token."""
    recomputed: float
    """Share of the FLOPs of the matrix products that are made again."""


def products_of(config: ModelConfig, *, value_gate: bool) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the matrices of a block, in the order of computation.

    Args:
        config: Shape of the network.
        value_gate: Whether the layer has a gate for a value embedding.
    """
    d, f = config.width, config.ffn_size
    q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
    gate = {"value_gate": (config.gate_channels, config.kv_heads)} if value_gate else {}
    gated = {"gate_proj": (d, f)} if config.gated else {}
    first = {"q_proj": (d, q), "k_proj": (d, k), "v_proj": (d, k)}
    return {**first, **gate, "out_proj": (q, d), "up_proj": (d, f), **gated, "down_proj": (f, d)}


@functools.cache
def kept_within(config: ModelConfig, budget: float) -> Kept:
    """Choose what a block keeps, so that it takes at most a share of what there is to keep.

    That is what attention and the matrices put out, but for the last matrix, whose product the
    backward pass does not read. Attention comes first, because scores cost most to compute again,
    and then the products that save most FLOPs. There are few enough to try all choices.

    Args:
        config: Shape of the network.
        budget: The share.

    Raises:
        UserError: It is no share.
    """
    if not 0.0 < budget < 1.0:
        raise UserError(
            f"model.activation_checkpointing={budget:g} must lie between 0 and 1, the share of the"
            " results of a block's operations that is kept; true keeps none, and false everything"
        )
    sides = products_of(config, value_gate=False)
    flops = {name: inputs * outputs for name, (inputs, outputs) in sides.items()}
    names = [name for name in sides if name != "down_proj"]
    # Beside the heads attention keeps the log-sum-exp of each in fp32, two numbers of half of that.
    heads = config.n_head * (config.head_size + 2)
    room = budget * (heads + sum(sides[name][1] for name in names))

    def choices() -> Iterator[tuple[bool, int, Kept]]:
        for attention in (True, False):
            for count in range(len(names) + 1):
                for chosen in itertools.combinations(names, count):
                    elements = attention * heads + sum(sides[name][1] for name in chosen)
                    if elements <= room:
                        saved = sum(flops[name] for name in chosen)
                        again = 1.0 - saved / sum(flops.values())
                        yield attention, saved, Kept(attention, chosen, elements, again)

    return max(choices(), key=lambda choice: choice[:2])[2]
